"""Guidance: functions from Denoise to Denoise.

    (ĉ, ε̂) = (1 − w)·(ĉ, ε̂)_uncond + w·(ĉ, ε̂)_cond        (Ho & Salimans 2022; w = 1 is no guidance)   (1)
    w = 1 where the noise level σ(t)/α(t) is not in [lo, hi]                     (Kynkäänniemi et al. 2024)   (2)
    x̂_0' = (1 + φ·(d_cond/d − 1))·x̂_0,  d = std of the pixels of x̂_0       (Lin et al. 2024, Section 3.4)   (3)
    x̂_0' = clip(x̂_0·limit/s, −limit, limit),  s = limit                                                       (4)
         or s = max(quantile of the pixels of |x̂_0|, limit)       (Saharia et al. 2022, dynamic thresholding)   (5)
    ε̂' = ε̂ + (m(ĉ, t) − m(ĉ', t))/σ(t)                                        (with x̂_0' of (3), (4), (5))   (6)
    ε̂' = ε̂ − s·σ·g,  x̂_0' = x̂_0 + s·σ²/α·g,  g = ∇_x log p(y|x_t, t)      (Dhariwal & Nichol 2021, Alg. 2)   (7)

In (1) both members of the pair are combined with the same weight, and (6) and (7) keep m(ĉ, t) + σ(t)·ε̂, so a
consistent pair stays one. With s = 1, (7) makes of the exact pair of x_0 that of x_0 given y. Guided denoisers take the
previous estimate where the given ones do, DDDM's. All numbers may be traced.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.process import MAX_NOISE_LEVEL, Discrete, Gaussian, Process, as_time
from diffusion_jax.types import Array, Denoise, Params, Prediction, like

LogProb = Callable[[Array, Array], Array]  # (x_t [B, H, W, C], t scalar or [B]) -> log p(y|x_t, t) [B]


def classifier_free(
  conditional: Denoise,
  unconditional: Denoise,
  scale,
  *,
  process: Process | None = None,
  interval: tuple | None = None,
  rescale=None,
) -> Denoise:
  """Classifier-free guidance, equation (1), with (2) and (3) where they are asked for.

  Two evaluations of the network for one of the result. With an interval the unconditional one is a branch of its own
  (`lax.cond`), which is not evaluated at times when no image is guided; under vmap over t both branches are.

  Lin et al. rescale what their network predicts, v = αε̂ − σx̂_0. Where α = 0, for which they made it, that is (3).
  Elsewhere v, like ε̂, holds the noise of the state, by which the ratio of their deviations nears 1: (3) measures the
  image, whatever the network predicts, and guidance is held back at all noise levels alike.

  Args:
    conditional: estimates given the condition.
    unconditional: estimates without it.
    scale: w, a number; 0 is unconditional, 1 conditional, above 1 guided. May be traced.
    process: the process of x and t, with interval (a Gaussian one) or rescale; t > 0.
    interval: (lo, hi), the noise levels at which guidance acts, ends included; outside, what the conditional denoiser
      says stands alone. May be traced. None is everywhere.
    rescale: φ in [0, 1]; 0 leaves the guided image, 1 gives it the standard deviation over height, width and channels
      of the conditional one. May be traced.

  Raises:
    ValueError: interval or rescale is out of range, or the process is missing for it.
  """
  check(interval, rescale)
  if process is None and not (interval is None and rescale is None):
    raise ValueError("process must be that of x and t for an interval or rescale, got None")

  def denoise(x, t, *previous):
    cond = conditional(x, t, *previous)
    estimates = lambda: tuple(unconditional(x, t, *previous)[:2])
    uncond = estimates() if interval is None else _within(process, interval, t, estimates, tuple(cond[:2]))
    clean, eps = (other + scale * (own - other) for own, other in zip(cond, uncond))
    pred = Prediction(clean, eps, cond.log_variance)
    return pred if rescale is None else _rescaled(process, pred, cond, t, rescale)

  return denoise


def _within(process: Gaussian, interval, t, inside: Callable, outside: tuple[Array, Array]) -> tuple[Array, Array]:
  """inside() for images whose noise level is in the interval, `outside` for others; not called where there is none."""
  level = process.noise_level(as_time(t))
  acts = (interval[0] <= level) & (level <= interval[1])
  found = jax.lax.cond(jnp.any(acts), inside, lambda: outside)
  return tuple(jnp.where(like(acts, a), a, b) for a, b in zip(found, outside))


def _rescaled(process: Process, pred: Prediction, cond: Prediction, t, share) -> Prediction:
  """Equations (3) and (6); an image that is constant to rounding has no deviation to go by, and stays."""
  image, own = process.decode(pred.clean), _std(process.decode(cond.clean))
  std = _std(image)
  ratio = jnp.where(std > 0, own / jnp.where(std > 0, std, 1), 1)
  return _with_image(process, pred, (1 + share * (ratio - 1)) * image, t)


def _std(x: Array) -> Array:
  """Standard deviation of each image, [B, 1, ...]; 0, and its derivative too, for one that is constant to rounding."""
  axes = tuple(range(1, x.ndim))
  residual = x - jnp.mean(x, axis=axes, keepdims=True)
  variance = jnp.var(residual, axis=axes, keepdims=True)  # the first mean of a constant image is off by its rounding
  varies = variance > (4 * jnp.finfo(x.dtype).eps) ** 2 * jnp.mean(x**2, axis=axes, keepdims=True)
  return jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1)), 0)


def _with_image(process: Process, pred: Prediction, image: Array, t) -> Prediction:
  """The pair with another image, by equation (6); free parameters of φ̂ stay."""
  clean = process.recode(pred.clean, image)
  moved = process.signal(pred.clean, t) - process.signal(clean, t)
  return pred._replace(clean=clean, eps=pred.eps + moved / like(process.sigma(as_time(t)), moved))


def check(interval: tuple | None = None, rescale=None, percentile=None):
  """Raises ValueError for numbers out of range; traced ones are not looked at."""
  known = lambda *values: not any(isinstance(value, jax.core.Tracer) for value in values)
  if interval is not None and known(*interval) and not 0 <= interval[0] <= interval[1]:
    raise ValueError(f"interval must be noise levels (lo, hi), 0 <= lo <= hi, got {interval}")
  if rescale is not None and known(rescale) and not 0 <= rescale <= 1:
    raise ValueError(f"rescale must be in [0, 1], got {rescale}")
  if percentile is not None and known(percentile) and not 0 < percentile < 1:
    raise ValueError(f"percentile must be a share of the pixels in (0, 1), such as .995, got {percentile}")


class Classifier(NamedTuple):
  """A trained classifier of noisy images, and how strongly it guides.

  Attributes:
    logits: (variables, x [B, H, W, C], t scalar or [B]) -> [B, num_classes]; compiled functions are kept by it.
    process: the chain of its x and t, t = 1..T.
    num_classes: labels are 0..num_classes−1.
    variables: its parameters.
    scale: s of equation (7); may be traced.
  """

  logits: Callable[[Params, Array, Array], Array]
  process: Discrete
  num_classes: int
  variables: Params
  scale: float | Array

  def log_prob(self, labels: Array) -> LogProb:
    """log p(y|x_t, t) of labels [B], −1 for an image that is not guided: 0 everywhere."""

    def log_prob(x, t):
      found = jax.nn.log_softmax(self.logits(self.variables, x, t))
      chosen = jnp.take_along_axis(found, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
      return jnp.where(labels < 0, 0, chosen)

    return log_prob


def classifier(denoise: Denoise, log_prob: LogProb, process: Gaussian, scale) -> Denoise:
  """Classifier guidance, equation (7): one evaluation of the classifier and of its gradient for one of the network.

  A sampler that moves by the pair's mean (DDPM's) moves it by s·β_t/√(1 − β_t)·g; Alg. 1 has s·Σ·g, with the Σ of its
  noise. Finite where α(t) is 0 or nearly so: there the classifier is asked at the noise level MAX_NOISE_LEVEL, which
  gives the limit of (7).

  Args:
    denoise: the pair of estimates at (x, t).
    log_prob: log p(y|x_t, t) [B], each of its own x and t alone.
    process: the Gaussian process of x and t; t > 0.
    scale: s, a number; 0 is unguided. May be traced.
  """

  def guided(x, t, *previous):
    t = as_time(t)
    pred = denoise(x, t, *previous)
    spent = process.alpha(t) * MAX_NOISE_LEVEL <= process.sigma(t)
    asked = jnp.where(spent, process.inverse(MAX_NOISE_LEVEL), t)
    gradient = scale * jax.grad(lambda x: jnp.sum(log_prob(x, asked)))(x)
    alpha, sigma = like(process.alpha(t), x), like(process.sigma(t), x)
    divisor = jnp.maximum(alpha, sigma / MAX_NOISE_LEVEL)
    clean = process.recode(pred.clean, process.decode(pred.clean) + sigma**2 / divisor * gradient)
    return pred._replace(clean=clean, eps=pred.eps - sigma * (alpha / divisor) * gradient)

  return guided


def reframe(log_prob: LogProb, source: Discrete, target: Gaussian) -> LogProb:
  """The log probabilities of a classifier that was trained in a chain, for the states of another Gaussian process.

  As `process.reframe`: at the chain's t' of the same noise level n, x' = x·√((α_s² + σ_s²)/(α_t² + σ_t²)). The chain
  knows n at t = 1, ..., T. Below, the nearest n' serves. Above, log p(y|x) − log p(y) fades as 1/n at a given x/σ,
  whatever the data: what the classifier says at n' is multiplied by n'/n, so that (7) has the right limit.

  Args:
    log_prob: of states of `source`.
    source: the chain that the classifier was trained in.
    target: the process that the returned function's x and t belong to.
  """

  def reframed(x, t):
    t = as_time(t)
    level = target.noise_level(t)
    lowest, highest = source.noise_level(1.0), source.noise_level(float(source.num_steps))
    known = jnp.clip(level, lowest, highest)
    s = source.inverse(known)
    ratio = jnp.hypot(source.alpha(s), source.sigma(s)) / jnp.hypot(target.alpha(t), target.sigma(t))
    return jnp.minimum(known / level, 1) * log_prob(x * like(ratio, x), s)

  return reframed


def threshold(denoise: Denoise, process: Process, limit, percentile=None) -> Denoise:
  """Estimated images brought to [−limit, limit]: clipped, equation (4), as DDPM and iDDPM do at limit 1; or by (5).

  Where α(t) is small a slightly wrong ε̂ means an enormous image, from which few steps do not come back. Strong guidance
  drives many pixels beyond the limit: clipped, they saturate, while (5) brings the whole image down with them, each by
  its own s. Both with (6).

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t; t > 0.
    limit: positive number; may be traced.
    percentile: the share of an image's pixels, channels apart, of which s of (5) is to be the largest: in (0, 1), .995
      in the paper's sampler; may be traced. None is (4).

  Raises:
    ValueError: percentile is out of range.
  """
  check(percentile=percentile)

  def thresholded(x, t, *previous):
    pred = denoise(x, t, *previous)
    image = process.decode(pred.clean)
    if percentile is not None:
      axes = tuple(range(1, image.ndim))
      s = jnp.maximum(jnp.quantile(jnp.abs(image), percentile, axis=axes, keepdims=True), limit)
      image = image / (s / limit)  # by exactly 1 where (4) and (5) are the same
    return _with_image(process, pred, jnp.clip(image, -limit, limit), t)

  return thresholded
