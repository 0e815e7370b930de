"""Forward processes: how a clean image becomes noise, and the field that leads back.

    x_t = m(c, t) + σ(t)·ε,   ε ~ N(0, I)                                               (1)
    dx/dt = ∂m/∂t(ĉ, t) + σ'(t)·ε̂                                                       (2)
    Gaussian:    c = x_0,  m(x_0, t) = α(t)·x_0;   noise level σ(t)/α(t) (EDM's σ)      (3)
    Decoupled:   c = φ,    m(φ, t) = H_t(φ) − H_1(φ),  H_t = ∫_0^t h,  x_0 = −H_1(φ)    (4)

A process is a frozen, hashable dataclass of numbers; its methods are pure functions of t, a scalar or [B], and of
images [B, H, W, C]. Derivatives in t come from automatic differentiation of m and σ.

Sources: Karras et al. 2022, Table 1 (EDM, VP, VE); Ho et al. 2020 (DDPM); Nichol & Dhariwal 2021 (Cosine);
Huang et al., Decoupled Diffusion Models.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Denoise, Key, Prediction, like, normal

MAX_NOISE_LEVEL = 1e6  # stands for the infinite noise level at α = 0; its signal is below float32's resolution
_PRIOR_STREAM = 2**31 - 1  # the prior's draw of an image; samplers number theirs 0, 1, 2, …


def as_time(t) -> Array:
  """Returns t as a floating-point array: a scalar or [B]."""
  t = jnp.asarray(t)
  return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


class Process:
  """What all processes share: equations (1) and (2) from `signal` and `sigma`."""

  # True where σ'(t) → ∞ at t → 0, so that an ODE solver's last step must be the transition x_0 = m(ĉ, 0) (Euler
  # would leave half of the remaining noise). VP and VE keep the published Euler step.
  jumps_to_zero = False

  def sigma(self, t) -> Array:
    """Standard deviation σ(t) of the noise in x_t; same shape as t."""
    raise NotImplementedError

  def signal(self, clean: Array, t) -> Array:
    """Noise-free part m(c, t) of x_t, [B, ...]."""
    raise NotImplementedError

  def perturb(self, clean: Array, eps: Array, t) -> Array:
    """Draws x_t by equation (1) from the clean component and unit noise, both [B, ...]."""
    return self.signal(clean, t) + like(self.sigma(as_time(t)), eps) * eps

  def velocity(self, pred: Prediction, t) -> Array:
    """Right-hand side dx/dt of the probability-flow ODE, equation (2), at t > 0; [B, ...]."""
    t = as_time(t)
    one = jnp.ones_like(t)
    _, dm = jax.jvp(lambda t: self.signal(pred.clean, t), (t,), (one,))
    _, dsigma = jax.jvp(self.sigma, (t,), (one,))
    return dm + like(dsigma, pred.eps) * pred.eps

  def prior(self, keys: Key, shape: tuple[int, ...], t) -> Array:
    """Draws the state that sampling starts from at time t: σ(t)·ε, the signal taken as spent.

    Args:
      keys: [B] PRNG keys, one an image.
      shape: shape of one image (H, W, C); the batch's (B, H, W, C) is taken too.
      t: starting time, scalar or [B].

    Returns:
      [B, H, W, C] float32 (float64 under x64).
    """
    if len(shape) == 4:
      shape = shape[1:]
    eps = normal(keys, _PRIOR_STREAM, tuple(shape), jnp.zeros(()).dtype)
    return like(self.sigma(as_time(t)), eps) * eps

  def encode(self, keys: Key | None, x0: Array) -> Array:
    """Clean component c of images x_0; the identity unless decoupled. `keys` [B] draw φ's free parameters."""
    del keys
    return x0

  def decode(self, clean: Array) -> Array:
    """Image x_0 of a clean component c; the identity unless decoupled."""
    return clean


class Gaussian(Process):
  """Processes with m(x_0, t) = α(t)·x_0, equation (3)."""

  def alpha(self, t) -> Array:
    """Signal scale α(t); same shape as t."""
    raise NotImplementedError

  def inverse(self, noise_level) -> Array:
    """Time t at which σ(t)/α(t) = noise_level ≥ 0; inverse(0) = 0. Same shape as noise_level."""
    raise NotImplementedError

  def noise_level(self, t) -> Array:
    """EDM's σ: the ratio σ(t)/α(t), at most MAX_NOISE_LEVEL; same shape as t."""
    t = as_time(t)
    alpha, sigma = self.alpha(t), self.sigma(t)
    return jnp.where(
      alpha * MAX_NOISE_LEVEL > sigma, sigma / jnp.where(alpha == 0, 1, alpha), MAX_NOISE_LEVEL
    )

  def signal(self, clean: Array, t) -> Array:
    return like(self.alpha(as_time(t)), clean) * clean


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


@dataclasses.dataclass(frozen=True)
class Decoupled(Gaussian):
  """Image to zero, zero to noise: x_t = x_0 + H_t(φ) + √t·ε, t in [0, 1] (Huang et al., eq. 4 above).

  With the constant attenuation h_t = c the clean component is φ = c = −x_0, so that m(φ, t) = (1 − t)·x_0.

  Raises:
    ValueError: the attenuation is unknown.
  """

  attenuation: str = "constant"

  jumps_to_zero = True

  def __post_init__(self):
    if self.attenuation != "constant":
      raise ValueError(f"attenuation must be 'constant', got {self.attenuation!r}")

  def alpha(self, t):
    return 1 - as_time(t)

  def sigma(self, t):
    return jnp.sqrt(as_time(t))

  def signal(self, clean, t):
    return -like(self.alpha(t), clean) * clean

  def inverse(self, noise_level):
    n = jnp.minimum(as_time(noise_level), MAX_NOISE_LEVEL)  # √t/(1−t) = n, solved for √t
    return (2 * n / (1 + jnp.sqrt(1 + 4 * n**2))) ** 2

  def encode(self, keys, x0):
    del keys  # no free parameters
    return -x0

  def decode(self, clean):
    return -clean


def reframe(denoise: Denoise, source: Gaussian, target: Gaussian) -> Denoise:
  """A network trained in one Gaussian process, sampled in another.

  Equal noise levels mean equal images up to scale: with t' = source.inverse(target.noise_level(t)),
  x' = x·√((α_s² + σ_s²)/(α_t² + σ_t²)), which has the limit at α = 0 and no division by it. Both estimates of the pair
  carry over, the clean component through the image.

  Args:
    denoise: estimates (ĉ, ε̂) for states of `source`.
    source: the process that `denoise` was trained in.
    target: the process that the returned function's x and t belong to.
  """

  def reframed(x, t):
    t = as_time(t)
    s = source.inverse(target.noise_level(t))
    scale = jnp.hypot(source.alpha(s), source.sigma(s)) / jnp.hypot(target.alpha(t), target.sigma(t))
    pred = denoise(x * like(scale, x), s)
    return pred._replace(clean=target.encode(None, source.decode(pred.clean)))

  return reframed
