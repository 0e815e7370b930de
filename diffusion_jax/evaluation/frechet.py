"""Fréchet distance between Gaussians (Dowson and Landau 1982), in float64.

    d² = |μ_1 − μ_2|² + tr C_1 + tr C_2 − 2·tr (C_1 C_2)^½                                     (1)
    C_i = L_i L_iᵀ   ⇒   tr (C_1 C_2)^½ = ‖L_1ᵀ L_2‖_*, the sum of the singular values            (2)

Equation (2) takes no square root of a rounding error, as a root of the product C_1 C_2 would: with L_i from a pivoted
Cholesky decomposition that ends at the rank of C_i, covariances of any rank give full precision.
"""

import numpy as np
from scipy.linalg import lapack

from diffusion_jax.evaluation.streaming import moments as moments


def frechet_distance(mu1, cov1, mu2, cov2) -> float:
  """The distance d² of equation (1): FID when the features are Inception's.

  Args:
    mu1: mean [d].
    cov1: covariance [d, d], symmetric and positive semidefinite, of any rank.
    mu2: the other mean [d].
    cov2: the other covariance [d, d].

  Returns:
    d² >= 0, in squared units of the features.

  Raises:
    ValueError: wrong shapes, values that are not finite, or a matrix that is no covariance.
  """
  mu1, mu2 = _finite("mu1", mu1), _finite("mu2", mu2)
  cov1, cov2 = _finite("cov1", cov1), _finite("cov2", cov2)
  if mu1.ndim != 1 or mu1.size == 0:
    raise ValueError(f"mu1 must be [d], got shape {list(mu1.shape)}")
  d = len(mu1)
  for name, value, shape in (("cov1", cov1, (d, d)), ("mu2", mu2, (d,)), ("cov2", cov2, (d, d))):
    if value.shape != shape:
      raise ValueError(f"{name} must have shape {list(shape)} to match mu1 [{d}], got {list(value.shape)}")
  root_trace = np.linalg.svd(_factor("cov1", cov1).T @ _factor("cov2", cov2), compute_uv=False).sum()
  distance = np.sum((mu1 - mu2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * root_trace
  return max(float(distance), 0.0)  # rounding may leave −1e-13


def _finite(name: str, value) -> np.ndarray:
  value = np.asarray(value, np.float64)
  bad = value.size - np.count_nonzero(np.isfinite(value))
  if bad:
    raise ValueError(f"{name} must be finite, got {bad} of {value.size} values that are not")
  return value


def _factor(name: str, cov: np.ndarray) -> np.ndarray:
  """L [d, rank] with L Lᵀ = cov."""
  scale = np.abs(cov).max()
  if np.abs(cov - cov.T).max() > 1e-4 * scale:  # loose enough for a covariance taken in float32
    raise ValueError(f"{name} must be symmetric, got entries that differ by {np.abs(cov - cov.T).max():.3g}")
  cov = (cov + cov.T) / 2
  rounding = len(cov) * np.finfo(np.float64).eps
  packed, pivots, rank, _ = lapack.dpstrf(cov, tol=rounding * np.diag(cov).max(), lower=1)
  factor = np.empty((len(cov), rank))
  factor[pivots - 1] = np.tril(packed)[:, :rank]
  if np.abs(factor @ factor.T - cov).max() <= 2 * rounding * scale:
    return factor
  values, vectors = np.linalg.eigh(cov)  # a covariance with larger errors, as from float32
  if values[0] < -1e-4 * max(values[-1], 0):
    raise ValueError(f"{name} must be positive semidefinite, got an eigenvalue {values[0]:.3g}")
  kept = values > rounding * values[-1]
  return vectors[:, kept] * np.sqrt(values[kept])
