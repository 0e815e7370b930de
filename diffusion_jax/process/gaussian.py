"""Gaussian processes, m(x_0, t) = α(t)·x_0: the continuous ones, and chains of T steps.

Sources: Karras et al. 2022, Table 1 (EDM, VP, VE); Ho et al. 2020 (DDPM); Nichol & Dhariwal 2021 (Cosine).
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np

from diffusion_jax.process.base import Gaussian, as_time
from diffusion_jax.types import Array


@dataclasses.dataclass(frozen=True)
class EDM(Gaussian):
  """x_t = x_0 + t·ε: time is the noise level (Karras et al. 2022, Table 1, "Ours")."""

  def alpha(self, t):
    return jnp.ones_like(as_time(t))

  def sigma(self, t):
    return as_time(t)

  def noise_level(self, t):
    return as_time(t)

  def inverse(self, noise_level):
    return as_time(noise_level)


@dataclasses.dataclass(frozen=True)
class VE(Gaussian):
  """Variance-exploding process x_t = x_0 + √t·ε (Song et al. 2021, as in EDM's Table 1)."""

  def alpha(self, t):
    return jnp.ones_like(as_time(t))

  def sigma(self, t):
    return jnp.sqrt(as_time(t))

  def noise_level(self, t):
    return self.sigma(t)

  def inverse(self, noise_level):
    return as_time(noise_level) ** 2


@dataclasses.dataclass(frozen=True)
class VP(Gaussian):
  """Variance-preserving process of Song et al. 2021 as in EDM's Table 1, t in [0, 1]:

  α(t) = exp(−¼β_d t² − ½β_min t),  noise level² = exp(½β_d t² + β_min t) − 1.
  """

  beta_d: float = 19.9  # slope of the noise rate
  beta_min: float = 0.1  # noise rate at t = 0

  @classmethod
  def from_range(cls, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> "VP":
    """The VP process whose noise level is sigma_min at t = epsilon_s and sigma_max at t = 1 (EDM, Appendix C)."""
    log_min, log_max = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (log_min / epsilon_s - log_max) / (epsilon_s - 1)
    return cls(beta_d, log_max - 0.5 * beta_d)

  def log_alpha(self, t):
    return -0.25 * self.beta_d * t**2 - 0.5 * self.beta_min * t

  def alpha(self, t):
    return jnp.exp(self.log_alpha(as_time(t)))

  def sigma(self, t):
    return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(as_time(t))))

  def noise_level(self, t):
    return jnp.sqrt(jnp.expm1(-2 * self.log_alpha(as_time(t))))

  def inverse(self, noise_level):
    noise_level = as_time(noise_level)
    log_ratio = jnp.log1p(noise_level**2)
    root = jnp.sqrt(self.beta_min**2 + 2 * self.beta_d * log_ratio)
    if self.beta_min > 0:  # the form without cancellation near 0
      return 2 * log_ratio / (root + self.beta_min)
    return jnp.where(noise_level == 0, 0.0, (root - self.beta_min) / self.beta_d)


class Discrete(Gaussian):
  """Variance-preserving chains given at t = 1..T, continuous in between.

  log SNR is interpolated linearly between the integers and exact at them; below t = 1 the noise level is t times
  that of t = 1. Beyond T the last value stands.
  """

  num_steps: int

  def alpha_bars(self) -> np.ndarray:
    """Cumulative products ᾱ_1..ᾱ_T, [T] float64."""
    raise NotImplementedError

  def _log_noise(self, dtype) -> Array:
    return jnp.asarray(_log_noise_table(self), dtype)

  def noise_level(self, t):
    t = as_time(t)
    table = self._log_noise(t.dtype)
    i = jnp.clip(jnp.floor(t).astype(int), 1, max(self.num_steps - 1, 1))
    lower, upper = table[i - 1], table[jnp.minimum(i, self.num_steps - 1)]
    inside = jnp.where(t > self.num_steps, self.num_steps, t)  # not jnp.clip, whose derivative at T is one half
    between = jnp.exp(lower + (inside - i) * (upper - lower))
    return jnp.where(t < 1, t * jnp.exp(table[0]), between)

  def alpha(self, t):
    return 1 / jnp.sqrt(1 + self.noise_level(t) ** 2)

  def sigma(self, t):
    noise_level = self.noise_level(t)
    return noise_level / jnp.sqrt(1 + noise_level**2)

  def inverse(self, noise_level):
    noise_level = as_time(noise_level)
    table = self._log_noise(noise_level.dtype)
    first = jnp.exp(table[0])
    times = jnp.arange(1, self.num_steps + 1, dtype=noise_level.dtype)
    above = jnp.interp(jnp.log(jnp.maximum(noise_level, first)), table, times)
    return jnp.where(noise_level < first, noise_level / first, above)


@functools.lru_cache(maxsize=32)
def _log_noise_table(process: Discrete) -> np.ndarray:
  log_alpha_bar = np.log(process.alpha_bars())
  return 0.5 * (np.log(-np.expm1(log_alpha_bar)) - log_alpha_bar)  # log(σ/α) = −½ log SNR


@dataclasses.dataclass(frozen=True)
class DDPM(Discrete):
  """Linear β from beta_start to beta_end over t = 1..num_steps (Ho et al. 2020)."""

  num_steps: int = 1000
  beta_start: float = 1e-4
  beta_end: float = 0.02

  def alpha_bars(self):
    return np.exp(np.cumsum(np.log1p(-np.linspace(self.beta_start, self.beta_end, self.num_steps))))


@dataclasses.dataclass(frozen=True)
class Cosine(Discrete):
  """ᾱ_t = f(t)/f(0), f(t) = cos²(π/2·(t/T + s)/(1 + s)), β_t ≤ max_beta (Nichol & Dhariwal 2021)."""

  num_steps: int = 4000
  offset: float = 0.008
  max_beta: float = 0.999

  def alpha_bars(self):
    t = np.arange(self.num_steps + 1) / self.num_steps
    f = np.cos(0.5 * np.pi * (t + self.offset) / (1 + self.offset)) ** 2
    return np.exp(np.cumsum(np.log1p(-np.minimum(1 - f[1:] / f[:-1], self.max_beta))))
