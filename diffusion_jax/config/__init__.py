"""The config: every field with its default, and the errors that a wrong one gives before anything compiles.

A file under configs/ starts from `default()` and sets what its experiment needs; `check` compares a config with that
tree. Errors name the field, its value, and what was expected.
"""

from diffusion_jax.config.checks import check, check_guide
from diffusion_jax.config.errors import ConfigError, choose, flatten, of_file, unknown_field, wrong
from diffusion_jax.config.fields import (
  CROPS,
  LATENT_METHODS,
  LATENTS,
  TASKS,
  TRANSFORMS,
  UNSAMPLED,
  decay_images,
  default,
  on_host,
  ratios,
  remembers,
  slices,
)  # fmt: skip

__all__ = [
  "CROPS", "LATENTS", "LATENT_METHODS", "TASKS", "TRANSFORMS", "UNSAMPLED", "ConfigError", "check", "check_guide",
  "choose", "decay_images", "default", "flatten", "of_file", "on_host", "ratios", "remembers", "slices",
  "unknown_field", "wrong",
]  # fmt: skip
