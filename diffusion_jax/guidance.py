"""Guidance: functions from Denoise to Denoise.

    (ĉ, ε̂) = (1 − w)·(ĉ, ε̂)_uncond + w·(ĉ, ε̂)_cond        (Ho & Salimans 2022; w = 1 is no guidance)   (1)
    x̂_0' = clip(x̂_0, −limit, limit),  ε̂' = ε̂ + (m(ĉ, t) − m(ĉ', t))/σ(t)                                     (2)
    ε̂' = ε̂ − s·σ·g,  x̂_0' = x̂_0 + s·σ²/α·g,  g = ∇_x log p(y|x_t, t)      (Dhariwal & Nichol 2021, Alg. 2)   (3)

In (1) both members of the pair are combined with the same weight, and (2) and (3) keep m(ĉ, t) + σ(t)·ε̂, so a
consistent pair stays one. With s = 1, (3) makes of the exact pair of x_0 that of x_0 given y. Guided denoisers take the
previous estimate where the given ones do, DDDM's.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.process import MAX_NOISE_LEVEL, Discrete, Gaussian, Process, as_time
from diffusion_jax.types import Array, Denoise, Params, Prediction, like

LogProb = Callable[[Array, Array], Array]  # (x_t [B, H, W, C], t scalar or [B]) -> log p(y|x_t, t) [B]


def classifier_free(conditional: Denoise, unconditional: Denoise, scale) -> Denoise:
  """Classifier-free guidance, equation (1): two evaluations of the network for one of the result.

  Args:
    conditional: estimates given the condition.
    unconditional: estimates without it.
    scale: w, a number; 0 is unconditional, 1 conditional, above 1 guided. May be traced.
  """

  def denoise(x, t, *previous):
    cond, uncond = conditional(x, t, *previous), unconditional(x, t, *previous)
    return Prediction(
      uncond.clean + scale * (cond.clean - uncond.clean),
      uncond.eps + scale * (cond.eps - uncond.eps),
      cond.log_variance,
    )

  return denoise


class Classifier(NamedTuple):
  """A trained classifier of noisy images, and how strongly it guides.

  Attributes:
    logits: (variables, x [B, H, W, C], t scalar or [B]) -> [B, num_classes]; compiled functions are kept by it.
    process: the chain of its x and t, t = 1..T.
    num_classes: labels are 0..num_classes−1.
    variables: its parameters.
    scale: s of equation (3); may be traced.
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
  """Classifier guidance, equation (3): one evaluation of the classifier and of its gradient for one of the network.

  A sampler that moves by the pair's mean (DDPM's) moves it by s·β_t/√(1 − β_t)·g; Alg. 1 has s·Σ·g, with the Σ of its
  noise. Finite where α(t) is 0 or nearly so: there the classifier is asked at the noise level MAX_NOISE_LEVEL, which
  gives the limit of (3).

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
  whatever the data: what the classifier says at n' is multiplied by n'/n, so that (3) has the right limit.

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


def threshold(denoise: Denoise, process: Process, limit) -> Denoise:
  """Estimated images clipped to [−limit, limit], equation (2): what DDPM and iDDPM sample with, at limit 1.

  Where α(t) is small a slightly wrong ε̂ means an enormous image, from which few steps do not come back.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t; t > 0.
    limit: positive number; may be traced.
  """

  def clipped(x, t, *previous):
    pred = denoise(x, t, *previous)
    clean = process.recode(pred.clean, jnp.clip(process.decode(pred.clean), -limit, limit))
    moved = process.signal(pred.clean, t) - process.signal(clean, t)
    return pred._replace(clean=clean, eps=pred.eps + moved / like(process.sigma(as_time(t)), x))

  return clipped
