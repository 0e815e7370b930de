"""Large images in overlapping windows, blended without seams.

    y(p) = Σ_k w_k(p)·f(x_k)(p) / Σ_k w_k(p),   w_k(p) = ramp(distance of p from the border of window k)          (1)

ramp rises from 0 to 1 over the overlap with a continuous derivative, and is 1 all along the image's own border.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import types
from diffusion_jax.types import Array


def apply(f: Callable[[Array], Array], x: Array, window: int, overlap: int, scale: int = 1) -> Array:
  """f(x) window by window, equation (1); f(x) itself where one window covers the image.

  Memory beyond the result is that of one window; f is compiled once.

  Args:
    f: [B, h, w, C] -> [B, scale·h, scale·w, D], with h = min(window, H) and w = min(window, W).
    x: [B, H, W, C].
    window: pixels of x a side.
    overlap: pixels of x that neighbours share at least, 1 to window − 1.
    scale: pixels of the result a pixel of x.

  Returns:
    [B, scale·H, scale·W, D] in float32.

  Raises:
    ValueError: x is no image, or the numbers are out of range.
  """
  types.check_images("x", x)
  if not 1 <= overlap < window:
    raise ValueError(f"overlap must be in 1..window − 1 = {window - 1}, got {overlap}")
  if scale < 1:
    raise ValueError(f"scale must be at least 1, got {scale}")
  height, width = x.shape[1:3]
  size = [min(window, length) for length in (height, width)]
  starts = [positions(length, window, overlap) for length in (height, width)]
  weights = [jnp.asarray(blend(length, window, overlap, scale)) for length in (height, width)]
  rows, columns = (jnp.asarray(grid.ravel()) for grid in np.meshgrid(*map(np.arange, map(len, starts)), indexing="ij"))
  starts = [jnp.asarray(start) for start in starts]

  def add(k, out):
    i, j = rows[k], columns[k]
    y, x_ = starts[0][i], starts[1][j]
    part = f(jax.lax.dynamic_slice(x, (0, y, x_, 0), (x.shape[0], *size, x.shape[-1])))
    if part.shape[1:3] != tuple(scale * length for length in size):
      expected = [scale * length for length in size]
      raise ValueError(f"f must give windows of {expected} pixels, got shape {list(part.shape)}")
    part = part.astype(jnp.float32) * weights[0][i][:, None, None] * weights[1][j][:, None]
    at = (0, scale * y, scale * x_, 0)
    return jax.lax.dynamic_update_slice(out, jax.lax.dynamic_slice(out, at, part.shape) + part, at)

  window_of_x = jax.ShapeDtypeStruct((x.shape[0], *size, x.shape[-1]), x.dtype)
  channels = jax.eval_shape(f, window_of_x).shape[-1]
  out = jnp.zeros((x.shape[0], scale * height, scale * width, channels), jnp.float32)
  return jax.lax.fori_loop(0, len(rows), add, out)


def positions(length: int, window: int, overlap: int) -> np.ndarray:
  """First pixels of the fewest windows that cover an axis, evenly spread: [n] int32."""
  if window >= length:
    return np.zeros(1, np.int32)
  count = -(-(length - overlap) // (window - overlap))
  return np.round(np.linspace(0, length - window, count)).astype(np.int32)


def blend(length: int, window: int, overlap: int, scale: int = 1) -> np.ndarray:
  """w_k / Σ w of one axis at the pixels of the result: [n, scale·min(window, length)] float32, sums of 1 everywhere."""
  starts, size = scale * positions(length, window, overlap), scale * min(window, length)
  distance = (np.arange(size) + 0.5) / (scale * overlap)  # from the window's first border, in overlaps
  rise = np.clip(distance, 0, 1)
  rise = rise**2 * (3 - 2 * rise)
  weights = np.ones((len(starts), size))
  weights[1:] *= rise
  weights[:-1] *= rise[::-1]
  total = np.zeros(scale * length)
  for start, weight in zip(starts, weights):
    total[start : start + size] += weight
  return np.stack([weight / total[start : start + size] for start, weight in zip(starts, weights)]).astype(np.float32)
