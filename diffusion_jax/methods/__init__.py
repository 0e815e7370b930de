"""Methods: each paper as a triple of pure functions made from a config."""

from diffusion_jax import config as config_lib
from diffusion_jax.methods import autoencoder, classifier, dddm, decoupled, dpdm, dual_output, edm
from diffusion_jax.methods.base import Method

BY_NAME = {
  "edm": edm.from_config,
  "dual_output": dual_output.from_config,
  "dddm": dddm.from_config,
  "decoupled": decoupled.from_config,
  "dpdm": dpdm.from_config,
  "classifier": classifier.from_config,
  "autoencoder": autoencoder.from_config,
}


def from_config(config, axis_name: str | None = None) -> Method:
  """The one place where a config's strings become functions.

  Args:
    config: a run's config, see `diffusion_jax.config.default`.
    axis_name: axis that `update` is pmapped over; None for a single device.

  Raises:
    ConfigError: the config is wrong; one line with the field, its value, and what was expected.
  """
  config_lib.check(config)
  method = config_lib.choose("method", config.method, BY_NAME)(config, axis_name)
  if method.denoise is not None:
    config_lib.choose("sampling.sampler", config.sampling.sampler, method.samplers)
  return method


__all__ = ["BY_NAME", "Method", "from_config"]
