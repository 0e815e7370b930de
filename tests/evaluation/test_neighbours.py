"""Precision, recall and k-th neighbours against torch-fidelity's numbers and brute force in float64."""

from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import evaluation
from diffusion_jax.evaluation import neighbours
from diffusion_jax.evaluation.neighbours import kth_nearest, precision_recall

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"


def squares(a, b):
  return np.sum(np.square(a.astype(np.float64)[:, None] - b), axis=-1)


def brute(real, fake, k):
  def share(points, centres):
    radii = np.sort(squares(centres, centres), axis=1)[:, k]  # the first is the point itself
    return np.mean((squares(points, centres) <= radii).any(axis=1))

  return share(fake, real), share(real, fake)


def gaussians(n, m, d, shift=0.0):
  rng = np.random.default_rng(n + d)
  return rng.standard_normal((n, d)).astype(np.float32), rng.standard_normal((m, d)).astype(np.float32) * 1.1 + shift


def lattice(n, m, d):
  """Distances with many ties, and points that occur often."""
  rng = np.random.default_rng(d)
  return rng.integers(0, 3, (n, d)) / 3, rng.integers(0, 4, (m, d)) / 3


def clusters(n, m, d):
  """Points 1e-3 apart in clusters 1e4 apart: float32 cannot tell a neighbour's distance from 0."""
  rng = np.random.default_rng(5)
  homes = 1e4 * rng.standard_normal((4, d))
  draw = lambda count, spread: homes[rng.integers(4, size=count)] + spread * rng.standard_normal((count, d))
  return draw(n, 1e-3), draw(m, 1.2e-3)


CASES = {
  "gaussians": gaussians(101, 83, 6),
  "wide": gaussians(60, 50, 300, 0.05),
  "apart": gaussians(90, 90, 4, 0.3),
  "lattice": lattice(90, 120, 3),
  "line": lattice(30, 40, 1),
  "clusters": clusters(80, 90, 5),
  "one scale down": tuple(1e-25 * x.astype(np.float64) for x in gaussians(70, 70, 3)),
  "one scale up": tuple(1e25 * x.astype(np.float64) for x in gaussians(70, 70, 3)),
  "moved": tuple(x.astype(np.float64) + 1e7 for x in gaussians(70, 70, 3)),
}


def test_golden():
  with np.load(GOLDEN) as file:
    got = precision_recall(file["features_real"], file["features_generated"], k=3)
    assert all(isinstance(x, float) for x in got)
    assert got == pytest.approx((float(file["precision"]), float(file["recall"])), rel=1e-6)
  assert evaluation.precision_recall is precision_recall


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("name", CASES)
def test_precision_recall_is_brute_force(name, k):
  real, fake = CASES[name]
  expected = brute(real, fake, k)
  assert precision_recall(real, fake, k) == expected
  assert precision_recall(fake, real, k) == expected[::-1]


def test_the_cases_tell_apart():
  """Neither all nor nothing is covered in the cases above, or they would not test much."""
  for real, fake in CASES.values():
    assert 0 < brute(real, fake, 1)[0] < 1


def test_float32_would_not_do():
  """Without the bound, decisions in float32 go wrong: the cases are hard enough."""
  real, fake = (x.astype(np.float32) for x in CASES["clusters"])
  product = lambda a, b: np.sum(a * a, 1)[:, None] + np.sum(b * b, 1) - 2 * a @ b.T
  radii = np.sort(product(real, real), axis=1)[:, 1]
  assert abs(np.mean((product(fake, real) <= radii).any(1)) - brute(*CASES["clusters"], 1)[0]) > 0.05


@pytest.mark.parametrize("block", [1, 500, 4000])
def test_blocks(monkeypatch, block):
  """Rows that fill neither the blocks nor the eight devices; pairs settled a few at a time."""
  real, fake = CASES["gaussians"]
  expected = brute(real, fake, 3)
  monkeypatch.setattr(neighbours, "BLOCK", block)
  monkeypatch.setattr(neighbours, "PAIRS", 10)
  assert precision_recall(real, fake, 3) == expected


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_what_is_settled_in_float64_is_little(offset):
  """Of well spread points hardly more than the k nearest of each, wherever they lie."""
  x = gaussians(400, 1, 40)[0].astype(np.float64) + offset
  (a, b), _ = neighbours._prepare(x, x)
  skip = np.arange(400, dtype=np.int32)
  kept = sum(pairs.sum() for _, _, (pairs,) in neighbours._blocks(lambda *s: neighbours._near(3, *s), (*a, skip), b))
  assert 1200 <= kept <= 1260


@pytest.mark.parametrize("d", [3, 700])
def test_the_bound_holds(d):
  rng = np.random.default_rng(d)
  x = rng.exponential(size=(64, d)) * 10.0 ** rng.integers(-6, 3, (64, 1))
  y = np.concatenate([x[:32] + 1e-9, rng.standard_normal((32, d))])
  (a, b), scale = neighbours._prepare(x, y)
  got, slack = neighbours._squares(*a, *b)
  error = np.abs(np.asarray(got, np.float64) - squares(x / scale, y / scale))
  assert (error <= np.asarray(slack)).all()
  assert error.max() > 0


def test_the_bound_holds_below_float32():
  """Points whose squares are too small for a float32, among others that are not."""
  tiny = 1e-19 * np.random.default_rng(0).uniform(0.2, 2, (20, 3))
  x = np.concatenate([tiny, -tiny, np.ones((1, 3)), -np.ones((1, 3))])
  (a, b), scale = neighbours._prepare(x, x)
  assert scale == 1
  got, slack = neighbours._squares(*a, *b)
  assert (np.abs(np.asarray(got, np.float64) - squares(x, x)) <= np.asarray(slack)).all()


def test_by_hand():
  real, fake = np.array([[0.0], [1.0], [3.0]]), np.array([[4.0], [5.1], [9.0]])
  # radii, k = 1: real 1, 1, 2; fake 1.1, 1.1, 3.9
  assert precision_recall(real, fake, 1) == pytest.approx((1 / 3, 1 / 3))
  assert precision_recall(real, np.array([[5.0], [5.1], [9.0]]), 1)[0] == pytest.approx(1 / 3)  # on the sphere


def test_a_set_and_itself_and_one_far_away():
  real, _ = CASES["gaussians"]
  assert precision_recall(real, real) == (1, 1)
  assert precision_recall(real, real + 100) == (0, 0)


def test_duplicates_have_no_ball():
  """k + 1 equal points cover only themselves."""
  real = np.zeros((4, 2))
  assert precision_recall(real, np.array([[0.0, 0.0], [1e-9, 0], [1, 1], [0, 0]]), 3) == (0.5, 1)


def test_a_collapsed_generator_costs_little():
  """Images that are all the same, but one: hardly any pairs, and the shares of all of them."""
  settled = []
  exact = neighbours._exact

  def counted(a, rows, b, columns):
    settled.append(len(rows))
    return exact(a, rows, b, columns)

  real = np.random.default_rng(0).standard_normal((50, 3))
  fake = np.concatenate([np.tile(real[7], (500, 1)), [[99.0, 0, 0]]])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(neighbours, "_exact", counted)
    got = precision_recall(real, fake, 3)
  assert got == brute(real, fake, 3)
  assert got[0] == 500 / 501 and 0 < got[1] < 1  # the last image's ball reaches some
  assert sum(settled) < 1000


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name", CASES)
def test_kth_nearest_is_brute_force(name, k):
  a, b = CASES[name]
  every = squares(a, b)
  got, indices = kth_nearest(a, b, k)
  np.testing.assert_array_equal(got, np.sort(every, axis=1)[:, k - 1])
  np.testing.assert_array_equal(indices, np.argsort(every, axis=1, kind="stable")[:, k - 1])  # the first of equal ones


def test_kth_nearest_skips():
  _, b = CASES["lattice"]
  every = squares(b, b)
  np.fill_diagonal(every, np.inf)
  got, indices = kth_nearest(b, b, skip=np.arange(len(b)))
  np.testing.assert_array_equal(got, every.min(1))
  np.testing.assert_array_equal(indices, every.argmin(1))


@pytest.mark.parametrize(
  "real, fake, k, message",
  [
    (np.zeros((5, 2)), np.zeros((5, 3)), 1, r"\[N, d\] and \[M, d\]"),
    (np.zeros(5), np.zeros(5), 1, r"\[N, d\] and \[M, d\]"),
    (np.zeros((5, 0)), np.zeros((5, 0)), 1, r"\[N, d\] and \[M, d\]"),
    (np.zeros((5, 2)), np.zeros((3, 2)), 3, "below the 3 points"),
    (np.zeros((0, 2)), np.zeros((3, 2)), 1, "below the 0 points"),
    (np.zeros((5, 2)), np.zeros((5, 2)), 0, "k must be >= 1"),
    (np.zeros((5, 2)), np.array([[0, np.nan], [0, 0]]), 1, "fake must be finite, got 1 of 2 rows"),
    (np.full((5, 2), np.inf), np.zeros((5, 2)), 1, "real must be finite, got 5 of 5 rows"),
  ],
)
def test_bad_input(real, fake, k, message):
  with pytest.raises(ValueError, match=message):
    precision_recall(real, fake, k)
