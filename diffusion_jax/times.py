"""Grids of times for sampling, laws of times for training.

Grids are float64 NumPy arrays [n+1], decreasing, last value 0; they are made on the host, so that a sampler compiled
for one length takes any of them. Noise levels (EDM's σ = σ(t)/α(t)) become a process's t by `process.inverse`.

    edm    (σ_max^(1/ρ) + i/(n−1)·(σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ                        (1)
    vp     √(exp(½β_d t² + β_min t) − 1),  t = 1 + i/(n−1)·(ε_s − 1)                    (2)
    ve     σ_max·(σ_min/σ_max)^(i/(n−1))                                                (3)
    iddpm  u_⌊j_0 + (M−1−j_0)/(n−1)·i + ½⌋                                              (4)

Laws are functions (key, batch) -> [batch] that can be traced. Source: Karras et al. 2022, Table 1.
"""

import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Key

Law = Callable[[Key, int], Array]

# Smallest noise level of DPDM's sampler by number of evaluations (its Table 7); 10 and more: 1e-4.
DPDM_LEAST = 4  # the fewest that it lists
_DPDM_SIGMA_MIN = {4: 0.3, 5: 0.2, 6: 0.1, 7: 0.015, 8: 0.0035, 9: 0.00055}


def _check_range(sigma_min, sigma_max):
  if not 0 < sigma_min <= sigma_max < np.inf:
    raise ValueError(f"noise levels must satisfy 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}")


def _fractions(n: int) -> np.ndarray:
  """i/(n−1) for i = 0..n−1; a grid of one level has the first only."""
  if n != int(n) or n < 1:
    raise ValueError(f"a grid needs a whole number of steps >= 1, got {n}")
  return np.arange(n) / max(n - 1, 1)


def _ended(levels: np.ndarray) -> np.ndarray:
  return np.append(levels, 0.0)


def edm_grid(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> np.ndarray:
  """Noise levels of equation (1), [n+1]; n = 1 is the one level σ_max."""
  _check_range(sigma_min, sigma_max)
  if not rho > 0:
    raise ValueError(f"rho must be positive, got {rho}")
  top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
  return _ended((top + _fractions(n) * (bottom - top)) ** rho)


def vp_grid(n: int, beta_d: float = 19.9, beta_min: float = 0.1, epsilon_s: float = 1e-3) -> np.ndarray:
  """Noise levels of equation (2), [n+1]: uniform steps in the time of `process.VP(beta_d, beta_min)`."""
  t = 1 + _fractions(n) * (epsilon_s - 1)
  return _ended(np.sqrt(np.expm1(0.5 * beta_d * t**2 + beta_min * t)))


def ve_grid(n: int, sigma_min: float = 0.02, sigma_max: float = 100.0) -> np.ndarray:
  """Noise levels of equation (3), [n+1]: a geometric series."""
  _check_range(sigma_min, sigma_max)
  return _ended(sigma_max * (sigma_min / sigma_max) ** _fractions(n))


@functools.lru_cache(maxsize=8)
def iddpm_levels(num_levels: int = 1000, c1: float = 0.001, c2: float = 0.008) -> np.ndarray:
  """The noise levels u_0 > … > u_{M−1} > u_M = 0 that iDDPM was trained on, [M+1], read-only.

  u_{j−1} = √((u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, C_1) − 1),  ᾱ_j = sin²(π/2·j/(M(C_2 + 1))).
  """
  j = np.arange(num_levels + 1)
  alpha_bar = np.sin(0.5 * np.pi * j / (num_levels * (c2 + 1))) ** 2
  u = np.zeros(num_levels + 1)
  for j in range(num_levels, 0, -1):
    u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], c1) - 1)
  u.flags.writeable = False
  return u


def iddpm_grid(
  n: int,
  sigma_min: float = 0.002,
  sigma_max: float = 81.0,
  num_levels: int = 1000,
  c1: float = 0.001,
  c2: float = 0.008,
) -> np.ndarray:
  """Noise levels of equation (4), [n+1]: n of the trained levels in [sigma_min, sigma_max].

  j_0 is the first level at or below sigma_max; the default gives the paper's j_0 = 8.
  """
  _check_range(sigma_min, sigma_max)
  levels = iddpm_levels(num_levels, c1, c2)[:-1]
  levels = levels[(levels >= sigma_min) & (levels <= sigma_max)]
  if n > len(levels):
    raise ValueError(f"iddpm_grid has {len(levels)} levels in [{sigma_min}, {sigma_max}], got n = {n}")
  return _ended(levels[np.floor((len(levels) - 1) * _fractions(n) + 0.5).astype(int)])


def dpdm_grid(nfe: int, sigma_min: float | None = None, sigma_max: float = 80.0, rho: float = 40.0) -> np.ndarray:
  """Noise levels at which DPDM re-noises, [nfe+1]: equation (1) with ρ = 40 and a σ_min that falls with the NFE.

  Without `sigma_min`, that of `dpdm_sigma_min`, with a warning for 2 and 3 evaluations, which the paper does not list.
  """
  if sigma_min is None:
    sigma_min = dpdm_sigma_min(nfe)
    if 1 < nfe < DPDM_LEAST:
      warnings.warn(f"DPDM lists no σ_min for {nfe} evaluations: that of {DPDM_LEAST}, {sigma_min}", stacklevel=2)
  return edm_grid(nfe, sigma_min, sigma_max, rho)


def dpdm_sigma_min(nfe: int) -> float:
  """The smallest level of the paper's table, found for CIFAR-10: 1e-4 from 10 on; below 4 the value for 4."""
  return _DPDM_SIGMA_MIN.get(max(nfe, DPDM_LEAST), 1e-4)


def dpdm_lists(nfe: int) -> bool:
  """Whether the paper's table has this number of evaluations."""
  return nfe >= DPDM_LEAST


def respaced(num_steps: int, n: int) -> np.ndarray:
  """Times t_i = round(T(1 − i/n)), i = 0..n, of a chain with T = num_steps; [n+1], ends with 0."""
  _fractions(n)
  if n > num_steps:
    raise ValueError(f"respaced cannot take n = {n} steps of a chain of {num_steps}")
  return np.round(num_steps * (1 - np.arange(n + 1) / n))


def decoupled_grid(n: int, power: float = 1.0) -> np.ndarray:
  """Times (1 − i/n)^power, i = 0..n, of a decoupled process; [n+1], ends with 0. The paper's steps are uniform.

  With power 2 the steps are uniform in the noise's standard deviation √t; more of them are small at the end.
  """
  _fractions(n)
  if not 0 < power < np.inf:
    raise ValueError(f"power must be positive, got {power}")
  return (1 - np.arange(n + 1) / n) ** power


def pad(grid, max_steps: int) -> np.ndarray:
  """Pads a grid [n+1] to [max_steps+1] by repeating its last positive value; samplers pass over the repeats.

  A sampler compiled for max_steps then takes every grid of up to max_steps steps without another compilation.
  """
  grid = np.asarray(grid, np.float64)
  n = len(grid) - 1
  if n > max_steps:
    raise ValueError(f"a grid of {n} steps does not fit max_steps = {max_steps}")
  return np.concatenate([grid[:-1], np.full(max_steps - n, grid[-2]), grid[-1:]])


def lognormal(mean: float = -1.2, std: float = 1.2) -> Law:
  """Noise levels with ln σ ~ N(mean, std²): EDM's P_mean, P_std."""
  return lambda key, batch: jnp.exp(mean + std * jax.random.normal(key, (batch,)))


def log_uniform(lo: float = 0.02, hi: float = 100.0) -> Law:
  """Noise levels with ln σ ~ U(ln lo, ln hi): the VE column."""
  _check_range(lo, hi)
  return lambda key, batch: jnp.exp(jax.random.uniform(key, (batch,), minval=np.log(lo), maxval=np.log(hi)))


def vp_uniform(beta_d: float = 19.9, beta_min: float = 0.1, epsilon_t: float = 1e-5) -> Law:
  """Noise levels of `process.VP` at t ~ U(ε_t, 1): the VP column."""

  def law(key, batch):
    t = jax.random.uniform(key, (batch,), minval=epsilon_t, maxval=1.0)
    return jnp.sqrt(jnp.expm1(0.5 * beta_d * t**2 + beta_min * t))

  return law


def iddpm_uniform(num_levels: int = 1000, c1: float = 0.001, c2: float = 0.008) -> Law:
  """Noise levels σ = u_j, j ~ U{0, …, M−1}: the iDDPM column."""
  levels = iddpm_levels(num_levels, c1, c2)[:-1]
  return lambda key, batch: jnp.asarray(levels, float)[jax.random.randint(key, (batch,), 0, num_levels)]


def uniform(lo: float = 0.0, hi: float = 1.0) -> Law:
  """Times t ~ U[lo, hi)."""
  return lambda key, batch: jax.random.uniform(key, (batch,), minval=lo, maxval=hi)


def discrete(num_steps: int) -> Law:
  """Times t ~ U{1, …, num_steps}, as floating-point numbers."""
  return lambda key, batch: jax.random.randint(key, (batch,), 1, num_steps + 1).astype(float)
