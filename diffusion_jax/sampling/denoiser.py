"""What a sampler sees: the denoise of a method with its guidance, process and clipping."""

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax import guidance as guidance_lib
from diffusion_jax import process as process_lib
from diffusion_jax.config import choose
from diffusion_jax.methods import Method
from diffusion_jax.process import Process
from diffusion_jax.sampling.options import clip_of, guidance_of, ratio_of
from diffusion_jax.sampling.schedule import schedule_of
from diffusion_jax.types import Array, Denoise, Params


def compose(
  conditional: Denoise,
  unconditional: Denoise | None,
  source: Process,
  target: Process,
  guidance=None,
  guidance_interval=None,
  guidance_rescale=None,
  classifier: tuple[guidance_lib.LogProb, Array] | None = None,
  clip=None,
  clip_percentile=None,
) -> Denoise:
  """The denoise of states of `target`: guided without a classifier, then by one, taken to the process, and clipped.

  Args:
    conditional: estimates of a method, in its process.
    unconditional: those without labels, for guidance.
    source: the method's process.
    target: the one that is sampled in.
    guidance: as the others of `sampling.sample`.
    guidance_interval: see there.
    guidance_rescale: see there.
    classifier: (log p(y|x_t, t) in `source`, scale).
    clip: see there.
    clip_percentile: see there.
  """
  denoise = conditional
  if guidance is not None:
    how = {"interval": guidance_interval, "rescale": guidance_rescale}
    denoise = guidance_lib.classifier_free(denoise, unconditional, guidance, process=source, **how)
  if classifier is not None:
    log_prob, scale = classifier
    denoise = guidance_lib.classifier(denoise, log_prob, source, scale)
  if target != source:
    denoise = process_lib.reframe(denoise, source, target)
  return denoise if clip is None else guidance_lib.threshold(denoise, target, clip, clip_percentile)


def denoiser_of(setting, method: Method) -> Callable[[Params, Array | None], Denoise]:
  """(variables, labels [B], or None without classes) -> the denoise that `sampling.sample` gives to its sampler.

  With the guidance, r of dual_output, process and clipping of a config.sampling, for the states and times of
  `schedule_of(setting, method)`. To be called inside a jitted function that takes the variables as an argument. A
  classifier does not guide it, and it knows no conditions of tasks.

  Raises:
    ConfigError: the method's estimates are of no ODE (those of dddm), or a field is wrong.
  """
  choose("sampling.sampler", "heun", method.samplers)
  (process, _), ratio = schedule_of(setting, method), ratio_of(setting, method)
  options = {"clip": clip_of(setting), "clip_percentile": setting.clip_percentile or None}
  fixed = {} if ratio is None else {"ratio": ratio}

  def bind(variables, labels) -> Denoise:
    def given(labels):
      cond = fixed if labels is None else {**fixed, "label": labels}
      return lambda x, t: method.denoise(variables, x, t, cond or None)

    if labels is None:
      return compose(given(None), None, method.process, process, **options)
    unlabelled = given(jnp.full_like(labels, -1))
    return compose(given(labels), unlabelled, method.process, process, **guidance_of(setting), **options)

  return bind
