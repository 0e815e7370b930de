"""Which examples make up a step: a pure function of (seed, step), so a resumed run needs no iterator state.

    p = step·batch_size + slot,   e = ⌊p / N⌋,   index = π_{seed, e}(p mod N)                              (1)

π_{seed, e} is a permutation of the N examples, so every epoch shows each example once; a batch may straddle epochs.
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


def indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
  """The examples of step `step` by equation (1).

  Args:
    seed: seed of the run, >= 0.
    step: which step, >= 0.
    batch_size: number of examples in the global batch, over all hosts.
    num_examples: N, the number of examples in the source.

  Returns:
    [batch_size] int64 in [0, N): the same on every host, machine and call.

  Raises:
    ValueError: an argument is out of range.
  """
  for name, value, least in (
    ("seed", seed, 0), ("step", step, 0), ("batch_size", batch_size, 1), ("num_examples", num_examples, 1)
  ):
    if value < least:
      raise ValueError(f"{name} must be >= {least}, got {value}")
  epoch, first = divmod(int(step) * int(batch_size), int(num_examples))
  epochs = range(epoch, epoch + -(-(first + batch_size) // num_examples))
  return np.concatenate([_permutation(int(seed), e, int(num_examples)) for e in epochs])[first : first + batch_size]


def batch(
  source: Source, seed: int, step: int, batch_size: int, start: int = 0, stop: int | None = None
) -> dict[str, np.ndarray]:
  """Slots [start, stop) of the global batch of a step: all of it by default, a host's share otherwise.

  Args:
    source: where the examples lie.
    seed: seed of the run.
    step: which step.
    batch_size: size of the global batch.
    start: first slot wanted.
    stop: one past the last slot wanted, batch_size by default.

  Returns:
    What source.gather gives ("image", "label"), and "index": [n] int32, the example's index in the source, and
    "slot": [n] int32, its position in the global batch.

  Raises:
    ValueError: not 0 <= start < stop <= batch_size.
  """
  stop = batch_size if stop is None else stop
  if not 0 <= start < stop <= batch_size:
    raise ValueError(f"slots [start, stop) must lie in [0, {batch_size}) and not be empty, got [{start}, {stop})")
  index = indices(seed, step, batch_size, len(source))[start:stop]
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
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  """π_{seed, epoch}, [size] int64, read-only.

  The order of raw Philox words, which numpy keeps the same from version to version; Generator.permutation it may not.
  """
  words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(size)
  order = np.argsort(words, kind="stable").astype(np.int64)
  order.flags.writeable = False
  return order
