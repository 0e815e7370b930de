"""Forward processes: how a clean image becomes noise, and the field that leads back.

    x_t = m(c, t) + σ(t)·ε,   ε ~ N(0, I)                                               (1)
    dx/dt = ∂m/∂t(ĉ, t) + σ'(t)·ε̂                                                       (2)
    Gaussian:    c = x_0,  m(x_0, t) = α(t)·x_0;   noise level σ(t)/α(t) (EDM's σ)      (3)
    Decoupled:   c = φ,    m(φ, t) = H_t(φ) − H_1(φ),  H_t = ∫_0^t h,  x_0 = −H_1(φ)    (4)
                           m(φ, t) = −(1 − t)·(mean of h over [t, 1])                   (5)

A process is a frozen, hashable dataclass of numbers; its methods are pure functions of t, a scalar or [B], and of
images [B, H, W, C]. Derivatives in t come from automatic differentiation of m and σ.

Sources: Karras et al. 2022, Table 1 (EDM, VP, VE); Ho et al. 2020 (DDPM); Nichol & Dhariwal 2021 (Cosine);
Huang et al., Decoupled Diffusion Models.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Denoise, Key, Prediction, like, normal

MAX_NOISE_LEVEL = 1e6  # stands for the infinite noise level at α = 0; its signal is below float32's resolution
# Draws of an image, by `types.normal`; samplers number theirs 0, 1, 2, …
_PRIOR_STREAM = 2**31 - 1
_FREE_STREAM = 2**31 - 2  # φ's free parameters


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

  def recode(self, clean: Array, x0: Array) -> Array:
    """The clean component of images x_0 that has the free parameters of `clean`, where there are any."""
    del clean
    return self.encode(None, x0)

  def image(self, x: Array) -> Array:
    """Image x_0 of the state at t = 0, [B, ...]; the identity but for the sine attenuation."""
    return x

  def polar(self, t) -> tuple[Array, Array]:
    """r = √(α² + σ²) and θ = arctan(σ/α), in which the flow is nearly a rotation; a decoupled process has α = 1 − t."""
    raise NotImplementedError

  def check_times(self, t):
    """Raises ValueError where the process has no such time; traced ones are not looked at."""


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

  def polar(self, t) -> tuple[Array, Array]:
    return _polar(self.alpha(t), self.sigma(t))


def _polar(alpha: Array, sigma: Array) -> tuple[Array, Array]:
  return jnp.sqrt(alpha**2 + sigma**2), jnp.arctan2(sigma, alpha)


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


def _expm1_ratio(z: Array) -> Array:
  """(e^z − 1)/z, 1 at z = 0, with the digits of its derivative."""
  small = jnp.abs(z) < 0.02
  series = 1.0
  for k in (6, 5, 4, 3, 2):
    series = 1 + z / k * series
  safe = jnp.where(small, 1, z)
  return jnp.where(small, series, jnp.expm1(safe) / safe)


def _sinc(z: Array) -> Array:
  """sin(z)/z, 1 at z = 0, with the digits of its derivative."""
  small = jnp.abs(z) < 0.1
  series = 1.0
  for k in (8, 6, 4, 2):
    series = 1 - z**2 / (k * (k + 1)) * series
  safe = jnp.where(small, 1, z)
  return jnp.where(small, series, jnp.sin(safe) / safe)


# Means of h over [t, 1] by equation (5): `part` are φ's parameters, each of the images' shape.


def _constant(part, t):
  (c,) = part
  return c


def _linear(part, t):
  a, c = part
  return 0.5 * a * (1 + t) + c


def _quadratic(part, t):
  a, b, c = part
  return a * (1 + t + t**2) / 3 + 0.5 * b * (1 + t) + c


def _exponential(part, t):
  a, c = part
  return jnp.exp(a * t) * _expm1_ratio(a * (1 - t)) + c


def _sine(part, t):
  (a,) = part  # (cos at − cos a)/a, as a product
  return 0.5 * a * (1 + t) * _sinc(0.5 * a * (1 + t)) * _sinc(0.5 * a * (1 - t))


SINE_SCALE = 0.72  # (1 − cos a)/a stays below .7246: the states of the sine attenuation are those of .72·x_0
_SINE_END = 2.331122370414423  # where it is largest


def _solve_sine(x0: Array) -> Array:
  """The a in [−2.331, 2.331] with (1 − cos a)/a = −.72·x_0, for x_0 clipped to [−1, 1]; differentiable."""
  wanted = -SINE_SCALE * jnp.clip(x0, -1, 1)
  rise = lambda a: _sine((a,), 0.0)
  half, sign = jax.lax.stop_gradient(jnp.abs(wanted)), jnp.sign(wanted)

  def bisect(_, bounds):
    low, high = bounds
    middle = 0.5 * (low + high)
    below = rise(middle) < half
    return jnp.where(below, middle, low), jnp.where(below, high, middle)

  low, high = jax.lax.fori_loop(0, 24, bisect, (jnp.zeros_like(half), jnp.full_like(half, _SINE_END)))
  a = sign * 0.5 * (low + high)
  for _ in range(3):  # Newton's steps; the last also carries the derivative of a by x_0
    a = jax.lax.stop_gradient(a)
    value, slope = jax.jvp(rise, (a,), (jnp.ones_like(a),))
    a = a - (value - wanted) / slope
  return a


class _Attenuation(NamedTuple):
  """An h_t: its mean over [t, 1], and the number of φ's parameters, all but the last of them free (sine: none is)."""

  mean: Callable[[tuple[Array, ...], Array], Array]
  size: int


ATTENUATIONS = {
  "constant": _Attenuation(_constant, 1),
  "linear": _Attenuation(_linear, 2),
  "quadratic": _Attenuation(_quadratic, 3),
  "exponential": _Attenuation(_exponential, 2),
  "sine": _Attenuation(_sine, 1),
}


@dataclasses.dataclass(frozen=True)
class Decoupled(Gaussian):
  """Image to zero, zero to noise: x_t = x_0 + H_t(φ) + √t·ε, t in [0, 1] (Huang et al.; equations (4) and (5) above).

      attenuation    h_t               φ          solved from x_0 + H_1 = 0
      constant       c                 c          c = −x_0: m(φ, t) = (1 − t)·x_0, a Gaussian process
      linear         at + c            a, c       c = −x_0 − a/2
      quadratic      at² + bt + c      a, b, c    c = −x_0 − a/3 − b/2
      exponential    e^{at} + c        a, c       c = −x_0 − (e^a − 1)/a
      sine           sin(at)           a          (1 − cos a)/a = −.72·x_0,  |a| ≤ 2.331

  The clean component φ of images [B, H, W, C] is [B, H, W, k·C]: its k parameters one after another, each with C
  channels. All but the last are free, drawn from N(0, 1). Sine reaches |x_0| ≤ .7246 only, so that its states are those
  of .72·x_0 (`image` divides by it, as samplers do at the end); images are clipped to [−1, 1].

  Only "constant" has an α(t), hence noise levels and their inverse: others are no Gaussian processes, and their states
  are not those of one with other numbers. Times that are known before compilation must be in [0, 1].

  Raises:
    ValueError: the attenuation is unknown, a time is not in [0, 1], or α, a noise level or its inverse is asked for
      and the attenuation is not constant.
  """

  attenuation: str = "constant"
  clamp: bool = False  # free parameters to [−1, 1], as the published code has it for the linear attenuation

  jumps_to_zero = True

  def __post_init__(self):
    if self.attenuation not in ATTENUATIONS:
      names = ", ".join(repr(name) for name in ATTENUATIONS)
      raise ValueError(f"attenuation must be one of {names}, got {self.attenuation!r}")

  @property
  def parameters(self) -> int:
    """k, the number of φ's parameters: φ has k times the channels of an image."""
    return ATTENUATIONS[self.attenuation].size

  @property
  def is_gaussian(self) -> bool:
    """Whether m(φ, t) = α(t)·x_0."""
    return self.attenuation == "constant"

  def check_times(self, t):
    if not isinstance(t, jax.core.Tracer):
      t = np.asarray(t)
      if not np.all((t >= 0) & (t <= 1)):  # NaN is neither
        raise ValueError(f"t of a decoupled process must be in [0, 1], got {t}")

  def _need_gaussian(self):
    if not self.is_gaussian:
      expected = "its signal is not α(t)·x_0; only 'constant' has an alpha, a noise level and its inverse"
      raise ValueError(f"Decoupled({self.attenuation!r}) is not a Gaussian process: {expected}")

  def alpha(self, t):
    self._need_gaussian()
    self.check_times(t)
    return 1 - as_time(t)

  def sigma(self, t):
    self.check_times(t)
    return jnp.sqrt(as_time(t))

  def polar(self, t):
    return _polar(1 - as_time(t), self.sigma(t))

  def inverse(self, noise_level):
    self._need_gaussian()
    n = jnp.minimum(as_time(noise_level), MAX_NOISE_LEVEL)  # √t/(1−t) = n, solved for √t
    return (2 * n / (1 + jnp.sqrt(1 + 4 * n**2))) ** 2

  def velocity(self, pred, t):
    self.check_times(t)
    return super().velocity(pred, t)

  def signal(self, clean, t):
    """m(φ, t) by equation (5), [B, H, W, C]: x_0 at t = 0 (.72·x_0 of the sine), exactly 0 at t = 1."""
    self.check_times(t)
    t = like(as_time(t), clean)
    return -(1 - t) * self._mean(clean, t)

  def _mean(self, clean: Array, t) -> Array:
    mean, size = ATTENUATIONS[self.attenuation]
    if size > 1 and (clean.ndim == 0 or clean.shape[-1] % size):
      raise ValueError(f"clean must have {size} times the channels of an image, got shape {list(clean.shape)}")
    return mean(jnp.split(clean, size, -1) if size > 1 else (clean,), t)

  def encode(self, keys, x0):
    """φ of images x_0 [B, H, W, C], [B, H, W, k·C]; `keys` [B] draw its free parameters, where it has any."""
    free = (self.parameters - 1) * jnp.shape(x0)[-1] if self.parameters > 1 else 0
    if not free:
      return self._solved((), x0)
    if keys is None:
      raise ValueError(f"encode draws φ of Decoupled({self.attenuation!r}): keys must hold one key an image, got None")
    drawn = normal(keys, _FREE_STREAM, (*x0.shape[1:-1], free), x0.dtype)
    drawn = jnp.clip(drawn, -1, 1) if self.clamp else drawn
    return self._solved(jnp.split(drawn, self.parameters - 1, -1), x0)

  def recode(self, clean, x0):
    return self._solved(jnp.split(clean, self.parameters, -1)[:-1] if self.parameters > 1 else (), x0)

  def _solved(self, free, x0: Array) -> Array:
    """φ with the last parameter solved from x_0 + H_1(φ) = 0."""
    if self.attenuation == "sine":
      return _solve_sine(x0)
    if not len(free):
      return -x0
    rest = ATTENUATIONS[self.attenuation].mean((*free, 0.0), 0.0)  # H_1 but for the c that is added to it
    return jnp.concatenate([*free, -x0 - rest], -1)

  def decode(self, clean):
    return self.image(-self._mean(clean, 0.0))

  def image(self, x):
    return x / SINE_SCALE if self.attenuation == "sine" else x


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
