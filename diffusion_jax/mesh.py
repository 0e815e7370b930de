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
