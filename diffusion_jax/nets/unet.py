"""One U-Net: DDPM++, NCSN++ and ADM are settings of it; a second decoder, or a branch, and named heads serve every
method.

    emb = silu(L_1 silu(L_0 embed(c_noise)))                      plus labels and augmentation, where the style says

The network knows nothing of diffusion: its input is already scaled, c_noise is any number an image, and heads are
channels with names. Submodules have the names of the published state dicts ("enc.16x16_block0" is enc_16x16_block0).
A condition's features are joined at the end of the encoder's level of their resolution: every decoder sees them. Tokens
are what blocks attend to beside their own pixels. Blocks are in blocks.py. Sources: Karras et al. 2022 (Appendix F),
Song et al. 2021, Dhariwal and Nichol 2021.
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.nets import layers, unet_fields
from diffusion_jax.nets.blocks import ADM, SONG, Block, BlockStyle, CrossAttention, Join
from diffusion_jax.nets.layers import Conv, GroupNorm, Linear
from diffusion_jax.types import Array, Key

_Tokens = tuple[Array | None, Array | None]  # tokens and their positions


class UNet(nn.Module):
  """U-Net over square images with named heads.

  Attributes:
    heads: pairs (name, channels). One decoder's output channels are split among them in order.
    decoders: 1, or len(heads): each head then has a complete decoder of its own over the shared encoder.
    branch: the last head comes from a branch of two 3×3 convolutions over the features before the one decoder's output
      layers, which put out the others (Huang et al., Table 5).
    resolution: height and width of the images.
    channels: base width; level i has channels·channel_mult[i] at resolution/2^i.
    num_blocks: blocks an encoder level; a decoder level has one more.
    attention_resolutions: resolutions at which blocks attend (the first bottleneck block always does).
    num_heads: of every attention, whatever its width; 0 is the block style's head_channels.
    dropout: probability of zeroing an activation, where the call is given dropout_keys.
    num_classes: width of one-hot labels, 0 for none.
    augment_dim: width of augmentation labels, 0 for none.
    block: SONG or ADM, or a BlockStyle of your own.
    embedding: of c_noise, "positional" or "fourier".
    embedding_mult: the embedding has channels·embedding_mult numbers.
    encoder: "standard"; "skip" adds the downsampled image to every level; "residual" passes it through convolutions.
    decoder: "standard"; "skip" sums an output from every level.
    resample_filter: taps of the separable filter of every change of resolution, an even number of them.
    freqs: frequencies of a Fourier embedding; None is the fixed draw that every network of this width shares. They
      are a constant of the architecture, not parameters: nothing trains, decays, averages or counts them.
    dtype: float32, bfloat16 or float16 for products; statistics, softmax, output layers, parameters stay float32.
    remat: recompute blocks in the backward pass rather than storing their activations.
    context: pairs (resolution, channels) of the features of a condition, each joined to the level of that resolution by
      concatenation; none for a network without a condition.
    cross_attention: those of context's resolutions where the level attends to the condition too.
    tokens: width of the tokens that blocks attend to, 0 for none.
    token_attention: resolutions at which every block of the encoder and the decoders attends to the tokens, after its
      attention to itself; those of the bottleneck, and those that change the resolution, do not.
    token_bottleneck: the first bottleneck block attends to the tokens.
  """

  heads: tuple[tuple[str, int], ...] = (("out", 3),)
  decoders: int = 1
  branch: bool = False
  resolution: int = 32
  channels: int = 128
  channel_mult: tuple[int, ...] = (2, 2, 2)
  num_blocks: int = 4
  attention_resolutions: tuple[int, ...] = (16,)
  num_heads: int = 0
  dropout: float = 0.0
  num_classes: int = 0
  augment_dim: int = 0
  block: BlockStyle = SONG
  embedding: str = "positional"
  embedding_mult: int = 1
  encoder: str = "standard"
  decoder: str = "standard"
  resample_filter: tuple[float, ...] = (1, 1)
  freqs: tuple[float, ...] | None = None
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  context: tuple[tuple[int, int], ...] = ()
  cross_attention: tuple[int, ...] = ()
  tokens: int = 0
  token_attention: tuple[int, ...] = ()
  token_bottleneck: bool = False

  def __post_init__(self):
    tuples = ("heads", "channel_mult", "attention_resolutions", "resample_filter", "freqs", "context")
    for name in (*tuples, "cross_attention", "token_attention"):
      object.__setattr__(self, name, _frozen(getattr(self, name)))
    self.validate()
    super().__post_init__()

  def validate(self):
    """Raises ValueError for a network that cannot be built: one line with the field, its value, what was expected."""
    unet_fields.check(self)

  @nn.compact
  def __call__(
    self,
    x: Array,
    c_noise: Array,
    labels: Array | None = None,
    augment: Array | None = None,
    dropout_keys: Key | None = None,
    context: tuple[Array, ...] | None = None,
    tokens: Array | None = None,
    token_positions: Array | None = None,
  ) -> dict[str, Array]:
    """Evaluates the network.

    Args:
      x: images [B, resolution, resolution, C], already scaled.
      c_noise: [B] or a scalar, what the noise embedding sees.
      labels: [B, num_classes] one-hot; zeros, or None, is no label.
      augment: [B, augment_dim] augmentation labels; zeros, or None, is no augmentation.
      dropout_keys: [B] PRNG keys, one an image; None turns dropout off.
      context: features [B, resolution, resolution, channels] for the network's pairs in `context`, in their order;
        zeros, or None, is no condition.
      tokens: [B, L, width] for a network that attends to tokens, of any number L.
      token_positions: [L, 2] rows and columns of the tokens in the image as the unit square; given them, tokens and
        the pixels that attend to them carry fixed codes of their places.

    Returns:
      {head: [B, resolution, resolution, channels of the head]} in float32.

    Raises:
      ValueError: an argument has the wrong shape.
    """
    c_noise = self._checked(x, c_noise, dropout_keys)
    labels = _vectors("labels", labels, c_noise.shape[0], self.num_classes)
    augment = _vectors("augment", augment, c_noise.shape[0], self.augment_dim)
    context = self._conditions(context, c_noise.shape[0])
    tokens = self._checked_tokens(tokens, token_positions, c_noise.shape[0])

    emb = self._embed(c_noise, labels, augment).astype(self.dtype)
    skips = self._encode(jnp.asarray(x, self.dtype), emb, dropout_keys, context, tokens)
    if self.decoders > 1:
      decode = lambda name, width: self._decode(skips, emb, dropout_keys, width, f"{name}_", tokens=tokens)
      return {name: decode(name, width) for name, width in self.heads}
    shared = self.heads[:-1] if self.branch else self.heads
    heads, start = {}, 0
    total = sum(width for _, width in shared)
    out, x = self._decode(skips, emb, dropout_keys, total, features=True, tokens=tokens)
    for name, width in shared:
      heads[name] = out[..., start : start + width]
      start += width
    if self.branch:
      name, width = self.heads[-1]
      heads[name] = self._branch(x, name, width)
    return heads

  def _checked(self, x: Array, c_noise: Array, dropout_keys: Key | None) -> Array:
    """c_noise as float32 [B]; raises ValueError if an argument has the wrong shape."""
    batch = jnp.shape(x)[0] if jnp.ndim(x) else 0
    if jnp.shape(x)[:3] != (batch, self.resolution, self.resolution) or jnp.ndim(x) != 4:
      raise ValueError(f"x must be [B, {self.resolution}, {self.resolution}, C], got shape {list(jnp.shape(x))}")
    if jnp.shape(c_noise) not in ((), (1,), (batch,)):
      raise ValueError(f"c_noise must be a scalar or [{batch}], got shape {list(jnp.shape(c_noise))}")
    if dropout_keys is not None and jnp.shape(dropout_keys) != (batch,):
      raise ValueError(f"dropout_keys must be [{batch}] typed keys, got shape {list(jnp.shape(dropout_keys))}")
    return jnp.broadcast_to(jnp.asarray(c_noise, jnp.float32), (batch,))

  def _conditions(self, context: tuple[Array, ...] | None, batch: int) -> dict[int, Array]:
    """{resolution: features of the condition}, zeros for None; raises ValueError if they do not fit self.context."""
    shapes = [(batch, size, size, width) for size, width in self.context]
    if context is None:
      return {shape[1]: jnp.zeros(shape) for shape in shapes}
    if not isinstance(context, (tuple, list)) or [jnp.shape(c) for c in context] != shapes:
      seen = [list(jnp.shape(c)) for c in context] if isinstance(context, (tuple, list)) else type(context).__name__
      wanted = f"a tuple of shapes {[list(shape) for shape in shapes]}" if shapes else "None for this network"
      raise ValueError(f"context must be {wanted}, got {seen}")
    return {shape[1]: c for shape, c in zip(shapes, context)}

  def _checked_tokens(self, tokens: Array | None, positions: Array | None, batch: int) -> _Tokens:
    """Tokens and their positions; raises ValueError if one has the wrong shape."""
    seen = lambda value: "None" if value is None else f"shape {list(jnp.shape(value))}"
    if not self.tokens:
      for name, value in (("tokens", tokens), ("token_positions", positions)):
        if value is not None:
          raise ValueError(f"{name} must be None for this network, got {seen(value)}")
    elif tokens is None or jnp.ndim(tokens) != 3 or jnp.shape(tokens)[::2] != (batch, self.tokens):
      raise ValueError(f"tokens must be [{batch}, L, {self.tokens}], got {seen(tokens)}")
    elif positions is not None and jnp.shape(positions) != (jnp.shape(tokens)[1], 2):
      raise ValueError(f"token_positions must be [{jnp.shape(tokens)[1]}, 2], got {seen(positions)}")
    return tokens, positions

  def _embed(self, c_noise: Array, labels: Array | None = None, augment: Array | None = None) -> Array:
    style, width = self.block, self.channels * self.embedding_mult
    if self.embedding == "fourier":
      emb = layers.fourier_embedding(c_noise, self.freqs or layers.fourier_freqs(width // 2))
    else:
      emb = layers.positional_embedding(c_noise, width, style.endpoint)
    if style.sines_first:
      emb = jnp.roll(emb, width // 2, axis=1)
    if labels is not None and not style.late_labels:  # √classes gives a one-hot vector unit mean square
      emb += Linear(width, style.init_label, name="map_label")(labels * math.sqrt(self.num_classes))
    if augment is not None:
      emb += Linear(width, style.init_augment, use_bias=False, name="map_augment")(augment)
    emb = nn.silu(Linear(4 * self.channels, style.init, name="map_layer0")(emb))
    emb = Linear(4 * self.channels, style.init, name="map_layer1")(emb)
    if labels is not None and style.late_labels:
      emb += Linear(4 * self.channels, style.init_label, use_bias=False, name="map_label")(labels)
    return nn.silu(emb)

  def _encode(
    self,
    x: Array,
    emb: Array,
    keys: Key | None,
    context: dict[int, Array] | None = None,
    tokens: _Tokens = (None, None),
  ) -> list[Array]:
    """Every encoder output, the lowest last; `context` holds the features to join, by resolution."""
    skips, aux = [], x
    for level, mult in enumerate(self.channel_mult):
      size = self.resolution >> level
      name = f"enc_{size}x{size}"
      if level == 0:
        x = Conv(self.channels, self.block.init, dtype=self.dtype, name=f"{name}_conv")(x)
      else:
        x = self._block(x.shape[-1], f"{name}_down", resample="down")(x, emb, keys)
        if self.encoder == "skip":
          aux = layers.downsample(aux, self.resample_filter)
          x += Linear(x.shape[-1], self.block.init, dtype=self.dtype, name=f"{name}_aux_skip")(aux)
        elif self.encoder == "residual":  # the filter's own padding is taken by the convolution, on the wider image
          padding = 1 + (len(self.resample_filter) - 1) // 2
          wide = Conv(x.shape[-1], self.block.init, padding, self.dtype, name=f"{name}_aux_residual")(aux)
          x = aux = (x + layers.downsample(wide, self.resample_filter, padding=0)) * math.sqrt(0.5)
      skips.append(x)
      for i in range(self.num_blocks):
        attend = size in self.attention_resolutions
        x = self._block(self.channels * mult, f"{name}_block{i}", attend=attend)(x, emb, keys)
        if size in self.token_attention:
          x = self._cross(f"{name}_block{i}_tokens")(x, *tokens)
        skips.append(x)
      if context and size in context:
        x = skips[-1] = self._join(f"{name}_join", size in self.cross_attention)(x, context[size])
    return skips

  def _middle(self, x: Array, emb: Array, keys: Key | None, head: str = "", tokens: _Tokens = (None, None)) -> Array:
    """The two blocks at the lowest resolution between encoder and decoder."""
    size = self.resolution >> (len(self.channel_mult) - 1)
    x = self._block(x.shape[-1], f"dec_{head}{size}x{size}_in0", attend=True)(x, emb, keys)
    if self.token_bottleneck:
      x = self._cross(f"dec_{head}{size}x{size}_in0_tokens")(x, *tokens)
    return self._block(x.shape[-1], f"dec_{head}{size}x{size}_in1")(x, emb, keys)

  def _decode(
    self,
    skips: list[Array],
    emb: Array,
    keys: Key | None,
    width: int,
    head: str = "",
    features: bool = False,
    tokens: _Tokens = (None, None),
  ) -> Array | tuple[Array, Array]:
    """One decoder, [B, H, W, width] in float32; `head` tells its names from another decoder's.

    With `features` also what its last output layers are given, [B, H, W, channels·channel_mult[0]].
    """
    skips, lowest, out = list(skips), len(self.channel_mult) - 1, None
    x = skips[-1]
    for level in range(lowest, -1, -1):
      size = self.resolution >> level
      name = f"dec_{head}{size}x{size}"
      if level == lowest:
        x = self._middle(x, emb, keys, head, tokens)
      else:
        x = self._block(x.shape[-1], f"{name}_up", resample="up")(x, emb, keys)
      for i in range(self.num_blocks + 1):
        last = i == self.num_blocks
        attend = size in self.attention_resolutions and (last or self.block.attend_every_block)
        x = jnp.concatenate([x, skips.pop()], -1)
        x = self._block(self.channels * self.channel_mult[level], f"{name}_block{i}", attend=attend)(x, emb, keys)
        if size in self.token_attention:
          x = self._cross(f"{name}_block{i}_tokens")(x, *tokens)
      if level == 0 or self.decoder == "skip":
        plain = self.block.plain_output and self.decoder == "standard"
        name = f"out_{head}".removesuffix("_") if plain else f"{name}_aux"
        y = nn.silu(GroupNorm(self.block.eps, name=f"{name}_norm")(x))
        y = Conv(width, self.block.init_zero, name=f"{name}_conv")(y)
        out = y if out is None else y + layers.upsample(out, self.resample_filter)
    return (out, x) if features else out

  def _branch(self, x: Array, head: str, width: int) -> Array:
    """Two convolutions at the full resolution; the first keeps the number of channels."""
    h = nn.silu(GroupNorm(self.block.eps, name=f"branch_{head}_norm0")(x)).astype(self.dtype)
    h = Conv(x.shape[-1], self.block.init, dtype=self.dtype, name=f"branch_{head}_conv0")(h)
    h = nn.silu(GroupNorm(self.block.eps, name=f"branch_{head}_norm1")(h))
    return Conv(width, self.block.init_zero, name=f"branch_{head}_conv1")(h)

  def _block(self, features: int, name: str, **kwargs) -> nn.Module:
    make = nn.remat(Block) if self.remat else Block
    return make(
      features, self.block, num_heads=self.num_heads, resample_filter=self.resample_filter, dropout=self.dropout,
      dtype=self.dtype, name=name, **kwargs,
    )  # fmt: skip

  def _join(self, name: str, attend: bool) -> nn.Module:
    return (nn.remat(Join) if self.remat else Join)(self.block, attend, self.num_heads, self.dtype, name=name)

  def _cross(self, name: str) -> nn.Module:
    make = nn.remat(CrossAttention) if self.remat else CrossAttention
    return make(self.block, self.num_heads, self.dtype, name=name)


def _frozen(value):
  """Lists, as JSON and YAML have them, become tuples: a network is hashable."""
  return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def _vectors(name: str, value: Array | None, batch: int, width: int) -> Array | None:
  """`value` as float32 [B, width], zeros for None; None if the network has no such input."""
  if value is not None and jnp.shape(value) != (batch, width):
    expected = f"[{batch}, {width}]" if width else "None for this network"
    raise ValueError(f"{name} must be {expected}, got shape {list(jnp.shape(value))}")
  if not width:
    return None
  return jnp.zeros((batch, width)) if value is None else jnp.asarray(value, jnp.float32)


def _preset(defaults: dict, overrides: dict) -> UNet:
  fields = [f.name for f in dataclasses.fields(UNet) if f.name not in ("parent", "name")]
  for name in overrides:
    if name not in fields:
      raise ValueError(f"network.{name}: no such field{unet_fields.nearest(name, fields)}")
  return UNet(**{**defaults, **overrides})


def ddpmpp(**kwargs) -> UNet:
  """DDPM++ as Karras et al. 2022 train it on CIFAR-10: 128 × (2, 2, 2), 55.7M parameters; kwargs override fields."""
  return _preset({}, kwargs)


def ncsnpp(**kwargs) -> UNet:
  """NCSN++ with its residual input path and [1, 3, 3, 1] filter, 56.4M parameters on CIFAR-10."""
  taps = (1, 3, 3, 1)
  return _preset(dict(embedding="fourier", embedding_mult=2, encoder="residual", resample_filter=taps), kwargs)


def adm(**kwargs) -> UNet:
  """ADM as Karras et al. 2022 train it on ImageNet-64: 192 × (1, 2, 3, 4), 295.9M parameters with 1000 classes."""
  defaults = dict(
    block=ADM, resolution=64, channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3, attention_resolutions=(32, 16, 8),
    dropout=0.1,
  )  # fmt: skip
  return _preset(defaults, kwargs)
