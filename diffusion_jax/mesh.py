"""The local devices as one axis, over which batches lie."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def batch_sharding() -> NamedSharding:
  """The first axis of an array over all local devices."""
  return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS))


def everywhere(tree):
  """Lays a whole copy of every array on each local device."""
  return jax.device_put(tree, NamedSharding(batch_sharding().mesh, PartitionSpec()))


def spread(x):
  """Lays [B, ...] over the local devices; their number must divide B."""
  return jax.device_put(x, batch_sharding())


def check_same(value, message: str):
  """Raises ValueError, on all hosts, unless they all give the same numbers."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    values = np.asarray(multihost_utils.process_allgather(np.asarray(value, np.int32)))
    if (values != values[0]).any():
      raise ValueError(message)


def gather_hosts(rows: np.ndarray) -> np.ndarray:
  """Joins the rows [n, ...] of all hosts, first host first, on each of them; n is the same everywhere."""
  if jax.process_count() == 1:
    return rows
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(rows, tiled=True))
