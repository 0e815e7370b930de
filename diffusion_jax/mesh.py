"""The local devices as one axis, over which batches lie; what programs are compiled for; what hosts tell each other."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"
_compiling_for: list[str] = []


def platform() -> str:
  """What programs are compiled for: "cpu", "gpu", "tpu"; this machine's default unless `compiling_for` says else."""
  return _compiling_for[-1] if _compiling_for else jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str):
  """Inside, functions that look at `platform` are traced for another machine than this one."""
  _compiling_for.append(name)
  try:
    yield
  finally:
    _compiling_for.pop()


def batch_sharding() -> NamedSharding:
  """The first axis of an array over all local devices."""
  return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS))


def everywhere(tree):
  """Lays a whole copy of every array on each local device."""
  return jax.device_put(tree, NamedSharding(batch_sharding().mesh, PartitionSpec()))


def spread(x):
  """Lays [B, ...] over the local devices; their number must divide B."""
  return jax.device_put(x, batch_sharding())


def batches(count: int, size: int) -> Iterator[np.ndarray]:
  """Which of `count` rows make up each batch of about `size`, [n]; n stays the same, and the local devices divide it.

  The last batch is filled up with rows that were there, so that one compilation serves all.
  """
  devices = jax.local_device_count()
  size = -(-min(size, count) // devices) * devices
  for start in range(0, count, size):
    yield np.arange(start, start + size) % count


def host_sharding() -> NamedSharding | None:
  """The first axis of an array over the hosts, in their own memory; None where JAX has no CPU backend for it."""
  try:
    devices = jax.devices("cpu")
  except RuntimeError:  # JAX_PLATFORMS=cuda
    return None
  firsts = {}
  for device in sorted(devices, key=lambda device: device.id):
    firsts.setdefault(device.process_index, device)
  if len(firsts) < jax.process_count():
    return None
  return NamedSharding(Mesh(np.array([firsts[i] for i in sorted(firsts)]), (AXIS,)), PartitionSpec(AXIS))


def check_same(value, message: str):
  """Raises ValueError, on all hosts, unless they all give the same numbers."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    values = np.asarray(multihost_utils.process_allgather(np.asarray(value, np.int32)))
    if (values != values[0]).any():
      raise ValueError(message)


def host_share(count: int) -> np.ndarray:
  """Which of `count` rows this host sees to: as many on each, [n]; some of the first twice where they do not divide."""
  share = -(-count // jax.process_count())
  return (jax.process_index() * share + np.arange(share)) % count


def gather_hosts(rows: np.ndarray) -> np.ndarray:
  """Joins the rows [n, ...] of all hosts, first host first, on each of them; n is the same everywhere."""
  if jax.process_count() == 1:
    return rows
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def from_all_hosts(text: str) -> list[str]:
  """What each host says, first host first, on all of them: for what they must agree on. At most 2,000 bytes each."""
  if jax.process_count() == 1:
    return [text]
  from jax.experimental import multihost_utils

  sent = np.frombuffer(text.encode()[:2000].ljust(2000, b"\0"), np.uint8)
  said = np.asarray(multihost_utils.process_allgather(sent))
  return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in said]


def from_first_host(function: Callable[[], str]) -> str:
  """function() of the first host, on all of them; its error is raised on that one, and an OSError on the others."""
  error = None
  try:
    text = function() if jax.process_index() == 0 else ""
  except Exception as raised:  # the others wait for an answer
    text, error = f"\1{raised}", raised
  text = from_all_hosts(text)[0]
  if error is not None:
    raise error
  if text.startswith("\1"):
    raise OSError(f"the first host: {text[1:]}")
  return text
