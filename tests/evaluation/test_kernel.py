"""KID against torch-fidelity's number, its known expectation and the sums written out."""

from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import evaluation
from diffusion_jax.evaluation.kernel import kernel_distance

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"


def golden():
  with np.load(GOLDEN) as file:
    return file["features_real"][:500], file["features_generated"][:500], float(file["kid_first500"])


def test_golden():
  real, fake, expected = golden()
  got = kernel_distance(real, fake, subset_size=500)
  assert got == (pytest.approx(expected, rel=1e-6), 0.0)
  order = np.random.default_rng(0).permutation(500)
  assert kernel_distance(real, fake[order], subset_size=500, seed=7)[0] == pytest.approx(expected, rel=1e-6)
  assert evaluation.kernel_distance is kernel_distance


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_sums_written_out(degree):
  rng = np.random.default_rng(1)
  x, y = rng.standard_normal((2, 6, 4))
  k = lambda a, b: (np.dot(a, b) / 4 + 1) ** degree
  pairs = [(i, j) for i in range(6) for j in range(6)]
  within = np.mean([k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j])
  expected = within - 2 * np.mean([k(x[i], y[j]) for i, j in pairs])
  got = kernel_distance(x, y, subset_size=6, degree=degree)
  assert got == (pytest.approx(expected, rel=1e-12), 0.0)


def test_expectation_for_two_gaussians():
  """x ~ N(a, 1), y ~ N(b, 1) in d dimensions: with degree 3 and g = x·x'/d,

  E (g + 1)³ = 1 + 3·E g + 3·E g² + E g³, where for independent x ~ N(p, I), x' ~ N(q, I), P = |p|², Q = |q|², s = p·q
  E x·x' = s,  E (x·x')² = s² + P + Q + d,  E (x·x')³ = s³ + 3s(P + Q + d + 2).
  """
  d, a, b = 4, np.array([1.0, 0, 0.5, 0]), np.array([0.0, 0.5, 0, 0])

  def mean_kernel(p, q):
    s, size = p @ q, p @ p + q @ q + d
    return 1 + 3 * s / d + 3 * (s**2 + size) / d**2 + (s**3 + 3 * s * (size + 2)) / d**3

  expected = mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
  rng = np.random.default_rng(2)
  draws = [
    kernel_distance(rng.standard_normal((200, d)) + a, rng.standard_normal((200, d)) + b, subset_size=200)[0]
    for _ in range(200)
  ]
  error = np.std(draws) / np.sqrt(200)
  assert np.mean(draws) == pytest.approx(expected, abs=4 * error)
  assert 4 * error < 0.05 * expected


def test_unbiased_at_equality():
  """Equal distributions: values on both sides of 0; the biased estimate's mean is 2·(10.7 − 1.6)/20 = .9."""
  rng = np.random.default_rng(3)
  draws = [kernel_distance(*rng.standard_normal((2, 20, 5)), subset_size=20)[0] for _ in range(300)]
  assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(300) < 0.1
  assert min(draws) < 0 < max(draws)


def test_subsets():
  real, fake, everything = golden()
  mean, std = kernel_distance(real, fake, subsets=50, subset_size=100, seed=1)
  assert std > 0
  assert mean == pytest.approx(everything, abs=5 * std / np.sqrt(50))
  assert kernel_distance(real, fake, subsets=50, subset_size=100, seed=1) == (mean, std)
  assert kernel_distance(real, fake, subsets=50, subset_size=100, seed=2) != (mean, std)
  assert kernel_distance(real, fake, subsets=1, subset_size=100)[1] == 0


def test_subsets_repeat_no_image():
  """A subset of all of one set is that set: only the draw of the other varies, and not where its images are equal."""
  rng = np.random.default_rng(4)
  real, fake = rng.standard_normal((8, 3)), np.tile(rng.standard_normal(3), (12, 1))
  expected = kernel_distance(real, fake[:8], subset_size=8)[0]
  assert kernel_distance(real, fake, subsets=5, subset_size=8) == pytest.approx((expected, 0), abs=1e-12)


def test_float32_features_far_from_0_count_in_float64():
  real, fake = (np.random.default_rng(5).standard_normal((2, 30, 4)) + 300).astype(np.float32)
  got = kernel_distance(real, fake, subset_size=30)[0]
  assert got == kernel_distance(real.astype(np.float64), fake.astype(np.float64), subset_size=30)[0]


@pytest.mark.parametrize(
  "real, fake, options, message",
  [
    (np.zeros((5, 2)), np.zeros((5, 3)), {"subset_size": 5}, r"\[N, d\] and \[M, d\]"),
    (np.zeros(5), np.zeros(5), {"subset_size": 5}, r"\[N, d\] and \[M, d\]"),
    (np.zeros((900, 2)), np.zeros((1200, 2)), {}, r"subset_size must be in \[2, 900\].*got 1000"),
    (np.zeros((5, 2)), np.zeros((5, 2)), {"subset_size": 1}, "subset_size"),
    (np.zeros((5, 2)), np.zeros((5, 2)), {"subset_size": 4, "subsets": 0}, "subsets must be >= 1"),
    (np.zeros((5, 2)), np.zeros((5, 2)), {"subset_size": 4, "degree": 0}, "degree must be >= 1"),
    (np.zeros((5, 2)), np.full((5, 2), np.nan), {"subset_size": 4}, "fake must be finite, got 5 of 5 rows"),
  ],
)
def test_bad_input(real, fake, options, message):
  with pytest.raises(ValueError, match=message):
    kernel_distance(real, fake, **options)
