"""Kernel distance (KID of Bińkowski et al. 2018): unbiased squared MMD with a polynomial kernel, in float64.

    k(x, y) = (x·y/d + 1)^degree                                                                         (1)
    MMD² = Σ_{i≠j} [k(x_i, x_j) + k(y_i, y_j)] / (m(m − 1)) − 2·Σ_{ij} k(x_i, y_j) / m²                  (2)

where x and y are m features [d] of each set: (2) costs m², so large sets are compared by subsets.
"""

import numpy as np


def kernel_distance(
  real, fake, subsets: int = 100, subset_size: int = 1000, degree: int = 3, seed: int = 0
) -> tuple[float, float]:
  """Equation (2), averaged over subsets; its expectation is 0 for equal distributions, so values may be below 0.

  Args:
    real: features [N, d].
    fake: features [M, d].
    subsets: how many are drawn, each without replacement; where a subset takes all of both sets there is only one.
    subset_size: m of equation (2), from 2 to the smaller of N and M.
    degree: of the kernel.
    seed: of the draws.

  Returns:
    Mean over the subsets, and their standard deviation (divisor `subsets`).

  Raises:
    ValueError: wrong shapes or numbers, or values that are not finite.
  """
  real, fake = np.asarray(real), np.asarray(fake)
  if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or not real.shape[1]:
    raise ValueError(f"real and fake must be [N, d] and [M, d], got {list(real.shape)} and {list(fake.shape)}")
  for name, x in (("real", real), ("fake", fake)):
    bad = len(x) - np.count_nonzero(np.isfinite(x).all(axis=1))
    if bad:
      raise ValueError(f"{name} must be finite, got {bad} of {len(x)} rows that are not")
  if not 2 <= subset_size <= min(len(real), len(fake)):
    wanted = f"in [2, {min(len(real), len(fake))}], the size of the smaller set"
    raise ValueError(f"subset_size must be {wanted}, got {subset_size}")
  for name, value in (("subsets", subsets), ("degree", degree)):
    if value < 1:
      raise ValueError(f"{name} must be >= 1, got {value}")
  if len(real) == len(fake) == subset_size:
    return float(_squared_mmd(real, fake, degree)), 0.0
  rng = np.random.Generator(np.random.Philox(seed))
  draw = lambda x: x[rng.choice(len(x), subset_size, replace=False)]
  found = [_squared_mmd(draw(real), draw(fake), degree) for _ in range(subsets)]
  return float(np.mean(found)), float(np.std(found))


def _squared_mmd(x, y, degree: int):
  """Equation (2) for x and y [m, d]."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  m = len(x)
  kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** degree
  within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
  return within / (m * (m - 1)) - 2 * kernel(x, y).mean()
