"""What the samplers of a config see, for what is done beside sampling: inversion, likelihood, editing."""

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax import guidance as guidance_lib
from diffusion_jax import process as process_lib
from diffusion_jax.config import choose
from diffusion_jax.methods import Method
from diffusion_jax.sampling.schedule import clip_of, ratio_of, schedule_of
from diffusion_jax.types import Array, Denoise, Params


def denoiser_of(setting, method: Method) -> Callable[[Params, Array | None], Denoise]:
  """(variables, labels [B], or None without classes) -> the denoise that `sampling.sample` gives to its sampler.

  With the guidance, r of dual_output, process and clipping of a config.sampling, for the states and times of
  `schedule_of(setting, method)`. To be called inside a jitted function that takes the variables as an argument. A
  classifier does not guide it, and it knows no conditions of tasks.

  Raises:
    ConfigError: the method's estimates are of no ODE (those of dddm), or a field is wrong.
  """
  choose("sampling.sampler", "heun", method.samplers)
  (process, _), ratio, clip = schedule_of(setting, method), ratio_of(setting, method), clip_of(setting)
  fixed = {} if ratio is None else {"ratio": ratio}

  def bind(variables, labels) -> Denoise:
    def given(labels):
      cond = fixed if labels is None else {**fixed, "label": labels}
      return lambda x, t: method.denoise(variables, x, t, cond or None)

    denoise = given(labels)
    if labels is not None and setting.guidance != 1:
      denoise = guidance_lib.classifier_free(denoise, given(jnp.full_like(labels, -1)), setting.guidance)
    if process != method.process:
      denoise = process_lib.reframe(denoise, method.process, process)
    return denoise if clip is None else guidance_lib.threshold(denoise, process, clip)

  return bind
