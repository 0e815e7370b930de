"""What a run remembers of every example, in the hosts' memory in place of the devices', see memory.py.

A batch comes with what is remembered of its examples, the update leaves what is to be written in TrainState.buffer, and
a thread writes it while the next update runs.
"""

import concurrent.futures
import threading

import jax
import numpy as np

from diffusion_jax.types import Array


class OnHost:
  """This host's slices of a buffer, in its own memory; equal, update by update, to one on the devices.

  Batches are made ahead, in a thread of their own, and updates run behind: `take` waits until what it reads has been
  written.
  """

  def __init__(self, buffer: Array, slices: int, first_step: int):
    """
    Args:
      buffer: equation (1) under `mesh.host_sharding`; copied.
      slices: S.
      first_step: the first step whose batch is taken.
    """
    (shard,) = buffer.addressable_shards
    self._first, self._slices, self._sharding = shard.index[0].start or 0, slices, buffer.sharding
    self.held = np.array(shard.data)  # [own slices, rows, ...]
    self._taken = np.full(self.held.shape[:2], first_step - 1)  # the last step that took a place
    self._written, self._trouble = first_step - 1, None  # the last step whose values are here
    self._change = threading.Condition()
    self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="memory")

  def take(self, step: int, index: np.ndarray) -> np.ndarray:
    """What is remembered of this host's examples [n] of a step, [n, ...]; steps come in order."""
    place = self._places(index)
    with self._change:
      last = self._taken[place].max()
      self._change.wait_for(lambda: self._trouble is not None or self._written >= last)
      if self._trouble is not None:
        raise self._trouble
      self._taken[place] = step
      return self.held[place]

  def put(self, step: int, index: np.ndarray, values: Array):
    """Writes values [.., n, ...] of a step's update, when they are there; steps come in order. Returns at once."""
    shards = [shard.data.copy() for shard in sorted(values.addressable_shards, key=lambda s: s.index[0].start or 0)]
    self._pool.submit(self._write, step, index, shards)  # copies: the update's own go into the next one

  def _write(self, step, index, shards):
    try:
      values = np.concatenate([np.asarray(shard).reshape(-1, *self.held.shape[2:]) for shard in shards])
      with self._change:
        self.held[self._places(index)] = values  # of equal places the last value stands
        self._written = step
        self._change.notify_all()
    except Exception as error:  # whatever the update raised; the next `take` or `whole` raises it
      self._stop(error)

  def _stop(self, error: Exception):
    with self._change:
      self._trouble = self._trouble or error
      self._change.notify_all()

  def whole(self, step: int) -> Array:
    """The buffer after a step whose values have been put, under `mesh.host_sharding`; a copy."""
    with self._change:
      self._change.wait_for(lambda: self._trouble is not None or self._written >= step)
      if self._trouble is not None:
        raise self._trouble
      return jax.make_array_from_process_local_data(self._sharding, self.held.copy())

  def close(self):
    """Ends the thread, and every `take` that waits."""
    self._stop(RuntimeError("the run has ended"))
    self._pool.shutdown(cancel_futures=True)

  def _places(self, index):
    index = np.asarray(index)
    return index % self._slices - self._first, index // self._slices
