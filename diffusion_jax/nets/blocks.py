"""Blocks of the U-Net: residual, with or without attention and a change of resolution, and the joining of other inputs.

    h   = conv_1 drop silu(norm_1(conv_0 silu(norm_0 x) + affine(emb)))                        Song et al. 2021   (1)
    h   = conv_1 drop silu(norm_1(conv_0 silu(norm_0 x))·(1 + scale(emb)) + shift(emb))        ADM                (2)
    y   = (skip(x) + h)·skip_scale;   y = (y + proj attention(qkv norm_2 y))·skip_scale where a block attends     (3)
    y   = x + proj_0 silu([norm_0 x, e]);   y = y + proj_1 attention(q norm_1 y, kv e);   e = embed(c)            (4)
    y   = (x + proj attention(q (norm x + p), kv (tokens + p')))·skip_scale                                       (5)

(4) joins a condition's features c to those of the same resolution; its projections start at zero, where x is left as it
is. (5) attends to tokens from anywhere; p and p', where given, are codes of the places of pixels and tokens. Sources:
Song et al. 2021, Dhariwal and Nichol 2021; Huang et al. (B.2) for what is joined, by concatenation and attention; Zhang
et al. 2024 for tokens.
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.nets import layers
from diffusion_jax.nets.layers import Conv, GroupNorm, Init, Linear
from diffusion_jax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class BlockStyle:
  """What differs between the blocks of Song et al. and those of ADM.

  Attributes:
    scale_shift: the embedding scales and shifts the normalised activations (2), or is added before it (1).
    skip_scale: multiplies every residual sum (3).
    eps: of every GroupNorm.
    project_resampled: up- and downsampling blocks always project their skip, not only where channels change.
    head_channels: channels of an attention head; None is a single head.
    attend_every_block: decoder blocks at an attention resolution all attend, or the last one alone.
    endpoint: the positional frequencies run to exactly 1/10000.
    sines_first: the noise embedding is [sin, cos] rather than [cos, sin].
    late_labels: labels are added after the second linear map, without bias, or to the noise embedding, with one.
    plain_output: the standard decoder's output layers are named out_norm and out_conv, without a resolution.
    init: weights; init_zero: second convolutions, projections, outputs; init_qkv: queries, keys and values.
    init_label: map of labels; init_augment: map of augmentation labels.
  """

  scale_shift: bool
  skip_scale: float
  eps: float
  project_resampled: bool
  head_channels: int | None
  attend_every_block: bool
  endpoint: bool
  sines_first: bool
  late_labels: bool
  plain_output: bool
  init: Init
  init_zero: Init
  init_qkv: Init
  init_label: Init
  init_augment: Init


SONG = BlockStyle(
  scale_shift=False, skip_scale=math.sqrt(0.5), eps=1e-6, project_resampled=True, head_channels=None,
  attend_every_block=False, endpoint=True, sines_first=True, late_labels=False, plain_output=False,
  init=Init(), init_zero=Init(1e-5), init_qkv=Init(math.sqrt(0.2)), init_label=Init(), init_augment=Init(),
)  # fmt: skip

_UNIT = Init(math.sqrt(1 / 3), "fan_in", bias=True)  # U(±√(1/fan_in))
ADM = BlockStyle(
  scale_shift=True, skip_scale=1.0, eps=1e-5, project_resampled=False, head_channels=64,
  attend_every_block=True, endpoint=False, sines_first=False, late_labels=True, plain_output=True,
  init=_UNIT, init_zero=Init(0.0), init_qkv=_UNIT, init_label=Init(1.0, "one"), init_augment=Init(0.0),
)  # fmt: skip


class Block(nn.Module):
  """Residual block with an optional change of resolution and optional attention, equations (1)-(3)."""

  features: int
  style: BlockStyle
  attend: bool = False
  num_heads: int = 0
  resample: str | None = None  # "up", "down"
  resample_filter: tuple[float, ...] = (1, 1)
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, emb: Array, dropout_keys: Key | None = None) -> Array:
    style, dtype = self.style, self.dtype
    norm = lambda name: GroupNorm(style.eps, name=name)
    x = layers.backward_once(x, emb)

    h = self._resampled(nn.silu(norm("norm0")(x)).astype(dtype))
    h = Conv(self.features, style.init, dtype=dtype, name="conv0")(h)
    affine = Linear(self.features * (1 + style.scale_shift), style.init, dtype=dtype, name="affine")(emb)
    affine = affine.astype(jnp.float32)[:, None, None, :]
    if style.scale_shift:
      scale, shift = jnp.split(affine, 2, -1)
      h = nn.silu(norm("norm1")(h) * (1 + scale) + shift)
    else:
      h = nn.silu(norm("norm1")(h + affine))
    h = layers.dropout(h, self.dropout, dropout_keys, self.path).astype(dtype)
    h = Conv(self.features, style.init_zero, dtype=dtype, name="conv1")(h)

    skip = self._resampled(x)
    if x.shape[-1] != self.features or (self.resample and style.project_resampled):
      skip = Linear(self.features, style.init, dtype=dtype, name="skip")(skip)
    x = (skip + h) * style.skip_scale
    return (x + self._attention(norm("norm2")(x).astype(dtype))) * style.skip_scale if self.attend else x

  def _resampled(self, x: Array) -> Array:
    if self.resample == "down":
      return layers.downsample(x, self.resample_filter)
    return layers.upsample(x, self.resample_filter) if self.resample == "up" else x

  def _attention(self, x: Array) -> Array:
    """Channels of qkv are ordered (head, channel, {q, k, v})."""
    batch, height, width, channels = x.shape
    heads = attention_heads(self.style, self.num_heads, channels)
    qkv = Linear(3 * channels, self.style.init_qkv, dtype=self.dtype, name="qkv")(x)
    qkv = qkv.reshape(batch, height * width, heads, channels // heads, 3)
    y = layers.attention(qkv[..., 0], qkv[..., 1], qkv[..., 2]).reshape(x.shape)
    return Linear(channels, self.style.init_zero, dtype=self.dtype, name="proj")(y)


class Join(nn.Module):
  """Equation (4): image features x [B, h, w, C] and a condition's c [B, h, w, D] -> [B, h, w, C]."""

  style: BlockStyle
  attend: bool = False
  num_heads: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, c: Array) -> Array:
    batch, height, width, channels = x.shape
    linear = lambda features, law, name: Linear(features, law, dtype=self.dtype, name=name)
    norm = lambda name, value: GroupNorm(self.style.eps, name=name)(value)
    e = linear(channels, self.style.init, "embed")(c)  # not normalised: of a flat condition nothing would be left
    # Concatenation and a projection: a wider block would do the same, and would not fit unconditional weights.
    joined = nn.silu(jnp.concatenate([norm("norm0", x), e], -1))
    x = x + linear(channels, Init(0.0), "proj0")(joined)
    if not self.attend:
      return x
    y = _cross_attention(norm("norm1", x), e.reshape(batch, height * width, channels), self)
    return x + linear(channels, Init(0.0), "proj1")(y)


class CrossAttention(nn.Module):
  """Equation (5): image features x [B, h, w, C] attend to tokens [B, L, D] -> [B, h, w, C].

  With `positions` [L, 2], rows and columns of the tokens in the image as the unit square, tokens and pixels carry their
  places: a pixel's is its centre.
  """

  style: BlockStyle
  num_heads: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, tokens: Array, positions: Array | None = None) -> Array:
    height, width, channels = x.shape[1:]
    h = GroupNorm(self.style.eps, name="norm")(x)
    if positions is not None:
      own = layers.place_codes(layers.pixel_centers(height, width), channels)
      h = h + own.reshape(height, width, channels)
      tokens = tokens + layers.place_codes(positions, tokens.shape[-1])
    y = _cross_attention(h, tokens, self)
    y = Linear(channels, self.style.init_zero, dtype=self.dtype, name="proj")(y)
    return (x + y) * self.style.skip_scale


def _cross_attention(x: Array, tokens: Array, module: Join | CrossAttention) -> Array:
  """Pixels of x [B, h, w, C] attend to tokens [B, L, D]; `module`, which calls this, has the parameters q and kv.

  Channels of kv are ordered (head, channel, {k, v}).
  """
  channels = x.shape[-1]
  heads = attention_heads(module.style, module.num_heads, channels)
  linear = lambda features, name: Linear(features, module.style.init_qkv, dtype=module.dtype, name=name)
  split = lambda z, *parts: z.reshape(x.shape[0], -1, heads, channels // heads, *parts)
  q, kv = split(linear(channels, "q")(x)), split(linear(2 * channels, "kv")(tokens), 2)
  return layers.attention(q, kv[..., 0], kv[..., 1]).reshape(x.shape)


def attention_heads(style: BlockStyle, num_heads: int, width: int) -> int:
  """The number of heads of an attention over `width` channels: `num_heads`, or if that is 0 the style's."""
  return num_heads or width // (style.head_channels or width)
