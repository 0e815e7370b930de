"""The method of autoencoders: its loss against a computation of its own, its draws, its config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import tiny

from diffusion_jax import methods
from diffusion_jax.config import ConfigError
from diffusion_jax.methods import autoencoder as autoencoder_method
from diffusion_jax.methods import batches
from diffusion_jax.nets import autoencoder
from diffusion_jax.training import state


def autoencoder_config(**fields):
  c = tiny.get_config()
  c.method = "autoencoder"
  c.label_dropout = 0.0
  c.data.update(num_classes=0, flip=False)
  c.autoencoder.update(channels=4, channel_mult=(1, 2), num_blocks=1, latent_channels=2)
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


class Linear:
  """In place of the network, so that the loss can be had by hand: z of every second pixel, images of equal fours."""

  factor, latent_channels, image_channels = 2, 1, 1

  def init(self, key, x):
    return {"params": {name: jnp.float32(value) for name, value in zip("abcd", (0.5, 0.2, -1.0, 1.5))}}

  def apply(self, variables, x, keys=None, method="__call__"):
    p = variables["params"]
    if method == "decode":
      return p["d"] * x.repeat(2, 1).repeat(2, 2)
    mean, log_variance = p["a"] * x[:, ::2, ::2] + p["b"], p["c"] * jnp.abs(x[:, 1::2, ::2])
    return self.apply(variables, autoencoder.sample(keys, mean, log_variance), method="decode"), mean, log_variance


@pytest.mark.parametrize("accumulation, flip", [(1, False), (2, True)])
def test_the_loss_is_the_absolute_error_and_the_divergence(accumulation, flip, monkeypatch):
  """x̂ of a z drawn by the example's own key; the KL of N(μ, σ²) from N(0, 1), a number of z after the other."""
  monkeypatch.setattr(autoencoder_method, "network_from_config", lambda config, channels: Linear())
  fields = {"train__accumulation": accumulation, "data__flip": flip, "autoencoder__kl_weight": 0.01}
  method = methods.from_config(autoencoder_config(**fields))
  rng, key = np.random.default_rng(0), jax.random.key(3)
  batch = {"image": rng.uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32), "slot": np.arange(4)}
  first = method.init(jax.random.key(0), {"image": jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)})
  _, metrics = method.update(first, batch, key)

  keys, x = state.example_keys(key, first.step, batch["slot"]), batch["image"]
  if flip:
    mirror = np.array([jax.random.bernoulli(k) for k in batches.streams(keys, autoencoder_method._FLIP)])
    assert 0 < mirror.sum() < 4
    x = np.where(mirror[:, None, None, None], x[:, :, ::-1], x)
  errors, divergences = [], []
  for image, k in zip(x, batches.streams(keys, autoencoder_method._POSTERIOR)):
    mean, log_variance = 0.5 * image[::2, ::2] + 0.2, -np.abs(image[1::2, ::2])
    z = mean + np.exp(log_variance / 2) * np.asarray(jax.random.normal(jax.random.fold_in(k, 0), (4, 4, 1)))
    errors.append(np.abs(1.5 * np.kron(z, np.ones((2, 2, 1))) - image).mean())
    divergences.append(sum(0.5 * (m**2 + np.exp(v) - 1 - v) for m, v in zip(mean.ravel(), log_variance.ravel())))
  np.testing.assert_allclose(metrics["absolute_error"], np.mean(errors), rtol=1e-5)
  np.testing.assert_allclose(metrics["kl"], np.mean(divergences), rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], np.mean(errors) + 0.01 * np.mean(divergences), rtol=1e-5)


def test_it_draws_nothing():
  method = methods.from_config(autoencoder_config())
  assert method.denoise is None and method.samplers == ()


@pytest.mark.parametrize("field, value, message", [
  ("autoencoder.channels", 18, "GroupNorm groups divide 18 channels"),
  ("autoencoder.num_blocks", 0, "expected a positive integer"),
  ("autoencoder.kl_weight", -1.0, "must not be negative"),
  ("data.resolution", 9, "must be a multiple of 2"),
  ("data.augment", 0.1, "must be 0 for method 'autoencoder'"),
  ("label_dropout", 0.1, "must be 0 for method 'autoencoder', which is given no labels"),
  ("train.score_every", 4, "must be 0 for method 'autoencoder', which draws no images"),
  ("latent.autoencoder", "runs/a", "must be '' for data.name = 'digits', which are no latents"),
])  # fmt: skip
def test_a_config_that_cannot_be_trained(field, value, message):
  config = autoencoder_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ConfigError, match=f"config.{field} = {value!r}: .*({message})") as error:
    methods.from_config(config)
  assert "\n" not in str(error.value)
