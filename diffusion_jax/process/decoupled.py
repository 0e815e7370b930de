"""Decoupled processes: the image fades to zero by an attenuation h, and noise grows apart from it (Huang et al.).

    m(φ, t) = H_t(φ) − H_1(φ),  H_t = ∫_0^t h,  x_0 = −H_1(φ)                           (1)
    m(φ, t) = −(1 − t)·(mean of h over [t, 1])                                          (2)
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process import attenuation as att
from diffusion_jax.process.base import MAX_NOISE_LEVEL, Gaussian, as_time, polar
from diffusion_jax.types import Array, like, normal

_FREE_STREAM = 2**31 - 2  # of an image's draws by `types.normal`: φ's free parameters


@dataclasses.dataclass(frozen=True)
class Decoupled(Gaussian):
  """Image to zero, zero to noise: x_t = x_0 + H_t(φ) + √t·ε, t in [0, 1] (Huang et al.; equations (1) and (2)).

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
    if self.attenuation not in att.ATTENUATIONS:
      names = ", ".join(repr(name) for name in att.ATTENUATIONS)
      raise ValueError(f"attenuation must be one of {names}, got {self.attenuation!r}")

  @property
  def parameters(self) -> int:
    """k, the number of φ's parameters: φ has k times the channels of an image."""
    return att.ATTENUATIONS[self.attenuation].size

  @property
  def is_gaussian(self) -> bool:
    """Whether m(φ, t) = α(t)·x_0."""
    return self.attenuation == "constant"

  def check_times(self, t):
    if not isinstance(t, jax.core.Tracer):
      t = np.asarray(t)
      if not np.all((t >= 0) & (t <= 1)):  # NaN is neither
        raise ValueError(f"t of a decoupled process must be in [0, 1], got {t}")

  def need_gaussian(self):
    if not self.is_gaussian:
      expected = "its signal is not α(t)·x_0; only 'constant' has an alpha, a noise level and its inverse"
      raise ValueError(f"Decoupled({self.attenuation!r}) is not a Gaussian process: {expected}")

  def alpha(self, t):
    self.need_gaussian()
    self.check_times(t)
    return 1 - as_time(t)

  def sigma(self, t):
    self.check_times(t)
    return jnp.sqrt(as_time(t))

  def polar(self, t):
    return polar(1 - as_time(t), self.sigma(t))

  def inverse(self, noise_level):
    self.need_gaussian()
    n = jnp.minimum(as_time(noise_level), MAX_NOISE_LEVEL)  # √t/(1−t) = n, solved for √t
    return (2 * n / (1 + jnp.sqrt(1 + 4 * n**2))) ** 2

  def velocity(self, pred, t):
    self.check_times(t)
    return super().velocity(pred, t)

  def signal(self, clean, t):
    """m(φ, t) by equation (2), [B, H, W, C]: x_0 at t = 0 (.72·x_0 of the sine), exactly 0 at t = 1."""
    self.check_times(t)
    t = like(as_time(t), clean)
    return -(1 - t) * self._mean(clean, t)

  def _mean(self, clean: Array, t) -> Array:
    mean, size = att.ATTENUATIONS[self.attenuation]
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
      return att.solve_sine(x0)
    if not len(free):
      return -x0
    rest = att.ATTENUATIONS[self.attenuation].mean((*free, 0.0), 0.0)  # H_1 but for the c that is added to it
    return jnp.concatenate([*free, -x0 - rest], -1)

  def decode(self, clean):
    return self.image(-self._mean(clean, 0.0))

  def image(self, x):
    return x / att.SINE_SCALE if self.attenuation == "sine" else x
