"""Mean and covariance of features that arrive in parts, in float64.

Two parts with counts n_i, means μ_i and scatters S_i = Σ (x − μ_i)(x − μ_i)ᵀ join without cancellation (Chan, Golub
and LeVeque 1979), δ = μ_2 − μ_1, n = n_1 + n_2:

    μ = μ_1 + δ·n_2/n,   S = S_1 + S_2 + δδᵀ·n_1·n_2/n                                                    (1)
"""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
  """What is known of the features seen so far. Parts join in any order and grouping, to rounding.

  Attributes:
    count: number of features seen.
    mean: [d] float64; 0 where nothing was seen.
    scatter: [d, d] float64, S of equation (1).
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def empty(cls, d: int) -> "Moments":
    """Moments of no features of width d."""
    return cls(0, np.zeros(d), np.zeros((d, d)))

  def add(self, features) -> "Moments":
    """With `features` [n, d], n >= 0, seen too.

    Raises:
      ValueError: another width, or rows that are not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or features.shape[1] != len(self.mean):
      raise ValueError(f"features must be [n, {len(self.mean)}], got shape {list(features.shape)}")
    bad = len(features) - np.count_nonzero(np.isfinite(features).all(axis=1))
    if bad:
      raise ValueError(f"features must be finite, got {bad} of {len(features)} rows that are not")
    if not len(features):
      return self
    mean = features.mean(axis=0)
    centred = features - mean
    return self.merge(Moments(len(features), mean, centred.T @ centred))

  def merge(self, other: "Moments") -> "Moments":
    """Of both together, by equation (1).

    Raises:
      ValueError: another width.
    """
    if other.mean.shape != self.mean.shape:
      raise ValueError(f"moments to merge must have width {len(self.mean)}, got {len(other.mean)}")
    if not self.count or not other.count:
      return self if self.count else other
    count = self.count + other.count
    delta = other.mean - self.mean
    mean = self.mean + delta * (other.count / count)
    between = np.outer(delta, delta) * (self.count * other.count / count)
    return Moments(count, mean, self.scatter + other.scatter + between)

  def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d], divisor N − 1.

    Raises:
      ValueError: fewer than two features were seen.
    """
    if self.count < 2:
      raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
    return self.mean, self.scatter / (self.count - 1)


def moments(features) -> tuple[np.ndarray, np.ndarray]:
  """Mean [d] and covariance [d, d] (divisor N − 1) of `features` [N, d], in float64.

  Raises:
    ValueError: features are not [N, d] with N >= 2, or not all finite.
  """
  shape = np.shape(features)
  if len(shape) != 2 or shape[0] < 2:
    raise ValueError(f"features must be [N, d] with N >= 2, got shape {list(shape)}")
  return Moments.empty(shape[1]).add(features).mean_and_covariance()
