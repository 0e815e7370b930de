"""A U-Net that sees an earlier estimate x̄_0 of the image beside the noisy one.

    attention:   heads = unet(x, c_noise, tokens = L x̄_0)                                                        (1)
    concat:      heads = unet([x, x̄_0], c_noise)                                                                 (2)

In (1) blocks attend to the pixels of x̄_0, and L is a 1×1 convolution. With positions these pixels, and those that
attend to them, carry codes of their places; without, as in the published code, attention cannot tell where in x̄_0 a
value stands. Source: Zhang et al. 2024 (DDDM).
"""

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.nets import layers
from diffusion_jax.nets.unet import UNet
from diffusion_jax.types import Array, Key


class Estimated(nn.Module):
  """Equations (1) and (2). The U-Net's parameters have the names that they have by themselves, L's is "estimate".

  Attributes:
    unet: with tokens for "attention", whose width is that of L; without for "concat".
    conditioning: "attention" or "concat".
    positions: pixels carry codes of their places in (1).
  """

  unet: UNet
  conditioning: str = "attention"
  positions: bool = True

  def __post_init__(self):
    if self.conditioning not in ("attention", "concat"):
      raise ValueError(f"conditioning = {self.conditioning!r}: expected one of attention, concat")
    if (self.conditioning == "attention") != (self.unet.tokens > 0):
      expected = "a positive width" if self.conditioning == "attention" else "0"
      raise ValueError(f"network.tokens = {self.unet.tokens}: expected {expected} for {self.conditioning}")
    super().__post_init__()

  def setup(self):
    nn.share_scope(self, self.unet)
    if self.conditioning == "attention":
      self.estimate = layers.Linear(self.unet.tokens, self.unet.block.init, dtype=self.unet.dtype)

  def __call__(
    self,
    x: Array,
    c_noise: Array,
    labels: Array | None = None,
    augment: Array | None = None,
    dropout_keys: Key | None = None,
    context: Array | None = None,
  ) -> dict[str, Array]:
    """The U-Net's heads, see `UNet`; `context` is x̄_0 [B, H, W, C], which is of x's shape."""
    shape = None if context is None else jnp.shape(context)
    if shape != jnp.shape(x) or len(shape) != 4:
      seen = "None" if shape is None else f"shape {list(shape)}"
      raise ValueError(f"context must be an estimate [B, H, W, C] of x's shape {list(jnp.shape(x))}, got {seen}")
    if self.conditioning == "concat":
      return self.unet(jnp.concatenate([x, context], -1), c_noise, labels, augment, dropout_keys)
    tokens = self.estimate(context).reshape(shape[0], -1, self.unet.tokens)
    positions = layers.pixel_centers(*shape[1:3]) if self.positions else None
    return self.unet(x, c_noise, labels, augment, dropout_keys, tokens=tokens, token_positions=positions)
