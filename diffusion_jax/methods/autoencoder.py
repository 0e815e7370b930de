"""An autoencoder of images, in whose latent space other methods run (Rombach et al. 2022).

    mean |x̂ − x| + kl_weight·KL(q(z|x) ‖ N(0, I)),  x̂ = D(z),  z ~ q(z|x) = N(μ(x), σ²(x))                  (1)

the first over pixels and channels, the second in nats an image. Rombach et al. add LPIPS and a discriminator of
patches, without which small texture is lost; neither is built here. Nothing is sampled from it:
`training.autoencoders` has its use.
"""

import functools

import jax.numpy as jnp

from diffusion_jax import losses, process
from diffusion_jax.config import ConfigError
from diffusion_jax.methods import base, batches
from diffusion_jax.nets import autoencoder
from diffusion_jax.training import state as state_lib
from diffusion_jax.training import update as update_lib

# Streams of an example's key.
_POSTERIOR, _FLIP = range(2)


def from_config(config, axis_name: str | None = None) -> base.Method:
  """The method of a config; it has neither `denoise` nor samplers.

  Args:
    config: the run's config; reads `autoencoder`, `data` and what training shares.
    axis_name: axis that the update is pmapped over, if it is.

  Raises:
    ConfigError: the network is impossible, or does not divide the images.
  """
  network = network_from_config(config, config.data.channels)
  if config.data.resolution % network.factor:
    expected = f"must be a multiple of {network.factor}, by which autoencoder.channel_mult reduces images"
    raise ConfigError(f"config.data.resolution = {config.data.resolution!r}: {expected}")

  def init(key, example_batch):
    params = network.init(key, jnp.zeros(example_batch["image"].shape))["params"]
    return state_lib.create({"net": params}, update_lib.init_optimizer(config, {"net": params}))

  def loss_fn(params, batch):
    stream = functools.partial(batches.streams, batch["key"])
    x = batches.images_of(batch, stream(_FLIP), config.data.flip)
    out, mean, log_variance = network.apply({"params": params}, x, stream(_POSTERIOR))
    error = losses.absolute_error(out, x) / x[0].size
    kl = autoencoder.kl_divergence(mean, log_variance)
    loss = jnp.mean(error + config.autoencoder.kl_weight * kl)
    return loss, {"absolute_error": jnp.mean(error), "kl": jnp.mean(kl)}

  return base.Method(init, update_lib.of_loss(config, loss_fn, axis_name), None, process.EDM(), ())


def network_from_config(config, image_channels: int) -> autoencoder.Autoencoder:
  """The network of config.autoencoder.

  Raises:
    ConfigError: it cannot be built.
  """
  fields = {name: value for name, value in config.autoencoder.items() if name != "kl_weight"}
  try:
    return autoencoder.Autoencoder(image_channels=image_channels, **fields)
  except ValueError as error:
    raise ConfigError(f"config.{error}") from None
