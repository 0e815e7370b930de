"""Streaming moments: parts in any grouping are one pass, without cancellation."""

import functools

import numpy as np
import pytest

from diffusion_jax import evaluation
from diffusion_jax.evaluation import Moments, frechet
from diffusion_jax.evaluation.streaming import moments


def features(n=100, d=7, offset=1000.0):
  """Float32, with a mean far above the spread: sums of squares would lose 6 digits."""
  x = np.random.default_rng(n).standard_normal((n, d)) * np.arange(1, d + 1) + offset
  return x.astype(np.float32)


def same(got: Moments, expected: Moments):
  assert got.count == expected.count
  np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-12)
  spread = np.sqrt(np.diag(expected.scatter))
  assert np.max(np.abs(got.scatter - expected.scatter) / np.outer(spread, spread)) < 1e-12


SHARDS = {1: [0, 100], 3: [0, 61, 62, 100], 8: [0, 1, 1, 5, 20, 50, 51, 97, 100]}  # one of them empty


@pytest.mark.parametrize("cuts", SHARDS.values(), ids=SHARDS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_shards_in_any_grouping_are_one_pass(cuts, offset):
  x = features(offset=offset)
  whole = Moments.empty(7).add(x)
  parts = [x[i:j] for i, j in zip(cuts, cuts[1:])]
  same(functools.reduce(Moments.add, parts, Moments.empty(7)), whole)
  shards = [Moments.empty(7).add(part) for part in parts]
  same(functools.reduce(Moments.merge, shards), whole)
  same(functools.reduce(Moments.merge, shards[::-1]), whole)
  while len(shards) > 1:  # a tree, as hosts would join theirs
    shards = [functools.reduce(Moments.merge, shards[i : i + 2]) for i in range(0, len(shards), 2)]
  same(shards[0], whole)


def test_whole_is_numpy():
  x = features()
  mean, cov = Moments.empty(7).add(x).mean_and_covariance()
  assert mean.dtype == cov.dtype == np.float64
  np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-14)
  np.testing.assert_allclose(cov, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10)


def test_one_at_a_time():
  x = features(40)
  got = functools.reduce(Moments.add, x[:, None], Moments.empty(7))
  same(got, Moments.empty(7).add(x))


def test_batches_of_any_size_count_each_image_once():
  x = features(30)
  expected = Moments.empty(7).add(x)
  for batch in (4, 7, 29, 30, 31):  # all but one leave a partial last batch
    got = functools.reduce(Moments.add, [x[i : i + batch] for i in range(0, 30, batch)], Moments.empty(7))
    same(got, expected)


def test_an_addition_leaves_what_was():
  first = Moments.empty(7).add(features(10))
  before = first.mean.copy(), first.scatter.copy()
  first.add(features(20))
  np.testing.assert_array_equal(first.mean, before[0])
  np.testing.assert_array_equal(first.scatter, before[1])
  assert first.count == 10
  same(first.add(np.zeros((0, 7))), first)


def test_of_features_and_exports():
  np.testing.assert_array_equal(moments([[0.0, 1.0], [2.0, 1.0]])[1], [[2.0, 0.0], [0.0, 0.0]])
  assert evaluation.moments is moments is frechet.moments


@pytest.mark.parametrize("seen", [0, 1])
def test_too_few(seen):
  with pytest.raises(ValueError, match=f"at least 2 features, got {seen}"):
    Moments.empty(3).add(np.zeros((seen, 3))).mean_and_covariance()


@pytest.mark.parametrize("shape", [(4, 2), (4,), (4, 3, 1), ()])
def test_other_widths(shape):
  with pytest.raises(ValueError, match=r"features must be \[n, 3\]"):
    Moments.empty(3).add(np.zeros(shape))


def test_merging_other_widths():
  with pytest.raises(ValueError, match="width 3, got 2"):
    Moments.empty(3).merge(Moments.empty(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_rows_are_counted(bad):
  x = features(10)
  x[2, :3] = x[5, 1] = bad
  with pytest.raises(ValueError, match="finite, got 2 of 10 rows"):
    Moments.empty(7).add(x)
