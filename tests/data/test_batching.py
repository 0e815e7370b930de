"""Batching: epochs, purity, host shares, prefetching."""

import itertools
import threading
import time

import numpy as np
import pytest

from diffusion_jax.data import batching, sources


@pytest.mark.parametrize("batch_size, num_examples", [(4, 10), (10, 10), (7, 10), (23, 10), (1, 1), (5, 1)])
def test_every_epoch_shows_every_example_once(batch_size, num_examples):
  steps = -(-6 * num_examples // batch_size)
  stream = np.concatenate([batching.indices(3, step, batch_size, num_examples) for step in range(steps)])
  epochs = stream[: 6 * num_examples].reshape(6, num_examples)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_examples), (6, 1)))


def test_batch_size_does_not_change_the_order():
  stream = [np.concatenate([batching.indices(1, k, b, 11) for k in range(24 // b)]) for b in (1, 4, 8, 24)]
  for other in stream[1:]:
    np.testing.assert_array_equal(stream[0], other)


def test_pure_whatever_was_asked_before():
  steps = np.random.default_rng(0).permutation(40)
  first = {step: batching.indices(5, step, 8, 13) for step in steps}
  batching._permutations.cache_clear()
  for step in reversed(steps):
    np.testing.assert_array_equal(batching.indices(5, step, 8, 13), first[step])
  first[0][:] = -1  # a caller's own array: writing to it changes nothing
  assert batching.indices(5, 0, 8, 13).min() >= 0


@pytest.mark.parametrize("batch_size, num_examples, slices", [(8, 37, 4), (4, 40, 4), (24, 17, 2), (8, 8, 8)])
def test_slices_draw_from_their_own_examples_each_once_an_epoch(batch_size, num_examples, slices):
  drawn = np.stack([batching.indices(3, step, batch_size, num_examples, slices) for step in range(60)])
  for s, column in enumerate(np.split(drawn, slices, axis=1)):
    own = np.arange(s, num_examples, slices)
    epochs = column.reshape(-1)[: column.size // len(own) * len(own)].reshape(-1, len(own))
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(own, (len(epochs), 1)))
  if slices > 1:
    orders = [column[: num_examples // slices, 0] // slices for column in np.split(drawn, slices, axis=1)]
    assert not any(np.array_equal(orders[0], other) for other in orders[1:]) or num_examples == slices


def test_fixed_for_ever():
  assert batching.indices(0, 0, 8, 10).tolist() == [0, 8, 9, 3, 7, 5, 1, 2]
  assert batching.indices(7, 3, 8, 10).tolist() == [8, 4, 9, 2, 6, 7, 7, 1]
  assert batching.indices(0, 0, 8, 10).dtype == np.int64
  far = batching.indices(0, 10**12, 8, 10)  # no state to run through, no overflow
  assert sorted(np.concatenate([far, batching.indices(0, 10**12 + 1, 8, 10)])[:10]) == list(range(10))


def test_permutations_are_uniform_and_differ_by_seed():
  count = {p: 0 for p in itertools.permutations(range(4))}
  for epoch in range(2400):
    count[tuple(batching.indices(11, epoch, 4, 4).tolist())] += 1
  assert sum((c - 100) ** 2 / 100 for c in count.values()) < 49.7  # chi-square, 23 degrees of freedom, p = .001
  assert not np.array_equal(batching.indices(0, 0, 100, 100), batching.indices(1, 0, 100, 100))


def test_host_shares_make_up_the_batch():
  source = sources.load("digits", "test")
  whole = batching.batch(source, 2, 17, 24)
  np.testing.assert_array_equal(whole["index"], batching.indices(2, 17, 24, 297))
  np.testing.assert_array_equal(whole["slot"], np.arange(24))
  assert whole["index"].dtype == whole["slot"].dtype == np.int32
  everything = source.gather(np.arange(297))
  for name in ("image", "label"):
    np.testing.assert_array_equal(whole[name], everything[name][whole["index"]])
  for edges in ([0, 12, 24], [0, 3, 4, 24], range(0, 25, 8)):
    parts = [batching.batch(source, 2, 17, 24, a, b) for a, b in itertools.pairwise(edges)]
    for name, value in whole.items():
      np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


def test_a_host_reads_only_its_share():
  class Counting:
    name, split, image_shape, num_classes = "counting", "train", (1, 1, 1), 0
    read = []

    def __len__(self):
      return 50

    def gather(self, indices):
      self.read.extend(indices.tolist())
      return {"image": np.zeros((len(indices), 1, 1, 1), np.uint8), "label": np.zeros(len(indices), np.int32)}

  got = batching.batch(Counting(), 0, 0, 16, 4, 8)
  assert Counting.read == got["index"].tolist() == batching.indices(0, 0, 16, 50)[4:8].tolist()
  assert got["slot"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
  "arguments, name",
  [((-1, 0, 4, 9), "seed"), ((0, -1, 4, 9), "step"), ((0, 0, 0, 9), "batch_size"), ((0, 0, 4, 0), "num_examples")],
)
def test_bad_arguments(arguments, name):
  with pytest.raises(ValueError, match=f"{name} must be >="):
    batching.indices(*arguments)


@pytest.mark.parametrize("start, stop", [(-1, 4), (4, 4), (5, 4), (0, 9)])
def test_bad_share(start, stop):
  with pytest.raises(ValueError, match="slots"):
    batching.batch(sources.load("digits", "test"), 0, 0, 8, start, stop)


def workers():
  return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_prefetch_keeps_order_and_ends_its_thread(depth):
  main = threading.get_ident()
  got = list(batching.prefetch(lambda step: (step, threading.get_ident()), range(3, 20), depth))
  assert [step for step, _ in got] == list(range(3, 20))
  assert main not in {thread for _, thread in got}
  assert not workers()


def test_prefetch_runs_ahead_by_depth_only():
  made, enough = [], threading.Event()

  def make(step):
    made.append(step)
    if step == 3:
      enough.set()
    return step

  batches = batching.prefetch(make, itertools.count(), depth=3)
  assert next(batches) == 0
  assert enough.wait(10)  # 1, 2, 3 are made unasked
  time.sleep(0.05)
  assert made == [0, 1, 2, 3]
  batches.close()
  assert not workers()


def test_prefetch_raises_what_make_batch_raises_at_its_step():
  def make(step):
    if step == 2:
      raise OSError("unreadable")
    return step

  batches, got = batching.prefetch(make, range(5), depth=4), []
  with pytest.raises(OSError, match="unreadable"):
    for value in batches:
      got.append(value)
  assert got == [0, 1]
  assert not workers()


def test_prefetch_checks_depth_at_once():
  with pytest.raises(ValueError, match="depth"):
    batching.prefetch(lambda step: step, range(3), depth=0)
