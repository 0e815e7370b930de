"""Fréchet distance between Gaussians (Dowson and Landau 1982), in float64.

    d² = |μ_1 − μ_2|² + tr C_1 + tr C_2 − 2·tr (C_1 C_2)^½                                     (1)
    C_i = L_i L_iᵀ   ⇒   tr (C_1 C_2)^½ = ‖L_1ᵀ L_2‖_*, the sum of the singular values            (2)

Equation (2) takes no square root of a rounding error, as a root of the product C_1 C_2 would: with L_i from the
eigenvectors of C_i whose eigenvalues stand above rounding, covariances of any rank give full precision.
"""

import numpy as np


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


def moments(features) -> tuple[np.ndarray, np.ndarray]:
  """Mean [d] and covariance [d, d] (divisor N − 1) of `features` [N, d], in float64.

  Raises:
    ValueError: features are not [N, d] with N >= 2, or not all finite.
  """
  features = _finite("features", features)
  if features.ndim != 2 or len(features) < 2:
    raise ValueError(f"features must be [N, d] with N >= 2, got shape {list(features.shape)}")
  mean = features.mean(axis=0)
  centred = features - mean
  return mean, centred.T @ centred / (len(features) - 1)


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
  values, vectors = np.linalg.eigh((cov + cov.T) / 2)
  if values[0] < -1e-4 * max(values[-1], 0):
    raise ValueError(f"{name} must be positive semidefinite, got an eigenvalue {values[0]:.3g}")
  kept = values > len(cov) * np.finfo(np.float64).eps * values[-1]
  return vectors[:, kept] * np.sqrt(values[kept])
