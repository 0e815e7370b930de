"""What a run remembers of every example between its visits: TrainState.buffer.

    buffer [S, ⌈N/S⌉, ...],   example i lies in slice i mod S, row ⌊i/S⌋                                      (1)

Every slice lies on one device, and batches are drawn so that a device meets the examples of its own slices alone
(data/batching.py), in as many slots for each slice. So an update reads and writes its device's part in place, and
nothing passes between devices. The number of slices belongs to the run, that of devices may change.

A buffer too large for the devices lies on the hosts, see host_memory.py.
"""

import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import mesh as mesh_lib
from diffusion_jax.data import cache, identity
from diffusion_jax.data.base import Source
from diffusion_jax.types import Array, Key

_COPIES = 3  # of a buffer on the host while it is saved: itself, one that stands still, and the writer's


def create(key: Key, num_examples: int, slices: int, shape: tuple[int, ...], dtype) -> Array:
  """Equation (1) filled from N(0, I), each example by its own number: [slices, ⌈num_examples/slices⌉, *shape].

  Drawn row by row: nothing else of the buffer's size is ever held. Where slices do not divide the examples, the last
  row has places that no example has.
  """
  rows = -(-num_examples // slices)
  draw = jax.vmap(lambda index: jax.random.normal(jax.random.fold_in(key, index), shape).astype(dtype))

  def fill(row, buffer):
    return jax.lax.dynamic_update_index_in_dim(buffer, draw(slices * row + jnp.arange(slices)), row, 1)

  return jax.lax.fori_loop(0, rows, fill, jnp.zeros((slices, rows, *shape), dtype))


def check(index: Array, num_examples: int, slices: int, own: int):
  """Raises IndexError where `read` or `write` would find another example's place; what is traced is not looked at.

  Args:
    index: [B] numbers of examples.
    num_examples: N.
    slices: S.
    own: how many of the slices lie here.
  """
  if isinstance(index, jax.core.Tracer):
    return
  index = np.asarray(index)
  if index.size and not 0 <= index.min() <= index.max() < num_examples:
    raise IndexError(f"index must lie in [0, {num_examples}), the examples, got {index.min()} to {index.max()}")
  if len(index) % own or (index.reshape(own, -1) % slices != (index[:1] + np.arange(own))[:, None] % slices).any():
    raise IndexError(f"index must hold examples of {own} slices (i mod {slices}) in their order, got {index.tolist()}")


def read(buffer: Array, index: Array, slices: int) -> Array:
  """What is remembered of a batch.

  Args:
    buffer: this device's slices, or all, of equation (1).
    index: [B] numbers of the examples, as many of each of these slices, in the slices' order.
    slices: S.

  Returns:
    [B, ...] in the buffer's type.
  """
  return jax.vmap(lambda part, row: part[row])(buffer, _rows(buffer, index, slices)).reshape(-1, *buffer.shape[2:])


def write(buffer: Array, index: Array, slices: int, values: Array) -> Array:
  """The buffer with values [B, ...] where `read` took them from; of an example twice in a batch the last one."""
  rows = _rows(buffer, index, slices)
  values = values.astype(buffer.dtype).reshape(*rows.shape, *buffer.shape[2:])
  again = jnp.triu(rows[:, :, None] == rows[:, None, :], 1).any(-1)  # [slices, slots]: it comes once more, later
  rows = jnp.where(again, buffer.shape[1], rows)
  return jax.vmap(lambda part, row, value: part.at[row].set(value, mode="drop"))(buffer, rows, values)


def _rows(buffer: Array, index: Array, slices: int) -> Array:
  """⌊i/S⌋ of each example, [slices of the buffer, slots]."""
  return (index // slices).reshape(buffer.shape[0], -1)


def resolve(config: ConfigDict, source: Source, mesh: Mesh) -> ConfigDict:
  """The config with what dddm.num_examples and dddm.fingerprint leave to the data; itself for one without a buffer.

  Args:
    config: a run's.
    source: its data.
    mesh: the devices that the buffer will lie on.

  Raises:
    ConfigError: the data are others than the config's, or fewer than slices, or the buffer does not fit.
  """
  if not config_lib.remembers(config):
    return config
  if config.dddm.buffer_slices > len(source):
    expected = f"must be at most the number of examples, {len(source)}"
    raise config_lib.wrong("dddm.buffer_slices", config.dddm.buffer_slices, expected)
  if config_lib.on_host(config) and mesh_lib.host_sharding() is None:
    raise config_lib.wrong("dddm.buffer_memory", "host", "needs JAX's CPU backend too: JAX_PLATFORMS=cuda,cpu")
  known = {"num_examples": len(source), "fingerprint": _fingerprint(config.data)}
  for field, found in known.items():
    if config.dddm[field] not in (type(found)(), found):
      raise config_lib.wrong(f"dddm.{field}", config.dddm[field], f"the data have {found!r}: they have changed")
  config = config.copy_and_resolve_references()
  config.dddm.update(known)
  _check_size(config, source, mesh)
  return config


def _fingerprint(data: ConfigDict) -> str:
  """Sixteen hexadecimal digits that are others for other data."""
  which = [data.name, data.split, *([identity.of_path(data.name, data.path)] if data.path else [])]
  return hashlib.sha256(json.dumps(which).encode()).hexdigest()[:16]


def _check_size(config: ConfigDict, source: Source, mesh: Mesh):
  """Raises ConfigError for a buffer that does not fit, while nothing of it is there."""
  setting, local = config.dddm, [device for device in mesh.devices.flat if device in jax.local_devices()]
  if not local:  # described devices: the compiler says what they need
    return
  rows = -(-len(source) // setting.buffer_slices)
  total = setting.buffer_slices * rows * math.prod(source.image_shape) * jnp.dtype(setting.buffer_dtype).itemsize
  share, where = total * len(local) / mesh.size, f"on the {len(local)} devices of a host"
  room = [(device.memory_stats() or {}).get("bytes_limit") for device in local]
  if setting.buffer_memory == "host" or not all(room):
    room, where = [cache.available_memory()], "on a host"
    share *= _COPIES if setting.buffer_memory == "host" else 1
  if room[0] and share > sum(room):
    less = "dddm.buffer_dtype = 'float16', dddm.buffer_memory = 'host', more devices, or dddm.estimates = 'in_step'"
    expected = f"the estimates of {len(source):,} images take {share / 1e9:.3g} GB {where}, which has "
    raise config_lib.wrong("dddm.estimates", "buffer", f"{expected}{sum(room) / 1e9:.3g} GB; {less} need less")
