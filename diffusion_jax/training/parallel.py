"""How one update runs on many devices: config.train.parallel. The only file that names pmap.

  pmap  each device of each host runs the update on its share of the batch; gradients are averaged over AXIS inside it
  jit   one program over a mesh of all devices: the batch lies split on them, the state whole on each
  fsdp  the same, with parameters, averages and optimizer split too: a device keeps 1/n of them; parameters are whole
        while it computes

In every layout each device keeps its own slices of what a run remembers of its examples (TrainState.buffer), and no
other device ever sees them.

A run's state has two forms. The one that `run` takes and gives, here called laid, is the layout's own. The other, whole
or split `jax.Array`s under `shardings`, is what is made first, saved and restored; so a checkpoint of any layout on any
number of devices opens in any other.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax import config as config_lib
from diffusion_jax.mesh import AXIS, batch_sharding, host_sharding
from diffusion_jax.training import update
from diffusion_jax.training.state import TrainState

_SPLIT_FROM = 2**12  # smaller arrays are not worth splitting


class Layout(Protocol):
  """Where state and batches lie, and how the update is compiled for them.

  Attributes:
    axis_name: the axis that a method's update reduces over; None where the compiler does that.
    mesh: all devices that take part.
  """

  axis_name: str | None
  mesh: Mesh

  def shardings(self, shapes):
    """Where the arrays of a tree of shapes lie when they are made, saved and restored."""

  def lay(self, tree):
    """From arrays under `shardings` to what `compile`'s function takes."""

  def gather(self, tree):
    """Back from what is laid to arrays under `shardings`; a buffer may come in the hosts' memory."""

  def laid_shapes(self, shapes):
    """The shapes of what `lay` gives, with their shardings; nothing is allocated."""

  def split_shapes(self, batch, updates_per_call: int = 1):
    """The shapes of what `split` gives, for those of the global batch of one update."""

  def split(self, batches: list[dict[str, np.ndarray]]):
    """Lays this host's share of one or more consecutive batches, one dict of [share, ...] an update."""

  def everywhere(self, tree):
    """Lays a whole copy of every NumPy array on each device."""

  def everywhere_shapes(self, shapes):
    """The shapes of what `everywhere` gives."""

  def whole(self, tree):
    """What is laid, as NumPy arrays on every host; all hosts must call it. Of a buffer a host gets its own slices."""

  def compile(self, step: Callable, updates_per_call: int = 1) -> Callable:
    """step(state, batch, key) -> state, compiled for all devices.

    Returns:
      (laid state, split batches, key, data) -> (laid state, laid [updates_per_call] int32): the second is
      `skipped_in_row` after each update, and can be waited for when the state has gone into the next call, to which it
      is donated. `data` holds the whole data set ([N, ...] each, from `everywhere`), from which a batch's "index" then
      chooses, or is None.
    """


def from_config(name: str) -> Layout:
  """The layout of config.train.parallel; raises ConfigError for an unknown one."""
  return config_lib.choose("train.parallel", name, {"pmap": Pmap, "jit": Jit, "fsdp": lambda: Jit(split_state=True)})()


def template(layout: Layout, shapes):
  """Shapes and types with the layout's shardings, into which a checkpoint is restored."""
  return placed(shapes, layout.shardings(shapes))


def placed(shapes, shardings):
  """Shapes and types with shardings."""
  place = lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)
  return jax.tree.map(place, shapes, shardings)


def _by_part(shared: Callable, sliced: Callable, tree, *rest):
  """Maps the leaves of a tree; those of a state's buffer, which is split by slices, by a function of their own."""
  if not isinstance(tree, TrainState):
    return jax.tree.map(shared, tree, *rest)
  mapped = jax.tree.map(shared, *(state.replace(buffer={}) for state in (tree, *rest)))
  return mapped.replace(buffer=jax.tree.map(sliced, *(state.buffer for state in (tree, *rest))))


def _own_slices(x) -> np.ndarray:
  """This host's part of an array that is split by its first axis."""
  shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards])


@functools.partial(jax.jit, donate_argnums=0)
def _alone(x):
  """x[None], in the memory of x."""
  return x[None]


def host_slots(batch_size: int) -> tuple[int, int]:
  """First and one past last slot of the global batch that this host reads."""
  share = batch_size // jax.process_count()
  return jax.process_index() * share, (jax.process_index() + 1) * share


def first(array) -> np.ndarray:
  """A laid vector, or number, that is the same on all devices, flat, as this host's first one has it."""
  return np.asarray(array.addressable_shards[0].data).reshape(-1)


def _calls(step: Callable, updates_per_call: int) -> Callable:
  """step as a function of one call's batches and of the data that they are taken from."""

  def call(state, batches, key, data):
    def one(state, batch):
      if data is not None:
        batch = {**jax.tree.map(lambda rows: rows[batch["index"]], data), **batch}
      state = step(state, batch, key)
      return state, state.skipped_in_row

    if updates_per_call == 1:
      state, skipped = one(state, batches)
      return state, skipped[None]
    return jax.lax.scan(one, state, batches, unroll=update.loop_unroll(updates_per_call))

  return call


class Pmap:
  """A copy of the state on each device, stacked: every array is [local devices, ...]."""

  axis_name = AXIS

  def __init__(self):
    self.mesh = Mesh(_devices(), (AXIS,))
    processes = [device.process_index for device in self.mesh.devices]
    _, firsts = np.unique(processes, return_index=True)
    self._hosts = NamedSharding(Mesh(self.mesh.devices[firsts], (AXIS,)), PartitionSpec())
    self._slices = NamedSharding(self.mesh, PartitionSpec(AXIS))

  def shardings(self, shapes):
    """Whole, on the first device of each host; a buffer's slices on the devices that they belong to."""
    return _by_part(lambda _: self._hosts, lambda _: self._slices, shapes)

  def lay(self, tree):
    def own(x):
      shards = [_alone(shard.data) for shard in x.addressable_shards]
      shape = (jax.local_device_count(), *shards[0].shape[1:])
      return jax.make_array_from_single_device_arrays(shape, batch_sharding(), shards)

    return _by_part(lambda x: self._copies(x.addressable_shards[0].data), own, tree)

  def laid_shapes(self, shapes):
    count, sharding = jax.local_device_count(), batch_sharding()
    shape = lambda s, *rest: jax.ShapeDtypeStruct((count, *rest), s.dtype, sharding=sharding)
    own = lambda s: shape(s, s.shape[0] // self.mesh.size, *s.shape[1:])
    return _by_part(lambda s: shape(s, *s.shape), own, shapes)

  def gather(self, tree):
    def on_hosts(x):
      one = x.addressable_shards[0].data
      return jax.make_array_from_single_device_arrays(x.shape[1:], self._hosts, [one.reshape(x.shape[1:])])

    def own(x):
      where = host_sharding()
      if where is not None:  # another copy of it may be more than a device has left
        return jax.make_array_from_process_local_data(where, _own_slices(x).reshape(-1, *x.shape[2:]))
      shards = [shard.data.reshape(x.shape[1:]) for shard in x.addressable_shards]
      shape = (self.mesh.size * x.shape[1], *x.shape[2:])
      return jax.make_array_from_single_device_arrays(shape, self._slices, shards)

    return _by_part(on_hosts, own, tree)

  def split_shapes(self, batch, updates_per_call=1):
    count, several = jax.local_device_count(), () if updates_per_call == 1 else (updates_per_call,)

    def shape(s):
      per_device = (count, *several, s.shape[0] // self.mesh.size, *s.shape[1:])
      return jax.ShapeDtypeStruct(per_device, s.dtype, sharding=batch_sharding())

    return jax.tree.map(shape, batch)

  def split(self, batches):
    count = jax.local_device_count()

    def lay(*parts):
      parts = [part.reshape(count, -1, *part.shape[1:]) for part in parts]
      return jax.device_put(parts[0] if len(parts) == 1 else np.stack(parts, axis=1), batch_sharding())

    return jax.tree.map(lay, *batches)

  def everywhere(self, tree):
    return jax.tree.map(self._copies, tree)

  def _copies(self, x):
    return jax.device_put(np.broadcast_to(np.asarray(x), (jax.local_device_count(), *np.shape(x))), batch_sharding())

  def everywhere_shapes(self, shapes):
    return self.laid_shapes(shapes)

  def whole(self, tree):
    one = lambda x: np.asarray(x.addressable_shards[0].data)[0]
    return _by_part(one, lambda x: _own_slices(x).reshape(-1, *x.shape[2:]), tree)

  def compile(self, step, updates_per_call=1):
    call = _calls(step, updates_per_call)
    return jax.pmap(call, axis_name=AXIS, in_axes=(0, 0, None, 0), donate_argnums=0)


class Jit:
  """One program over a mesh of all devices; the compiler divides it (GSPMD)."""

  axis_name = None

  def __init__(self, split_state: bool = False, devices=None):
    """By default all devices; others may be described ones, for which programs can be compiled alone."""
    self.mesh = Mesh(_devices() if devices is None else np.array(devices), (AXIS,))
    self._split_state = split_state
    self._whole = NamedSharding(self.mesh, PartitionSpec())
    self._slices = NamedSharding(self.mesh, PartitionSpec(AXIS))
    self._copy = jax.jit(lambda x: x, out_shardings=self._whole)

  def shardings(self, shapes):
    """Whole on each device; with split_state the longest axis that the devices divide is split, of large arrays."""
    return _by_part(self._sharding, lambda _: self._slices, shapes)

  def _sharding(self, shape) -> NamedSharding:
    count = self.mesh.size
    axes = [axis for axis, length in enumerate(shape.shape) if length % count == 0]
    if not self._split_state or not axes or math.prod(shape.shape) < _SPLIT_FROM:
      return self._whole
    longest = max(axes, key=lambda axis: shape.shape[axis])
    return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, AXIS))

  def lay(self, tree):
    return tree

  def laid_shapes(self, shapes):
    return template(self, shapes)

  def gather(self, tree):
    return tree

  def _batch_sharding(self, updates_per_call) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec(AXIS) if updates_per_call == 1 else PartitionSpec(None, AXIS))

  def split_shapes(self, batch, updates_per_call=1):
    several, sharding = () if updates_per_call == 1 else (updates_per_call,), self._batch_sharding(updates_per_call)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((*several, *s.shape), s.dtype, sharding=sharding), batch)

  def split(self, batches):
    lay = functools.partial(jax.make_array_from_process_local_data, self._batch_sharding(len(batches)))
    return jax.tree.map(lambda *parts: lay(parts[0] if len(parts) == 1 else np.stack(parts)), *batches)

  def everywhere(self, tree):
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._whole, np.asarray(x), np.shape(x)), tree)

  def everywhere_shapes(self, shapes):
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=self._whole), shapes)

  def whole(self, tree):
    one = lambda x: x if x.is_fully_replicated else self._copy(x)  # array by array: never more than one is whole
    return _by_part(lambda x: np.asarray(one(x).addressable_shards[0].data), _own_slices, tree)

  def compile(self, step, updates_per_call=1):
    call = _calls(step, updates_per_call)
    # Computing with whole parameters keeps the activations split by example, however the parameters are kept.
    whole = lambda params: jax.lax.with_sharding_constraint(params, self._whole)
    split = lambda tree: jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state, batches, key, data):
      with update.parameters_split(whole, split) if self._split_state else contextlib.nullcontext():
        state, skipped = call(state, batches, key, data)
      return split(state), skipped

    return run


def _devices() -> np.ndarray:
  """All devices, those of a host together, so that a host's share of the batch is in one piece."""
  return np.array(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))
