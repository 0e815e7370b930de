"""Non-leaky augmentation: random geometric transforms of training images, told to the network as nine labels.

    labels = (x-flip, y-flip, w_s, cos θ − 1, sin θ, w_a·cos r, w_a·sin r, w_x, w_y)                            (1)

The flips are exact and come first. The rest is one affine map about the image's centre (x right, y down, angles
counterclockwise as seen): the image is sampled at

    p = S⁻¹·R⁻¹·A⁻¹·(p_out − t)                                                                                 (2)
    S⁻¹ = 2^(−.2·w_s)     R⁻¹ = [[cos θ, −sin θ], [sin θ, cos θ]]     t = .125·(W·w_x, H·w_y) pixels             (3)
    A⁻¹ = cosh κ − sinh κ·[[cos 2r, −sin 2r], [−sin 2r, −cos 2r]],   κ = .2·ln 2·w_a                            (4)

at twice the resolution on both sides, with h the orthonormal sym6 low-pass filter, k = 0..11, on each axis

    u[j] = √2·Σ_k h_k·x[(j − k + 5)/2]     the terms of whole indices; x reflected by W − 1 pixels, zero beyond (5)
    y[i] = Σ_k h_k·v[2i + k − 5]/√2        v: u at the points (2), bilinear                                    (6)

Shifts of h by 2 are orthonormal, so (6) undoes (5) where nothing moves. Source: Karras et al. 2022, Appendix F, whose
r covers the full circle: there (w_a, r) and (−w_a, r + π) have the same labels but inverse transforms. Here
r ∈ [−π/2, π/2): the laws of the transforms and of the labels stay, and w_a's sign is that of its cosine label.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Key, check_images

NUM_LABELS = 9
_SCALE = 0.2  # log2 of both scales at w = 1
_SHIFT = 0.125  # of the image's size, at w = 1
_CHUNK = 32  # images resampled at a time: bounds the memory, and leaves out those that do not move

# The sym6 wavelet's low-pass filter (Daubechies 1992), Σh = √2.
_SYM6 = np.array([
  0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
  0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
  0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip

_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def draw(keys: Key, probability) -> Array:
  """Draws augmentation labels, those of image i from keys[i] alone.

  The x-flip is always drawn, with probability ½; y-flip (½ of its share), isotropic scale, rotation, anisotropic scale
  and shift are each applied with `probability`, independently. Labels of what is not applied are 0.

  Args:
    keys: [B] typed PRNG keys, one an image.
    probability: a number in [0, 1]; may be traced.

  Returns:
    [B, 9] float32, equation (1): flips in {0, 1}; w ~ N(0, 1); θ uniform; r uniform in half a circle, or 0 half the
    time.

  Raises:
    ValueError: keys are not typed keys [B], or probability is not a scalar in [0, 1].
  """
  if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
    raise ValueError(f"keys must be typed PRNG keys [B], got {keys.dtype} of shape {list(keys.shape)}")
  if jnp.ndim(probability) != 0 or (isinstance(probability, int | float) and not 0 <= probability <= 1):
    raise ValueError(f"probability must be a number in [0, 1], got {probability}")
  return jax.vmap(_draw, (0, None))(keys, probability)


def warp(images: Array, labels: Array) -> Array:
  """Transforms images as their labels say; where all labels are 0 the image comes back bit for bit.

  Args:
    images: [B, H, W, C] in [−1, 1].
    labels: [B, 9], equation (1).

  Returns:
    [B, H, W, C] float32; resampling may overshoot [−1, 1] somewhat, and is grey (0) where it meets more than one
    reflection of the image.

  Raises:
    ValueError: images are not [B, H, W, C], or labels not [B, 9].
  """
  check_images("images", images)
  batch = len(images)
  if jnp.shape(labels) != (batch, NUM_LABELS):
    raise ValueError(f"labels must be [{batch}, {NUM_LABELS}] for {batch} images, got shape {list(jnp.shape(labels))}")
  images, labels = flip(jnp.asarray(images, jnp.float32), labels), jnp.asarray(labels, jnp.float32)
  moving = moves(labels)
  first = jnp.argsort(~moving)  # the images that move, then the others
  size = min(batch, _CHUNK)

  def resample_chunk(k, out):
    rows = jax.lax.dynamic_slice_in_dim(first, k * size, size)
    moved = jnp.where(moving[rows, None, None, None], _resample(images[rows], labels[rows]), images[rows])
    return out.at[rows].set(moved, unique_indices=True)

  return jax.lax.fori_loop(0, (moving.sum() + size - 1) // size, resample_chunk, images)


def flip(images: Array, labels: Array) -> Array:
  """The flips of `warp` alone, which are their own inverse: images [B, H, W, C] by their labels [B, 9]."""
  for label, axis in ((0, 2), (1, 1)):
    images = jnp.where(labels[:, label, None, None, None] > 0.5, jnp.flip(images, axis), images)
  return images


def moves(labels: Array) -> Array:
  """Whether `warp` does more than to flip the images with these labels [B, 9]: [B] booleans."""
  return jnp.any(labels[:, 2:] != 0, axis=1)


def _draw(key, probability):
  """Labels of one image, [9]."""
  u = jax.random.uniform(jax.random.fold_in(key, 0), (10,), jnp.float32)
  w_s, w_a, w_x, w_y = jax.random.normal(jax.random.fold_in(key, 1), (4,), jnp.float32)
  applied = u[:5] < probability
  x_flip, y_flip, rotated = (u[5:8] < 0.5).astype(jnp.float32)
  theta, r = (2 * u[8:] - 1) * np.float32([np.pi, np.pi / 2])
  r *= rotated
  labels = [y_flip, w_s, jnp.cos(theta) - 1, jnp.sin(theta), w_a * jnp.cos(r), w_a * jnp.sin(r), w_x, w_y]
  group = np.array([0, 1, 2, 2, 3, 3, 4, 4])  # the transform of each label
  return jnp.concatenate([x_flip[None], jnp.where(applied[group], jnp.stack(labels), 0)])


def _resample(images, labels):
  """Equations (2) to (6)."""
  batch, height, width, channels = images.shape
  (up_y, down_y), (up_x, down_x) = _filters(height), _filters(width)
  # Rows lead, so that both products are plain matrix products that write their result in place: [u, B, C, v].
  fine = _product("uh,hbcv->ubcv", up_y, _product("bhwc,vw->hbcv", images, up_x))

  x, y = _points(labels, height, width)
  left, top = jnp.minimum(jnp.floor(x), 6 * width - 4), jnp.minimum(jnp.floor(y), 6 * height - 4)
  plane = np.arange(batch * channels, dtype=np.int32).reshape(batch, channels, 1, 1)
  row = 6 * width - 2  # from one plane's row to the next plane's, in `fine` laid out flat
  j, i = top.astype(jnp.int32)[:, None], left.astype(jnp.int32)[:, None]
  value = lambda offset: fine.reshape(-1).at[(j * plane.size + plane) * row + i + offset].get(mode="promise_in_bounds")
  mix = lambda a, b, share: a + share[:, None] * (b - a)
  below = plane.size * row
  upper, lower = mix(value(0), value(1), x - left), mix(value(below), value(below + 1), x - left)
  return _product("hu,bcuw->bhwc", down_y, _product("bcuv,wv->bcuw", mix(upper, lower, y - top), down_x))


def _points(labels, height, width):
  """Points of equation (2) for v[−5 .. 2n+4] of (6), as columns x and rows y of `fine`: each [B, 2H+10, 2W+10]."""
  centred = lambda n, w: np.arange(2 * n + 10, dtype=np.float32) / 2 - n / 2 - 2 - _SHIFT * n * w[:, None]
  x, y = centred(width, labels[:, 7])[:, None, :], centred(height, labels[:, 8])[:, :, None]
  (xx, xy), (yx, yy) = jnp.moveaxis(_inverse(labels), 0, -1)[..., None, None]
  to_fine = lambda p, n: jnp.clip(2 * p + 3 * n - 2, 0, 6 * n - 3)  # outside, `fine` has zeros at its edge
  return to_fine(xx * x + xy * y, width), to_fine(yx * x + yy * y, height)


def _inverse(labels):
  """S⁻¹·R⁻¹·A⁻¹ of equations (3) and (4), [B, 2, 2]."""
  w_s, cos_less_1, sin, a, b = labels[:, 2:7].T
  square = a**2 + b**2
  kappa = _SCALE * math.log(2) * jnp.where(a < 0, -1, 1) * jnp.sqrt(square)
  cosh, sinh = jnp.cosh(kappa), jnp.sinh(kappa) / jnp.where(square == 0, 1, square)
  diagonal, mixed = sinh * (a**2 - b**2), sinh * 2 * a * b  # sinh κ·cos 2r, sinh κ·sin 2r
  matrix = lambda *entries: jnp.stack(entries, axis=1).reshape(-1, 2, 2)
  rotation = jnp.exp2(-_SCALE * w_s)[:, None, None] * matrix(1 + cos_less_1, -sin, sin, 1 + cos_less_1)
  return _product("bij,bjk->bik", rotation, matrix(cosh - diagonal, mixed, mixed, cosh + diagonal))


@functools.lru_cache
def _filters(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Equations (5) and (6) along an axis of `size` pixels, as matrices [6·size − 2, size] and [size, 2·size + 10].

  The first gives the image with its reflections at twice the resolution, between zeros.
  """
  reflected = np.pad(np.eye(size), ((size - 1, size - 1), (0, 0)), mode="reflect")
  sparse = np.zeros((6 * size - 4, size))
  sparse[::2] = np.sqrt(2) * reflected
  up = np.stack([np.convolve(column, _SYM6)[5:-6] for column in sparse.T], axis=1)
  down = np.zeros((size, 2 * size + 10))
  for i in range(size):
    down[i, 2 * i : 2 * i + len(_SYM6)] = _SYM6 / np.sqrt(2)
  return np.pad(up, ((1, 1), (0, 0))).astype(np.float32), down.astype(np.float32)
