"""Guidance: functions from Denoise to Denoise.

    (ĉ, ε̂) = (1 − w)·(ĉ, ε̂)_uncond + w·(ĉ, ε̂)_cond        (Ho & Salimans 2022; w = 1 is no guidance)   (1)
    x̂_0' = clip(x̂_0, −limit, limit),  ε̂' = ε̂ + (m(ĉ, t) − m(ĉ', t))/σ(t)                                     (2)

In (1) both members of the pair are combined with the same weight, and (2) keeps m(ĉ, t) + σ(t)·ε̂, so a consistent pair
stays one.
"""

import jax.numpy as jnp

from diffusion_jax.process import Process, as_time
from diffusion_jax.types import Denoise, Prediction, like


def classifier_free(conditional: Denoise, unconditional: Denoise, scale) -> Denoise:
  """Classifier-free guidance, equation (1): two evaluations of the network for one of the result.

  Args:
    conditional: estimates given the condition.
    unconditional: estimates without it.
    scale: w, a number; 0 is unconditional, 1 conditional, above 1 guided. May be traced.
  """

  def denoise(x, t):
    cond, uncond = conditional(x, t), unconditional(x, t)
    return Prediction(
      uncond.clean + scale * (cond.clean - uncond.clean),
      uncond.eps + scale * (cond.eps - uncond.eps),
      cond.log_variance,
    )

  return denoise


def threshold(denoise: Denoise, process: Process, limit) -> Denoise:
  """Estimated images clipped to [−limit, limit], equation (2): what DDPM and iDDPM sample with, at limit 1.

  Where α(t) is small a slightly wrong ε̂ means an enormous image, from which few steps do not come back.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t; t > 0.
    limit: positive number; may be traced.
  """

  def clipped(x, t):
    pred = denoise(x, t)
    clean = process.encode(None, jnp.clip(process.decode(pred.clean), -limit, limit))
    moved = process.signal(pred.clean, t) - process.signal(clean, t)
    return pred._replace(clean=clean, eps=pred.eps + moved / like(process.sigma(as_time(t)), x))

  return clipped
