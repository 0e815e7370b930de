"""A conditional network that compiles in a second, and the config of a run with it: holes in digits.

As a config file it is that run with the U-Net.
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.methods import conditions
from diffusion_jax.nets import conditional, layers

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import tiny


class Features(nn.Module):
  """One convolution of the condition; `seen` is called with each condition that it encodes."""

  seen: object = None

  @nn.compact
  def __call__(self, condition):
    if self.seen:
      self.seen()
    return (layers.Conv(4, name="conv")(condition),)


class Toy(nn.Module):
  """Two convolutions of image and features; a head of each name."""

  heads: tuple[tuple[str, int], ...]
  context: tuple[tuple[int, int], ...]

  @nn.compact
  def __call__(self, x, c_noise, labels=None, augment=None, dropout_keys=None, context=None):
    shape = (*x.shape[:3], 4)
    features = jax.image.resize(context[0], shape, "linear") if context else jnp.zeros(shape)  # x may be a latent
    h = layers.Conv(8, name="conv0")(jnp.concatenate([x, features], -1))
    h = nn.silu(h + layers.Linear(8, name="noise")(c_noise[:, None])[:, None, None])
    return {name: layers.Conv(width, name=name)(h) for name, width in self.heads}


def network_from_config(config, heads, seen=None, **options):
  """In place of `methods.base.network_from_config`."""
  shape = conditions.condition_shape(config)
  return conditional.Conditional(Toy(heads, ((shape[0], 4),)), Features(seen), shape)


def get_config():
  c = tiny.get_config()
  c.method = "decoupled"
  c.task.name = "inpaint"
  c.data.num_classes = 0
  c.label_dropout = 0.0
  c.sampling.update(sampler="decoupled", grid="decoupled", num_steps=3)
  return c
