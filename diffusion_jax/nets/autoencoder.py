"""The KL-regularised autoencoder of latent diffusion: images to a few channels at a quarter of the size, and back.

    (μ, log σ²) = quant_conv encoder(x),   log σ² clipped to [−30, 20]                                  (1)
    z = μ + σ·ε,   x̂ = decoder(post_quant_conv z)                                                       (2)
    KL = ½ Σ (μ² + σ² − 1 − log σ²)                                                                     (3)

Levels are residual blocks without an embedding; the encoder's last and the decoder's first have one attention between
two of them. Submodules have the names of the published state dict ("encoder.down.0.block.1" is
encoder/down_0_block_1). Source: Rombach et al. 2022; padding and epsilons are the published code's.
"""

import math
import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import types
from diffusion_jax.nets import layers, pretrained, tiles
from diffusion_jax.nets.layers import Conv, GroupNorm, Init, Linear
from diffusion_jax.types import Array, Key, Params

_INIT = Init(math.sqrt(1 / 3), "fan_in", bias=True)  # U(±√(1/fan_in)), of every layer
_EPS = 1e-6  # of every GroupNorm
_MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE = -30.0, 20.0
_PREFIX = "first_stage_model."  # of the autoencoder's tensors in a checkpoint of latent diffusion
_NAMES = (  # parts of a path here -> there
  (r"\b(down|up)_(\d+)_block_(\d+)", r"\1.\2.block.\3"),
  (r"\b(down|up)_(\d+)_(down|up)sample", r"\1.\2.\3sample.conv"),
  (r"\bmid_", "mid."),
)


class Autoencoder(nn.Module):
  """Encoder and decoder; the defaults are KL-f4. Halves the image len(channel_mult) − 1 times.

  Attributes:
    channels: of the first level; every width must be one that `layers.num_groups` divides.
    channel_mult: channels of each level as multiples of `channels`.
    num_blocks: residual blocks of a level of the encoder; the decoder has one more.
    latent_channels: of z.
    image_channels: of x.
  """

  channels: int = 128
  channel_mult: tuple[int, ...] = (1, 2, 4)
  num_blocks: int = 2
  latent_channels: int = 3
  image_channels: int = 3

  def __post_init__(self):
    object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
    self.validate()
    super().__post_init__()

  def validate(self):
    """Raises ValueError for a network that cannot be built: one line with the field, its value, what was expected."""
    whole = lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0
    for name in ("channels", "num_blocks", "latent_channels", "image_channels"):
      if not whole(getattr(self, name)):
        raise ValueError(f"autoencoder.{name} = {getattr(self, name)!r}: expected a positive integer")
    if not self.channel_mult or not all(whole(mult) for mult in self.channel_mult):
      raise ValueError(f"autoencoder.channel_mult = {self.channel_mult!r}: expected positive integers, one a level")
    for width in sorted({self.channels * mult for mult in self.channel_mult}):
      groups = layers.num_groups(width)
      if not groups or width % groups:
        expected = f"a value for which the {groups} GroupNorm groups divide {width} channels"
        raise ValueError(f"autoencoder.channels = {self.channels!r}: expected {expected}")

  def setup(self):
    widths = tuple(self.channels * mult for mult in self.channel_mult)
    self.encoder = Encoder(widths, self.num_blocks, 2 * self.latent_channels)
    self.decoder = Decoder(widths, self.num_blocks, self.image_channels)
    self.quant_conv = Linear(2 * self.latent_channels, _INIT)
    self.post_quant_conv = Linear(self.latent_channels, _INIT)

  @property
  def factor(self) -> int:
    """Pixels a side, of a pixel of z."""
    return 2 ** (len(self.channel_mult) - 1)

  def encode(self, x: Array) -> tuple[Array, Array]:
    """Equation (1): [B, H, W, C] in [−1, 1] -> (mean, log_variance), each [B, H/factor, W/factor, latent_channels]."""
    types.check_images("x", x, self.image_channels)
    if 0 in x.shape[1:3] or x.shape[1] % self.factor or x.shape[2] % self.factor:
      raise ValueError(f"x must have sides that are multiples of {self.factor}, got shape {list(x.shape)}")
    mean, log_variance = jnp.split(self.quant_conv(self.encoder(x)), 2, -1)
    return mean, jnp.clip(log_variance, _MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE)

  def decode(self, z: Array) -> Array:
    """Equation (2): [B, h, w, latent_channels] -> [B, factor·h, factor·w, C], about [−1, 1]."""
    types.check_images("z", z, self.latent_channels)
    return self.decoder(self.post_quant_conv(z))

  def __call__(self, x: Array, keys: Key | None = None) -> tuple[Array, Array, Array]:
    """(x̂, mean, log_variance) of images; z is `sample`d with keys [B], or the mean if they are None."""
    mean, log_variance = self.encode(x)
    return self.decode(mean if keys is None else sample(keys, mean, log_variance)), mean, log_variance


KL_F4 = Autoencoder()


def encode(params: Params, x: Array, network: Autoencoder = KL_F4) -> tuple[Array, Array]:
  """The posterior of z given images, equation (1), with products in full float32 on every device.

  Args:
    params: from `from_state_dict`, or of a trained network.
    x: [B, H, W, C] in [−1, 1]; H and W multiples of network.factor.
    network: what params belong to.

  Returns:
    (mean, log_variance), each [B, H/factor, W/factor, latent_channels], the latter in [−30, 20].

  Raises:
    ValueError: x of another shape.
  """
  with jax.default_matmul_precision("highest"):
    return network.apply({"params": params}, x, method="encode")


def decode(params: Params, z: Array, network: Autoencoder = KL_F4) -> Array:
  """Images of latents, equation (2): [B, h, w, latent_channels] -> [B, factor·h, factor·w, C], about [−1, 1].

  Raises:
    ValueError: z of another shape.
  """
  with jax.default_matmul_precision("highest"):
    return network.apply({"params": params}, z, method="decode")


def decode_tiled(params: Params, z: Array, network: Autoencoder = KL_F4, window: int = 64, overlap: int = 16) -> Array:
  """`decode` in windows of `window` pixels of z a side, blended over at least `overlap`: memory is that of one window.

  Attention and norms see a window and not the image: larger windows come nearer to `decode`, and one that covers z is
  it.

  Raises:
    ValueError: z of another shape, or an overlap that is not in 1..window − 1.
  """
  types.check_images("z", z, network.latent_channels)
  return tiles.apply(lambda part: decode(params, part, network), z, window, overlap, network.factor)


def sample(keys: Key, mean: Array, log_variance: Array) -> Array:
  """Draws z from the posterior, equation (2): that of image i from keys[i] alone; keys [B]."""
  return mean + jnp.exp(log_variance / 2) * types.normal(keys, 0, mean.shape[1:])


def kl_divergence(mean: Array, log_variance: Array) -> Array:
  """Equation (3), from the posterior to N(0, I), in nats an image: [B]."""
  return 0.5 * (jnp.square(mean) + jnp.expm1(log_variance) - log_variance).sum((1, 2, 3))


def from_state_dict(state_dict: Mapping[str, np.ndarray], network: Autoencoder = KL_F4) -> Params:
  """Parameters for `encode` and `decode`.

  Args:
    state_dict: name -> array in PyTorch layout: entry "state_dict" of an autoencoder's checkpoint, whose "loss.*" is
      not used, or of a latent-diffusion model's, where "first_stage_model.*" alone is.
    network: the network that it belongs to.

  Raises:
    ValueError: a tensor is missing, unexpected or of another shape.
  """
  inner = {name.removeprefix(_PREFIX): value for name, value in state_dict.items() if name.startswith(_PREFIX)}
  tensors = {name: value for name, value in (inner or state_dict).items() if not name.startswith("loss.")}
  image = jax.ShapeDtypeStruct((1, network.factor, network.factor, network.image_channels), jnp.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
  params = pretrained.renamed(tensors, shapes, _name_of, one_by_one=True)
  pretrained.refuse_others(tensors)
  return params


class Encoder(nn.Module):
  """[B, H, W, C] -> [B, H/factor, W/factor, features]."""

  widths: tuple[int, ...]
  num_blocks: int
  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = Conv(self.widths[0], _INIT, name="conv_in")(x)
    for level, width in enumerate(self.widths):
      for i in range(self.num_blocks):
        x = Block(width, name=f"down_{level}_block_{i}")(x)
      if level < len(self.widths) - 1:
        x = Halved(width, name=f"down_{level}_downsample")(x)
    x = nn.silu(GroupNorm(_EPS, name="norm_out")(_middle(x)))
    return Conv(self.features, _INIT, name="conv_out")(x)


class Decoder(nn.Module):
  """[B, h, w, latent_channels] -> [B, factor·h, factor·w, features]."""

  widths: tuple[int, ...]
  num_blocks: int
  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = _middle(Conv(self.widths[-1], _INIT, name="conv_in")(x))
    for level in reversed(range(len(self.widths))):
      for i in range(self.num_blocks + 1):
        x = Block(self.widths[level], name=f"up_{level}_block_{i}")(x)
      if level:
        x = Conv(self.widths[level], _INIT, name=f"up_{level}_upsample")(layers.upsample(x, (1, 1)))
    return Conv(self.features, _INIT, name="conv_out")(nn.silu(GroupNorm(_EPS, name="norm_out")(x)))


class Block(nn.Module):
  """Residual block: x + conv_2 silu(norm_2 conv_1 silu(norm_1 x)), x projected where channels change."""

  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = Conv(self.features, _INIT, name="conv1")(nn.silu(GroupNorm(_EPS, name="norm1")(x)))
    h = Conv(self.features, _INIT, name="conv2")(nn.silu(GroupNorm(_EPS, name="norm2")(h)))
    return h + (x if x.shape[-1] == self.features else Linear(self.features, _INIT, name="nin_shortcut")(x))


class Attention(nn.Module):
  """x + proj_out of the attention of one head over all pixels."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, height, width, channels = x.shape
    h = GroupNorm(_EPS, name="norm")(x)
    q, k, v = (Linear(channels, _INIT, name=n)(h).reshape(batch, height * width, 1, channels) for n in ("q", "k", "v"))
    return x + Linear(channels, _INIT, name="proj_out")(layers.attention(q, k, v).reshape(x.shape))


class Halved(nn.Module):
  """3×3 convolution with stride 2, zeros at the right and below alone."""

  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (3, 3, x.shape[-1], self.features)
    kernel = self.param("kernel", _INIT.kernel, shape)
    bias = self.param("bias", _INIT.offset(math.prod(shape[:3])), (self.features,))
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), [(0, 1), (0, 1)], dimension_numbers=layout) + bias


def _middle(x: Array) -> Array:
  x = Block(x.shape[-1], name="mid_block_1")(x)
  return Block(x.shape[-1], name="mid_block_2")(Attention(name="mid_attn_1")(x))


def _name_of(path: tuple[str, ...]) -> str:
  name = ".".join(path)
  for here, there in _NAMES:
    name = re.sub(here, there, name)
  return name
