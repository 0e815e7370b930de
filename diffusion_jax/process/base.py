"""What processes share: the state x_t, the field that leads back, and the change from one process to another.

Equations (1) to (3) are those of the package's head.
"""

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array, Denoise, Key, Prediction, like, normal

MAX_NOISE_LEVEL = 1e6  # stands for the infinite noise level at α = 0; its signal is below float32's resolution
_PRIOR_STREAM = 2**31 - 1  # of an image's draws by `types.normal`; samplers number theirs 0, 1, 2, …


def as_time(t) -> Array:
  """Returns t as a floating-point array: a scalar or [B]."""
  t = jnp.asarray(t)
  return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


class Process:
  """What all processes share: equations (1) and (2) from `signal` and `sigma`."""

  is_gaussian = False  # whether m(c, t) = α(t)·x_0, so that there are α and noise levels

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

  is_gaussian = True

  def alpha(self, t) -> Array:
    """Signal scale α(t); same shape as t."""
    raise NotImplementedError

  def need_gaussian(self):
    """Raises ValueError where the process is not one of these after all, as some decoupled ones are."""

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
    return polar(self.alpha(t), self.sigma(t))


def polar(alpha: Array, sigma: Array) -> tuple[Array, Array]:
  """√(α² + σ²) and arctan(σ/α), see `Process.polar`."""
  return jnp.sqrt(alpha**2 + sigma**2), jnp.arctan2(sigma, alpha)


def reframe(denoise: Denoise, source: Gaussian, target: Gaussian) -> Denoise:
  """A network trained in one Gaussian process, sampled in another.

  Equal noise levels mean equal images up to scale: with t' = source.inverse(target.noise_level(t)),
  x' = x·√((α_s² + σ_s²)/(α_t² + σ_t²)), which has the limit at α = 0 and no division by it. Both estimates of the pair
  carry over, the clean component through the image; DDDM's previous estimate is an image, the same in both.

  Args:
    denoise: estimates (ĉ, ε̂) for states of `source`.
    source: the process that `denoise` was trained in.
    target: the process that the returned function's x and t belong to.
  """

  def reframed(x, t, *previous):
    t = as_time(t)
    s = source.inverse(target.noise_level(t))
    scale = jnp.hypot(source.alpha(s), source.sigma(s)) / jnp.hypot(target.alpha(t), target.sigma(t))
    pred = denoise(x * like(scale, x), s, *previous)
    return pred._replace(clean=target.encode(None, source.decode(pred.clean)))

  return reframed
