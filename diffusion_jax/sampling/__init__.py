"""From seeds to images: one entry point for scripts, notebooks and the training loop.

`generate` draws as many images as there are seeds by a run's config; `sample` is the jitted function below it.
"""

from diffusion_jax.sampling.denoiser import denoiser_of
from diffusion_jax.sampling.draw import MAX_STEPS, keys_of, sample
from diffusion_jax.sampling.generation import (
  default_labels,
  generate,
  generate_large,
  generate_together,
  in_range,
  mean_evaluations,
)
from diffusion_jax.sampling.options import arguments_of, clip_of, evaluations, guidance_of, options_of, ratio_of
from diffusion_jax.sampling.schedule import schedule_of, with_sampler

__all__ = [
  "MAX_STEPS", "arguments_of", "clip_of", "default_labels", "denoiser_of", "evaluations", "generate", "generate_large",
  "generate_together", "guidance_of", "in_range", "keys_of", "mean_evaluations", "options_of", "ratio_of", "sample",
  "schedule_of", "with_sampler",
]  # fmt: skip
