"""A classifier of noisy images: the encoder half of a U-Net, its middle blocks, and attention pooling.

    z = (mean_i h_i, h_1, ..., h_N) + positions,   h = silu(norm y), y the middle's output of N pixels              (1)
    logits = proj attention(qkv z)_0                                                                              (2)

What it shares with the U-Net of the same fields has that one's names: either starts from the other's encoder by
config.init_only. Source: Dhariwal and Nichol 2021 (Section 4, and the pooling of CLIP that they take).
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.nets import blocks, layers, unet
from diffusion_jax.nets.layers import GroupNorm, Linear
from diffusion_jax.types import Array, Key


class AttentionPool(nn.Module):
  """Equations (1) and (2): [B, H, W, C] -> [B, features], in float32."""

  features: int
  style: blocks.BlockStyle
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, height, width, channels = x.shape
    head = self.style.head_channels or channels
    x = nn.silu(GroupNorm(self.style.eps, name="norm")(x)).reshape(batch, height * width, channels)
    positions = nn.initializers.normal(1 / math.sqrt(channels))
    positions = self.param("positions", positions, (1 + height * width, channels))
    z = jnp.concatenate([x.mean(1, keepdims=True), x], 1) + positions
    qkv = Linear(3 * channels, self.style.init_qkv, dtype=self.dtype, name="qkv")(z)
    qkv = qkv.reshape(batch, 1 + height * width, channels // head, head, 3)  # ordered as in blocks.Block
    pooled = layers.attention(qkv[:, :1, ..., 0], qkv[..., 1], qkv[..., 2])  # of token 0 alone: the others are not seen
    return Linear(self.features, self.style.init, name="proj")(pooled.reshape(batch, channels))


class Classifier(unet.UNet):
  """A U-Net with attention pooling in place of its decoder; its one head is that of the logits. Made by `over`."""

  @nn.compact
  def __call__(self, x: Array, c_noise: Array, dropout_keys: Key | None = None) -> Array:
    """Evaluates the network.

    Args:
      x: images [B, resolution, resolution, C], already scaled.
      c_noise: [B] or a scalar, what the noise embedding sees.
      dropout_keys: [B] PRNG keys, one an image; None turns dropout off.

    Returns:
      Logits [B, classes] in float32.

    Raises:
      ValueError: an argument has the wrong shape.
    """
    emb = self._embed(self._checked(x, c_noise, dropout_keys)).astype(self.dtype)
    lowest = self._encode(jnp.asarray(x, self.dtype), emb, dropout_keys)[-1]
    ((_, classes),) = self.heads
    return AttentionPool(classes, self.block, self.dtype, name="pool")(self._middle(lowest, emb, dropout_keys))


def over(network: unet.UNet, num_classes: int) -> Classifier:
  """The classifier with the encoder and the middle blocks of a U-Net; it is given no labels, context or tokens.

      over(unet.adm(resolution=128, channels=128, channel_mult=(1, 1, 2, 3, 4), num_blocks=2), 1000)

  which is ADM's for ImageNet-128.

  Raises:
    ValueError: num_classes is not positive.
  """
  if num_classes < 1:
    raise ValueError(f"num_classes must be at least 1, got {num_classes}")
  names = [field.name for field in dataclasses.fields(unet.UNet) if field.name not in ("parent", "name")]
  fields = {name: getattr(network, name) for name in names}
  fields |= {"heads": (("logits", num_classes),), "decoders": 1, "num_classes": 0, "augment_dim": 0}
  fields |= {"context": (), "cross_attention": (), "tokens": 0, "token_attention": (), "token_bottleneck": False}
  return Classifier(**fields)
