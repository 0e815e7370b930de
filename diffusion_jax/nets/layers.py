"""Layers of the convolutional networks: linear maps, group normalisation, resampling, attention, dropout.

Images are [B, H, W, C]. Parameters are float32 always; `dtype` is what products are computed in.
"""

import dataclasses
import functools
import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import mesh
from diffusion_jax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class Init:
  """A law of initial weights: uniform or normal with variance gain²/fan.

  Attributes:
    gain: multiplies the standard deviation; 0 gives zeros.
    fan: "fan_avg" (Xavier), "fan_in" (Kaiming), or "one": a variance of gain² whatever the fan.
    bias: whether biases follow the weights' law (their fan_in), or are zero.
  """

  gain: float = 1.0
  fan: str = "fan_avg"
  bias: bool = False

  def kernel(self, key: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Weights of `shape` [..., in, out]."""
    if self.gain == 0:
      return jnp.zeros(shape, dtype)
    if self.fan == "one":
      return self.gain * jax.random.normal(key, shape, dtype)
    return nn.initializers.variance_scaling(self.gain**2, self.fan, "uniform")(key, shape, dtype)

  def offset(self, fan_in: int):
    """Initialiser of a bias [out]: U(±gain·√(3/fan_in)), or zeros."""
    bound = self.gain * math.sqrt(3 / fan_in) if self.bias else 0.0
    return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound) if bound else jnp.zeros(shape)


class Linear(nn.Module):
  """Linear map of the last axis, [..., in] -> [..., features]; on images it is a 1×1 convolution."""

  features: int
  init_law: Init = Init()
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    fan_in = x.shape[-1]
    kernel = self.param("kernel", self.init_law.kernel, (fan_in, self.features))
    y = x.astype(self.dtype) @ kernel.astype(self.dtype)
    if self.use_bias:
      y += self.param("bias", self.init_law.offset(fan_in), (self.features,)).astype(self.dtype)
    return y


class Conv(nn.Module):
  """3×3 convolution with stride 1 and `padding` zeros on each side."""

  features: int
  init_law: Init = Init()
  padding: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (3, 3, x.shape[-1], self.features)
    kernel = self.param("kernel", self.init_law.kernel, shape)
    bias = self.param("bias", self.init_law.offset(math.prod(shape[:3])), (self.features,))
    convolve = conv3x3_cpu if mesh.platform() == "cpu" else conv3x3
    return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.padding) + bias.astype(self.dtype)


def conv3x3(x: Array, kernel: Array, padding: int = 1) -> Array:
  """Convolution [B, H, W, in] * [3, 3, in, out] with stride 1 and `padding` zeros on each side."""
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def conv3x3_cpu(x: Array, kernel: Array, padding: int = 1) -> Array:
  """conv3x3 with gradients in NHWC and HWIO, the one layout that XLA's CPU has fast convolutions for.

  The gradients of conv3x3 are in other layouts. Outside loops XLA reorders them; in lax.scan they take 25-250× longer.
  """
  return conv3x3(x, kernel, padding)


@conv3x3_cpu.defjvp
def _conv3x3_cpu_jvp(padding, primals, tangents):
  """Laid out for its transpose: JAX transposes both convolutions below into NHWC, HWIO -> NHWC."""
  (x, kernel), (dx, dkernel) = primals, tangents
  convolve = functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding=[(padding, padding)] * 2)
  dy = convolve(dx, kernel.swapaxes(2, 3), dimension_numbers=("NHWC", "HWOI", "NHWC"))
  # The kernel's gradient has x's channels for a batch, images for channels, and a window as large as an image. It is
  # summed over parts of the batch whose windows, the cotangents, stay in cache: a third faster at 32×32.
  images = max(_CACHED // math.prod((*x.shape[1:3], kernel.shape[-1])), -(-len(x) // 16), 1)
  x_turned, dkernel = x.transpose(3, 1, 2, 0), dkernel.transpose(2, 0, 1, 3)
  parts = [x_turned[..., i : i + images] for i in range(0, len(x), images)]
  products = [convolve(part, dkernel, dimension_numbers=("CHWN", "IHWO", "HWNC")) for part in parts]
  dy += jnp.concatenate(products, 2).transpose(2, 0, 1, 3)
  return conv3x3_cpu(x, kernel, padding), dy


_CACHED = 2**19  # numbers that stay in cache


def num_groups(channels: int) -> int:
  """Groups of a GroupNorm over `channels`: at least four channels each, at most 32 groups."""
  return min(32, channels // 4)


class GroupNorm(nn.Module):
  """Group normalisation in float32; returns float32 whatever the input's type."""

  eps: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    x = jnp.asarray(x, jnp.float32)
    # Both moments per channel in one pass over x; a pivot near the mean keeps E[d²] − E[d]² free of cancellation.
    pivot = jax.lax.stop_gradient(x[:, x.shape[1] // 2, None, x.shape[2] // 2, None])
    shifted = x - pivot
    mean = shifted.mean((1, 2), keepdims=True)
    within = jnp.maximum(jnp.square(shifted).mean((1, 2), keepdims=True) - jnp.square(mean), 0)
    mean = mean + pivot
    grouped = mean.reshape(x.shape[0], num_groups(channels), -1)
    center = grouped.mean(2, keepdims=True)
    variance = (within.reshape(grouped.shape) + jnp.square(grouped - center)).mean(2, keepdims=True)
    spread = lambda v: jnp.broadcast_to(v, grouped.shape).reshape(mean.shape)
    return (x - spread(center)) * (spread(jax.lax.rsqrt(variance + self.eps)) * scale) + bias


def attention(q: Array, k: Array, v: Array) -> Array:
  """Softmax attention over positions, softmax in float32: [B, N, heads, c] three times -> [B, N, heads, c]."""
  logits = jnp.einsum("bqhc,bkhc->bhqk", q, k / math.sqrt(k.shape[-1]), preferred_element_type=jnp.float32)
  return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits).astype(v.dtype), v)


def downsample(x: Array, taps: tuple[float, ...], padding: int | None = None) -> Array:
  """Halves H and W with the separable filter taps/Σtaps: y[i] = Σ_k f_k·x[2i + k − padding], zeros outside."""
  padding = (len(taps) - 1) // 2 if padding is None else padding
  if taps == (1, 1) and padding == 0 and x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0:
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
  for axis in (1, 2):
    size = (x.shape[axis] + 2 * padding - len(taps)) // 2 + 1
    x = _pad(x, axis, padding)
    taken = [jax.lax.slice_in_dim(x, k, k + 2 * size - 1, stride=2, axis=axis) for k in range(len(taps))]
    x = sum(tap / sum(taps) * part for tap, part in zip(taps, taken))
  return x


def upsample(x: Array, taps: tuple[float, ...]) -> Array:
  """Doubles H and W with 2·taps/Σtaps on each axis: y[i] = Σ_j f_{i + padding − 2j}·x[j], zeros outside."""
  if taps == (1, 1):
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
  padding, reach = (len(taps) - 1) // 2, len(taps) // 2
  for axis in (1, 2):
    size, padded, phases = x.shape[axis], _pad(x, axis, reach), []
    for phase in (0, 1):  # y[2i + phase] meets the taps k of one parity, at j = i + (phase + padding − k)/2
      ks = range((phase + padding) % 2, len(taps), 2)
      starts = [reach + (phase + padding - k) // 2 for k in ks]
      parts = [jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in starts]
      phases.append(sum(2 * taps[k] / sum(taps) * part for k, part in zip(ks, parts)))
    shape = list(x.shape)
    shape[axis] = 2 * size
    x = jnp.stack(phases, axis + 1).reshape(shape)
  return x


def _pad(x: Array, axis: int, padding: int) -> Array:
  return jnp.pad(x, [(padding, padding) if i == axis else (0, 0) for i in range(x.ndim)])


def dropout(x: Array, rate: float, keys: Key | None, path: tuple[str, ...]) -> Array:
  """Zeroes elements with probability `rate` and scales the rest by 1/(1 − rate); the identity if keys is None.

  x is [B, ..., C] with C even. The mask of example i depends on keys[i] and the layer's path alone, so it is the same
  however a batch is split.
  """
  if keys is None or rate == 0:
    return x
  layer = np.uint32(zlib.crc32("/".join(path).encode()))
  threshold = round(rate * 2**16)  # 16 random bits an element: half the work of 32, the rate right to 2⁻¹⁷
  pairs = (*x.shape[1:-1], x.shape[-1] // 2)
  bits = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, layer), pairs, jnp.uint32))(keys)
  keep = jax.lax.bitcast_convert_type(bits, jnp.uint16).reshape(x.shape) >= threshold
  return jnp.where(keep, x * (2**16 / (2**16 - threshold)), 0)


@jax.custom_jvp
def backward_once(x: Array, emb: Array) -> Array:
  """x, whose cotangent is computed once on CPU; `emb` [B, E] are outputs of silu.

  XLA's CPU does a sum's arithmetic again in every operation that takes it, back to the last convolution: backward along
  the blocks of a level, that grows with the square of their number. It does not look into a branch, and cannot know
  that this one is never taken: silu > -.28.
  """
  return x


@backward_once.defjvp
def _backward_once_jvp(primals, tangents):
  (x, emb), (dx, _) = primals, tangents
  if mesh.platform() != "cpu":
    return x, dx
  return x, jax.lax.cond(emb[0, 0] < -1, jnp.zeros_like, lambda dx: dx, dx)


def positional_embedding(x: Array, channels: int, endpoint: bool) -> Array:
  """[B] -> [B, channels], cosines then sines at 10000^(−i/(half − endpoint)), i < half = channels/2."""
  half = channels // 2
  freqs = np.float32(1 / 10000) ** (np.arange(half, dtype=np.float32) / np.float32(half - endpoint))
  angles = x[:, None] * freqs
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], 1)


def pixel_centers(height: int, width: int) -> np.ndarray:
  """Rows and columns of the centres of an image's pixels, the image as the unit square: [height·width, 2]."""
  rows, columns = np.meshgrid(*((np.arange(n) + 0.5) / n for n in (height, width)), indexing="ij")
  return np.stack([rows, columns], -1).reshape(-1, 2).astype(np.float32)


def place_codes(positions: Array, channels: int) -> Array:
  """Codes of places in the unit square, [..., 2] -> [..., channels]: cos and sin of πk·row and πk·column.

  k = 1..channels/4, what is left is zeros. The product of two codes of n frequencies is a sum of Dirichlet kernels,
  Σ_k cos πk·Δrow + cos πk·Δcolumn: largest, 2n, at equal places alone. Cosines of all k < N would be a basis of the
  functions on N pixels; codes of more channels only add frequencies, so those of other widths match too.
  """
  freqs = np.float32(np.pi) * np.arange(1, channels // 4 + 1, dtype=np.float32)
  angles = (positions[..., None] * freqs).reshape(*positions.shape[:-1], -1)
  left = jnp.zeros((*positions.shape[:-1], channels % 4))
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), left], -1)


def fourier_embedding(x: Array, freqs: tuple[float, ...]) -> Array:
  """[B] -> [B, 2·len(freqs)], cosines then sines of 2π·freqs·x."""
  angles = x[:, None] * (np.float32(2 * np.pi) * np.asarray(freqs, np.float32))
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], 1)


def fourier_freqs(half: int) -> tuple[float, ...]:
  """The fixed frequencies of a Fourier embedding, N(0, 16²): one draw for every network, never trained."""
  return tuple(float(f) for f in (16 * np.random.default_rng(0).standard_normal(half)).astype(np.float32))
