"""Nearest neighbours and the memorised share, against brute force and cases done by hand."""

import numpy as np
import pytest
import scipy.spatial.distance

from diffusion_jax.data import sources
from diffusion_jax.evaluation import memorisation, neighbours


def line(*values):
  """Images of one pixel."""
  return np.array(values, np.float32).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("block", [1, 100, 1 << 22])
def test_nearest_is_brute_force(monkeypatch, block):
  monkeypatch.setattr(neighbours, "BLOCK", block)
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((37, 4, 4, 3)), rng.standard_normal((23, 4, 4, 3))
  every = scipy.spatial.distance.cdist(a.reshape(37, -1), b.reshape(23, -1))
  distances, indices = memorisation.nearest(a, b)
  np.testing.assert_array_equal(indices, every.argmin(1))
  np.testing.assert_allclose(distances, every.min(1), rtol=1e-12)


def test_nearest_keeps_small_distances():
  b = 1000 + np.random.default_rng(1).standard_normal((5, 8, 8, 1))
  a = b[[3, 1]].copy()
  a[1, 0, 0, 0] += 1e-7
  distances, indices = memorisation.nearest(a, b)
  assert indices.tolist() == [3, 1] and distances[0] == 0
  assert distances[1] == pytest.approx(1e-7, rel=1e-5)


def test_nearest_does_not_wrap_bytes():
  distances, indices = memorisation.nearest(np.array([[0]], np.uint8), np.array([[255], [100]], np.uint8))
  assert distances.tolist() == [100.0] and indices.tolist() == [1]


def test_share_by_hand():
  train = line(0, 1, 10, 14)  # spacings to the nearest other: 1, 1, 4, 4
  assert memorisation.memorised_share(line(0.4), train) == 1.0
  assert memorisation.memorised_share(line(-0.9, -1.1), train) == 0.5
  assert memorisation.memorised_share(line(-1, 2), train) == 0.0  # as far as the neighbour is not closer
  assert memorisation.memorised_share(line(12.5, 17.9, 18.1, 7), train) == 0.75
  assert memorisation.memorised_share(train, train) == 1.0
  assert memorisation.memorised_share(line(0, 1), line(0, 0, 5)) == 0.0  # a duplicate has no space around it


def test_heldout_digits_are_the_reference():
  test, train = (sources.load("digits", split) for split in ("test", "train"))
  a, b = (s.gather(np.arange(len(s)))["image"].reshape(len(s), -1) for s in (test, train))
  across, within = scipy.spatial.distance.cdist(a, b), scipy.spatial.distance.cdist(b, b)
  np.fill_diagonal(within, np.inf)
  expected = np.mean(across.min(1) < within.min(1)[across.argmin(1)])
  assert memorisation.heldout_share() == pytest.approx(expected)
  assert expected == pytest.approx(0.404, abs=0.001)  # the figure in the docstring


@pytest.mark.parametrize(
  "a, b, message",
  [
    (np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 3)), "one shape"),
    (np.zeros((0, 8, 8, 1)), np.zeros((2, 8, 8, 1)), "one shape"),
    (np.zeros(3), np.zeros(3), "one shape"),
    (np.zeros((2, 4), np.uint8), np.zeros((2, 4)), "same scale"),
    (np.full((2, 4), np.nan), np.zeros((2, 4)), "images must be finite"),
    (np.zeros((2, 4)), np.zeros((1, 4)), "at least 2"),
  ],
)
def test_bad_images(a, b, message):
  with pytest.raises(ValueError, match=message):
    memorisation.memorised_share(a, b)
