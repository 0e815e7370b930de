"""Data parallelism: the only file that names pmap.

One update function runs on every local device of every host, each on its share of the global batch; the state is
replicated and donated, gradients are averaged over AXIS inside the update.
"""

from collections.abc import Callable

import jax
import numpy as np

from diffusion_jax.mesh import AXIS, batch_sharding
from diffusion_jax.training.update import loop_unroll


def pmap_update(step: Callable, updates_per_call: int = 1) -> Callable:
  """step(state, batch, key) -> state, compiled for all devices; its state is donated.

  Args:
    step: the update of one device; reduces over AXIS.
    updates_per_call: number of updates in one call; above 1, batches carry them on their second axis.

  Returns:
    (replicated state, sharded batch [devices, (updates,) B/devices, ...], key) -> replicated state.
  """

  def call(state, batch, key):
    if updates_per_call == 1:
      return step(state, batch, key)
    body = lambda state, batch: (step(state, batch, key), None)
    return jax.lax.scan(body, state, batch, unroll=loop_unroll(updates_per_call))[0]

  return jax.pmap(call, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0)


def replicate(tree):
  """A copy of every array on each local device, [local devices, ...]."""
  sharding, count = batch_sharding(), jax.local_device_count()
  return jax.tree.map(lambda x: jax.device_put(np.broadcast_to(np.asarray(x), (count, *np.shape(x))), sharding), tree)


def unreplicate(tree):
  """The first local device's copy as NumPy arrays, without moving anything between devices."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def shard(batches: list[dict[str, np.ndarray]]):
  """This host's share of one or more consecutive batches, laid on its devices.

  Args:
    batches: one dict of [host's share, ...] an update.

  Returns:
    dict of [local devices, (updates,) share/devices, ...].
  """
  count = jax.local_device_count()

  def lay(*parts):
    parts = [part.reshape(count, -1, *part.shape[1:]) for part in parts]
    return jax.device_put(parts[0] if len(parts) == 1 else np.stack(parts, axis=1), batch_sharding())

  return jax.tree.map(lay, *batches)


def host_slots(batch_size: int) -> tuple[int, int]:
  """First and one past last slot of the global batch that this host reads."""
  share = batch_size // jax.process_count()
  return jax.process_index() * share, (jax.process_index() + 1) * share
