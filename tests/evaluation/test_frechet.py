"""Fréchet distance against closed forms and scipy's matrix square root."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from diffusion_jax import evaluation
from diffusion_jax.evaluation import frechet_distance, moments

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"


def random_covariance(rng, d):
  a = rng.standard_normal((d, 2 * d))
  return a @ a.T / d


def test_commuting_covariances():
  """C_i = Q diag(s_i²) Qᵀ  ⇒  d² = |μ_1 − μ_2|² + Σ (s_1 − s_2)²."""
  rng = np.random.default_rng(0)
  q = scipy.stats.ortho_group.rvs(12, random_state=1)
  s1, s2 = rng.uniform(0, 3, (2, 12))
  mu1, mu2 = rng.standard_normal((2, 12))
  got = frechet_distance(mu1, q * s1**2 @ q.T, mu2, q * s2**2 @ q.T)
  assert got == pytest.approx(np.sum((mu1 - mu2) ** 2) + np.sum((s1 - s2) ** 2), rel=1e-12)


def test_two_by_two_that_do_not_commute():
  """Eigenvalues a, b of C_1 C_2: √a + √b = √(a + b + 2√(ab)), so tr (C_1C_2)^½ = √(tr C_1C_2 + 2√det C_1C_2)."""
  c1, c2 = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 0.75]])
  assert not np.allclose(c1 @ c2, c2 @ c1)
  root = np.sqrt(np.trace(c1 @ c2) + 2 * np.sqrt(np.linalg.det(c1) * np.linalg.det(c2)))
  expected = 0.25 + np.trace(c1) + np.trace(c2) - 2 * root
  assert frechet_distance([0.5, 1.0], c1, [0.0, 1.0], c2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [1, 3, 40])
def test_against_scipy_sqrtm_and_symmetric(d):
  rng = np.random.default_rng(d)
  mu1, mu2 = rng.standard_normal((2, d))
  c1, c2 = random_covariance(rng, d), random_covariance(rng, d)
  root = np.trace(scipy.linalg.sqrtm(c1 @ c2)).real
  expected = np.sum((mu1 - mu2) ** 2) + np.trace(c1 + c2) - 2 * root
  got = frechet_distance(mu1, c1, mu2, c2)
  assert isinstance(got, float)
  assert got == pytest.approx(expected, rel=1e-9)
  assert got == pytest.approx(frechet_distance(mu2, c2, mu1, c1), rel=1e-12)


def test_rank_one():
  """C_1 = aaᵀ, C_2 = bbᵀ  ⇒  tr (C_1C_2)^½ = |a·b|."""
  a, b = np.random.default_rng(3).standard_normal((2, 50))
  got = frechet_distance(np.zeros(50), np.outer(a, a), np.zeros(50), np.outer(b, b))
  assert got == pytest.approx(a @ a + b @ b - 2 * abs(a @ b), rel=1e-10)


def test_orthogonal_supports_and_a_point():
  """Where the supports are orthogonal the root vanishes; a point has no covariance at all."""
  q = scipy.stats.ortho_group.rvs(30, random_state=2)
  c1, c2 = q[:, :8] * np.arange(1, 9) @ q[:, :8].T, q[:, 8:20] * 2 @ q[:, 8:20].T
  zero = np.zeros(30)
  assert frechet_distance(zero, c1, zero, c2) == pytest.approx(36 + 24, abs=1e-6)
  assert frechet_distance(zero, c1, zero + 1, np.zeros((30, 30))) == pytest.approx(30 + 36, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
@pytest.mark.parametrize("n, d", [(2, 150), (40, 150), (1000, 30)])
def test_a_set_to_itself_and_moved(n, d, scale):
  features = scale * np.random.default_rng(n).standard_normal((n, d)).astype(np.float32)
  mean, cov = moments(features)
  assert 0 <= frechet_distance(mean, cov, mean, cov) < 1e-6
  shift = np.linspace(-1, 1, d)
  got = frechet_distance(mean, cov, *moments(features.astype(np.float64) + shift))
  assert got == pytest.approx(np.sum(shift**2), rel=1e-6)


@pytest.fixture(scope="module")
def golden():
  """torch-fidelity's features and their distance."""
  with np.load(GOLDEN) as file:
    return file["features_real"], file["features_generated"], float(file["fid"])


def test_golden(golden):
  real, generated, expected = golden
  got = frechet_distance(*moments(real), *moments(generated))
  assert got == pytest.approx(expected, rel=1e-6)  # torch-fidelity takes the means in float32
  assert frechet_distance(*moments(generated), *moments(generated)) < 1e-6


def test_fewer_features_than_dimensions():
  """Ranks 299 and 299 of 512: 0 to itself, and the trace of the root where scipy's would lose it to rounding."""
  rng = np.random.default_rng(6)
  x, y = (rng.standard_normal((300, 512)) * np.geomspace(30, 1e-2, 512)).astype(np.float32), rng.random((300, 512))
  assert frechet_distance(*moments(x), *moments(x)) < 1e-6
  a, b = ((z - z.astype(np.float64).mean(0)) / np.sqrt(299) for z in (x, y))  # C = aᵀa
  root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
  mean = np.sum((x.astype(np.float64).mean(0) - y.mean(0)) ** 2)
  expected = mean + np.sum(a**2) + np.sum(b**2) - 2 * root
  assert frechet_distance(*moments(x), *moments(y)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [20, 400])
def test_covariances_of_float32(n):
  """Their rounding leaves eigenvalues below 0, or above where there should be none."""
  x = np.random.default_rng(n).standard_normal((n, 40)) * np.geomspace(1, 1e-6, 40)
  x = x @ scipy.stats.ortho_group.rvs(40, random_state=n)
  mean, cov = moments(x)
  rough = cov.astype(np.float32)
  assert np.linalg.eigvalsh(rough.astype(np.float64))[0] < 0
  got = frechet_distance(mean, rough, mean + 0.1, cov)
  assert got == pytest.approx(0.4, abs=1e-3)
  assert frechet_distance(mean, rough, mean, rough) < 1e-6


def test_exports():
  assert evaluation.frechet_distance is frechet_distance and evaluation.moments is moments


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite(position, bad):
  arguments = [np.zeros(3), np.eye(3), np.zeros(3), np.eye(3)]
  arguments[position].flat[0] = bad
  with pytest.raises(ValueError, match=("mu1", "cov1", "mu2", "cov2")[position] + " must be finite, got 1 of"):
    frechet_distance(*arguments)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((np.zeros((3, 1)), np.eye(3), np.zeros(3), np.eye(3)), "mu1 must be"),
    ((np.zeros(3), np.eye(2), np.zeros(3), np.eye(3)), "cov1 must have shape"),
    ((np.zeros(3), np.eye(3), np.zeros(4), np.eye(4)), "mu2 must have shape"),
    ((np.zeros(3), np.eye(3), np.zeros(3), np.ones(3)), "cov2 must have shape"),
    ((np.zeros(2), [[1.0, 0.5], [0.0, 1.0]], np.zeros(2), np.eye(2)), "cov1 must be symmetric"),
    ((np.zeros(2), np.eye(2), np.zeros(2), np.diag([1.0, -1.0])), "cov2 must be positive"),
    ((np.zeros(2), np.eye(2), np.zeros(2), -np.eye(2)), "cov2 must be positive"),
  ],
)
def test_bad_matrices(arguments, message):
  with pytest.raises(ValueError, match=message):
    frechet_distance(*arguments)


@pytest.mark.parametrize("features", [np.zeros((1, 4)), np.zeros((0, 4)), np.zeros(4), np.full((3, 2), np.nan)])
def test_bad_features(features):
  with pytest.raises(ValueError, match="features must be"):
    moments(features)
