"""Guidance: functions from Denoise to Denoise.

    (ĉ, ε̂) = (1 − w)·(ĉ, ε̂)_uncond + w·(ĉ, ε̂)_cond        (Ho & Salimans 2022; w = 1 is no guidance)   (1)

Both members of the pair are combined with the same weight, so a consistent pair stays one.
"""

from diffusion_jax.types import Denoise, Prediction


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
