"""Swin Transformers T, S and B: an image in, features at 1/4, 1/8, 1/16 and 1/32 of its size out.

    x ← x + W-MSA(norm x);   x ← x + L_1 gelu(L_0 norm x)                                              (1)
    W-MSA: softmax(q·k/√c + bias[Δy, Δx]) v among the tokens of a 7×7 window                           (2)

Every second block moves its windows by 3 tokens, the image being a torus; tokens that are neighbours on the torus alone
do not see each other. Images that windows do not divide are padded with zeros at the right and below, after the norm,
and padded tokens are seen, as torchvision's are. Layers have torchvision's names ("features.1.0" is features_1_0).
Source: Liu et al. 2021; padding and the order of channels are the published code's.
"""

import functools
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import types
from diffusion_jax.nets import pretrained
from diffusion_jax.types import Array, Params

PATCH = 4  # pixels a side, of a token of the first stage
WINDOW = 7  # tokens a side
# Channels of the first stage, which double from stage to stage; blocks of the stages; heads of the first, doubling too.
VARIANTS = {"t": (96, (2, 2, 6, 2), 3), "s": (96, (2, 2, 18, 2), 3), "b": (128, (2, 2, 18, 2), 4)}

_MASKED = -100.0  # added to the logits of tokens that do not see each other: the published finite number
_CLASSES = 1000  # of the published classifier, which nothing here uses


def features(params: Params, x: Array, variant: str = "t") -> tuple[Array, Array, Array, Array]:
  """Outputs of the four stages, before any last norm, with products in full float32 on every device.

  Args:
    params: from `from_state_dict`.
    x: [B, H, W, 3], H, W >= 4, as the weights know images: `standardized`. Rows and columns beyond a multiple of 4 are
      not seen.
    variant: "t", "s" or "b".

  Returns:
    Stage i of 1..4: [B, h_i, w_i, c·2^(i−1)], with h_1 = ⌊H/4⌋, h_{i+1} = ⌈h_i/2⌉, and c = 96 (T, S) or 128 (B).

  Raises:
    ValueError: x of another shape, or an unknown variant.
  """
  network = of_variant(variant)
  types.check_images("x", x, 3)
  if min(x.shape[1:3]) < PATCH:
    raise ValueError(f"x must be at least {PATCH}×{PATCH}, got shape {list(x.shape)}")
  with jax.default_matmul_precision("highest"):
    return network.apply({"params": params}, x)


def final_norm(params: Params, stage4: Array) -> Array:
  """The published network's last layer norm of the fourth stage, [B, h, w, C] -> the same."""
  return _norm("norm").apply({"params": params["norm"]}, stage4)


def standardized(images: Array) -> Array:
  """Images [B, H, W, 3] in [−1, 1] -> as the published weights know them: pixels of ImageNet's mean 0, deviation 1."""
  shift, scale = 2 * pretrained.IMAGENET_MEAN - 1, 2 * pretrained.IMAGENET_STD
  return (images - shift.astype(np.float32)) / scale.astype(np.float32)


def from_state_dict(state_dict: Mapping[str, np.ndarray], variant: str = "t") -> Params:
  """Parameters for `features` from a state dict of torchvision's weights.

  Args:
    state_dict: name -> array in PyTorch layout. The classifier, "head.*", may be there and is not used; so may the
      buffers "*.relative_position_index", which must be torchvision's.
    variant: "t", "s" or "b".

  Raises:
    ValueError: a tensor is missing, unexpected or of another shape, or the variant is unknown.
  """
  network = of_variant(variant)
  tensors = dict(state_dict)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))["params"]
  index = _relative_position().ravel()
  for name in [name for name in tensors if name.endswith(".relative_position_index")]:
    if not np.array_equal(np.ravel(tensors.pop(name)), index):
      raise ValueError(f"tensor {name!r} does not number the pairs of a {WINDOW}×{WINDOW} window as torchvision does")
  width = network.channels * 8
  for name, shape in (("head.weight", (_CLASSES, width)), ("head.bias", (_CLASSES,))):
    if name in tensors:
      pretrained.take(tensors, name, shape)
  params = pretrained.renamed(tensors, shapes, lambda path: ".".join(path).replace("_", "."))
  pretrained.refuse_others(tensors)
  return params


def of_variant(variant: str) -> "Swin":
  """The network of a variant; raises ValueError if there is none of that name."""
  if variant not in VARIANTS:
    raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
  return Swin(*VARIANTS[variant])


class Swin(nn.Module):
  """The network without its classifier: [B, H, W, C] -> the four stages.

  Attributes:
    channels: of the first stage.
    depths: blocks of each stage; any number of stages.
    heads: of the first stage; as many channels a head in all.
  """

  channels: int
  depths: tuple[int, ...]
  heads: int

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, ...]:
    patches = nn.Conv(self.channels, (PATCH, PATCH), (PATCH, PATCH), "VALID", name="features_0_0")
    x, stages = _norm("features_0_2")(patches(x)), []
    for stage, depth in enumerate(self.depths):
      if stage:
        x = PatchMerging(name=f"features_{2 * stage}")(x)
      for i in range(depth):
        x = Block(self.heads << stage, WINDOW // 2 * (i % 2), name=f"features_{2 * stage + 1}_{i}")(x)
      stages.append(x)
    if self.is_initializing():  # the published network has it; `final_norm` uses it
      _norm("norm")(x)
    return tuple(stages)


class PatchMerging(nn.Module):
  """[B, H, W, C] -> [B, ⌈H/2⌉, ⌈W/2⌉, 2C]: four neighbours side by side, zeros where one lacks."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    x = x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels)
    x = x.transpose(0, 1, 3, 4, 2, 5)  # columns before rows: the order in which the weights see them
    x = _norm("norm")(x.reshape(*x.shape[:3], 4 * channels))
    return nn.Dense(2 * channels, use_bias=False, name="reduction")(x)


class Block(nn.Module):
  """Equation (1)."""

  heads: int
  shift: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = x + WindowAttention(self.heads, self.shift, name="attn")(_norm("norm1")(x))
    h = nn.Dense(4 * x.shape[-1], name="mlp_0")(_norm("norm2")(x))
    return x + nn.Dense(x.shape[-1], name="mlp_3")(nn.gelu(h, approximate=False))


class WindowAttention(nn.Module):
  """Equation (2) in windows moved by `shift` tokens, [B, H, W, C] -> the same."""

  heads: int
  shift: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, height, width, channels = x.shape
    counts = [-(-size // WINDOW) for size in (height, width)]
    shifts = [self.shift if count > 1 else 0 for count in counts]  # a window that covers the image stays
    x = jnp.pad(x, [(0, 0), *((0, count * WINDOW - size) for count, size in zip(counts, (height, width))), (0, 0)])
    x = jnp.roll(x, [-shift for shift in shifts], (1, 2))
    x = x.reshape(batch, counts[0], WINDOW, counts[1], WINDOW, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, counts[0] * counts[1], WINDOW**2, channels)

    qkv = nn.Dense(3 * channels, name="qkv")(x)
    qkv = qkv.reshape(*qkv.shape[:-1], 3, self.heads, channels // self.heads)
    q, k, v = (qkv[..., i, :, :] for i in range(3))
    table = ((2 * WINDOW - 1) ** 2, self.heads)
    table = self.param("relative_position_bias_table", nn.initializers.truncated_normal(0.02), table)
    logits = jnp.einsum("bwqhc,bwkhc->bwhqk", q / math.sqrt(channels // self.heads), k)
    logits += table[_relative_position()].transpose(2, 0, 1)
    if any(shifts):
      logits += _mask(tuple(counts), tuple(shifts))[:, None]
    x = jnp.einsum("bwhqk,bwkhc->bwqhc", nn.softmax(logits), v).reshape(x.shape)
    x = nn.Dense(channels, name="proj")(x)

    x = x.reshape(batch, *counts, WINDOW, WINDOW, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, counts[0] * WINDOW, counts[1] * WINDOW, channels)
    return jnp.roll(x, shifts, (1, 2))[:, :height, :width]


def _norm(name: str) -> nn.Module:
  return nn.LayerNorm(1e-5, use_fast_variance=False, name=name)


@functools.cache
def _relative_position() -> np.ndarray:
  """[49, 49]: the row of the bias table for a query and a key of a window."""
  y, x = np.divmod(np.arange(WINDOW**2), WINDOW)
  rows, columns = (at[:, None] - at + WINDOW - 1 for at in (y, x))
  return rows * (2 * WINDOW - 1) + columns


@functools.cache
def _mask(counts: tuple[int, int], shifts: tuple[int, int]) -> np.ndarray:
  """[windows, 49, 49]: what is added to the logits, 0 or _MASKED where the shift brought strangers together."""
  wrapped = []  # of each axis: which places of its last window have come from the other end
  for count, shift in zip(counts, shifts):
    wrapped.append((np.arange(count * WINDOW) >= count * WINDOW - shift).reshape(count, WINDOW))
  region = 2 * wrapped[0][:, None, :, None] + wrapped[1][None, :, None, :]
  region = region.reshape(counts[0] * counts[1], WINDOW**2)
  return np.where(region[:, :, None] == region[:, None], 0, np.float32(_MASKED)).astype(np.float32)
