"""A U-Net that sees an image beside the noisy one: encoders of a condition, joined to the U-Net's levels.

    f_1, ..., f_k = encoder(condition);   heads = unet(x, c_noise, f_i of the sizes that the U-Net has)          (1)

A sampler evaluates the U-Net at every step, the encoder once: `Conditional` takes the condition or its features. How
features are joined, by concatenation and attention, is in unet.py. Source: Huang et al., B.2: an encoder like the
U-Net's own, or a Swin Transformer, whose stages begin at a quarter of the condition's size.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.nets import autoencoder, layers, swin
from diffusion_jax.nets.unet import UNet
from diffusion_jax.types import Array, Key

_INIT = layers.Init(math.sqrt(1 / 3), "fan_in", bias=True)


class ConvEncoder(nn.Module):
  """Residual blocks that halve the condition from level to level: [B, h, w, c] -> level i [B, h/2^i, w/2^i, widths[i]].

  Attributes:
    widths: channels of each level, of as many as `layers.num_groups` divides.
  """

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, condition: Array) -> tuple[Array, ...]:
    x, features = layers.Conv(self.widths[0], _INIT, name="conv_in")(condition), []
    for level, width in enumerate(self.widths):
      x = autoencoder.Block(width, name=f"level_{level}")(x)
      features.append(x)
      if level < len(self.widths) - 1:
        x = autoencoder.Halved(width, name=f"down_{level}")(x)
    return tuple(features)

  def sizes(self, resolution: int) -> list[tuple[int, int]]:
    """(size, channels) of each feature of a condition of resolution × resolution."""
    return [(resolution >> level, width) for level, width in enumerate(self.widths)]


class SwinEncoder(nn.Module):
  """The four stages of a Swin Transformer, of a condition [B, h, w, 3] in [−1, 1].

  Attributes:
    variant: "t", "s" or "b".
    upsample: how many times the condition is enlarged before, bilinearly.
  """

  variant: str = "b"
  upsample: int = 1

  def setup(self):
    self.swin = swin.of_variant(self.variant)

  def __call__(self, condition: Array) -> tuple[Array, ...]:
    batch, height, width, channels = condition.shape
    if self.upsample > 1:
      shape = (batch, self.upsample * height, self.upsample * width, channels)
      condition = jax.image.resize(condition, shape, "bilinear")
    return self.swin(swin.standardized(condition))

  def sizes(self, resolution: int) -> list[tuple[int, int]]:
    """(size, channels) of each stage of a condition of resolution × resolution."""
    channels, depths, _ = swin.VARIANTS[self.variant]
    first = self.upsample * resolution // swin.PATCH
    return [(-(-first // 2**stage), channels << stage) for stage in range(len(depths))]


class Conditional(nn.Module):
  """Equation (1). The U-Net's parameters have the names that they have without a condition, the encoder's "encoder/…".

  Attributes:
    unet: with the (size, channels) of the features that it takes for its `context`.
    encoder: condition -> features, of which the last of each size counts.
    shape: (h, w, c) of the condition.
  """

  unet: UNet
  encoder: nn.Module
  shape: tuple[int, int, int]

  def setup(self):
    nn.share_scope(self, self.unet)

  def __call__(
    self,
    x: Array,
    c_noise: Array,
    labels: Array | None = None,
    augment: Array | None = None,
    dropout_keys: Key | None = None,
    context: Array | tuple[Array, ...] | None = None,
  ) -> dict[str, Array]:
    """The U-Net's heads, see `UNet`; `context` is the condition [B, h, w, c] or what `encode` made of it, or None."""
    if context is not None and not isinstance(context, tuple):
      context = self.encode(context)
    return self.unet(x, c_noise, labels, augment, dropout_keys, context)

  def encode(self, condition: Array) -> tuple[Array, ...]:
    """The features of a condition [B, h, w, c] that the U-Net takes, in its order; ValueError for another shape."""
    if jnp.ndim(condition) != 4 or jnp.shape(condition)[1:] != self.shape:
      expected = ", ".join(map(str, self.shape))
      raise ValueError(f"condition must be [B, {expected}], got shape {list(jnp.shape(condition))}")
    found = {feature.shape[1]: feature for feature in self.encoder(condition)}
    return tuple(found[size] for size, _ in self.unet.context)
