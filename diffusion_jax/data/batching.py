"""Which examples make up a step: a pure function of (seed, step), so a resumed run needs no iterator state.

    p = step·batch_size + slot,   e = ⌊p / N⌋,   index = π_{seed, e}(p mod N)                              (1)

π_{seed, e} is a permutation of the N examples, so every epoch shows each example once; a batch may straddle epochs.

What a run remembers of every example lies in S slices, slice s with the examples s, s + S, s + 2S, …, and each slice on
one device. There each run of batch_size/S slots is drawn from the slice of its own, by (1) with a permutation of the
slice's examples alone, so a device meets only examples that it remembers, however many devices share the slices.
"""

import collections
import concurrent.futures
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from diffusion_jax.data.base import Source

T = TypeVar("T")


def indices(seed: int, step: int, batch_size: int, num_examples: int, slices: int = 1) -> np.ndarray:
  """The examples of step `step` by equation (1).

  Args:
    seed: seed of the run, >= 0.
    step: which step, >= 0.
    batch_size: number of examples in the global batch, over all hosts.
    num_examples: N, the number of examples in the source.
    slices: S; slots [s·batch_size/S, (s + 1)·batch_size/S) get examples of slice s.

  Returns:
    [batch_size] int64 in [0, N): the same on every host, machine and call.

  Raises:
    ValueError: an argument is out of range, or the slices do not divide the batch, or are more than the examples.
  """
  for name, value, least in (
    ("seed", seed, 0), ("step", step, 0), ("batch_size", batch_size, 1), ("num_examples", num_examples, 1),
    ("slices", slices, 1),
  ):  # fmt: skip
    if value < least:
      raise ValueError(f"{name} must be >= {least}, got {value}")
  if batch_size % slices or slices > num_examples:
    raise ValueError(f"slices must divide batch_size {batch_size} and be at most {num_examples} examples, got {slices}")
  sizes = [len(range(s, num_examples, slices)) for s in range(slices)]
  drawn = [_drawn(int(seed), int(step), batch_size // slices, tuple(sizes), s) for s in range(slices)]
  return np.concatenate([s + slices * rows for s, rows in enumerate(drawn)])


def _drawn(seed: int, step: int, batch_size: int, sizes: tuple[int, ...], which: int) -> np.ndarray:
  """Equation (1) for a batch from one of the slices, which have these sizes."""
  epoch, first = divmod(step * batch_size, sizes[which])
  epochs = range(epoch, epoch + -(-(first + batch_size) // sizes[which]))
  return np.concatenate([_permutations(seed, e, sizes)[which] for e in epochs])[first : first + batch_size]


def batch(
  source: Source, seed: int, step: int, batch_size: int, start: int = 0, stop: int | None = None, slices: int = 1
) -> dict[str, np.ndarray]:
  """Slots [start, stop) of the global batch of a step: all of it by default, a host's share otherwise.

  Args:
    source: where the examples lie.
    seed: seed of the run.
    step: which step.
    batch_size: size of the global batch.
    start: first slot wanted.
    stop: one past the last slot wanted, batch_size by default.
    slices: see `indices`.

  Returns:
    What source.gather gives ("image", "label"), and "index": [n] int32, the example's index in the source, and
    "slot": [n] int32, its position in the global batch.

  Raises:
    ValueError: not 0 <= start < stop <= batch_size.
  """
  stop = batch_size if stop is None else stop
  if not 0 <= start < stop <= batch_size:
    raise ValueError(f"slots [start, stop) must lie in [0, {batch_size}) and not be empty, got [{start}, {stop})")
  index = indices(seed, step, batch_size, len(source), slices)[start:stop]
  slot = np.arange(start, stop, dtype=np.int32)
  return {**source.gather(index), "index": index.astype(np.int32), "slot": slot}


def prefetch(make_batch: Callable[[int], T], steps: Iterable[int], depth: int = 2) -> Iterator[T]:
  """Yields make_batch(step) for each of `steps`, in order, made ahead by one background thread.

  An exception of make_batch is raised when its step is reached. Closing the generator, or leaving it by an exception,
  waits for the batch in the making and ends the thread.

  Args:
    make_batch: the function of a step that is run in the thread.
    steps: the steps wanted; may be endless (itertools.count).
    depth: how many batches are made ahead, >= 1.

  Raises:
    ValueError: depth < 1.
  """
  if depth < 1:
    raise ValueError(f"depth must be >= 1, got {depth}")
  return _prefetch(make_batch, iter(steps), depth)


def _prefetch(make_batch, steps, depth):
  pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prefetch")
  submit = functools.partial(pool.submit, make_batch)
  try:
    pending = collections.deque(map(submit, itertools.islice(steps, depth)))
    while pending:
      made = pending.popleft().result()
      pending.extend(map(submit, itertools.islice(steps, 1)))  # before the yield: made while the caller computes
      yield made
  finally:
    pool.shutdown(cancel_futures=True)


@functools.lru_cache(maxsize=4)
def _permutations(seed: int, epoch: int, sizes: tuple[int, ...]) -> list[np.ndarray]:
  """π_{seed, epoch} of each slice, [size] int64, read-only.

  The order of raw Philox words, which numpy keeps the same from version to version; Generator.permutation it may not.
  """
  orders = []
  for which, size in enumerate(sizes):
    seeds = [seed, epoch, *[which] * (len(sizes) > 1)]
    words = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(size)
    orders.append(np.argsort(words, kind="stable").astype(np.int64))
    orders[-1].flags.writeable = False
  return orders
