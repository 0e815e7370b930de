"""How far images are from the images they should be, pixel by pixel, in float64.

    MSE = mean (a − b)² / peak²,   PSNR = −10·log10 MSE,   MAE = mean |a − b| / peak                     (1)

The means are over all pixels and channels of an image; peak is the width of the range, 255 for bytes and 2 for [−1, 1].
"""

import numpy as np


def psnr(a, b) -> np.ndarray:
  """Peak signal-to-noise ratio of equation (1).

  Args:
    a: images [B, H, W, C], uint8 or floating-point in [−1, 1]; values outside count as they are.
    b: images of the same shape and kind.

  Returns:
    [B] in decibels; inf for equal images.

  Raises:
    ValueError: shapes or kinds that do not match, or values that are not finite.
  """
  with np.errstate(divide="ignore"):
    return -10 * np.log10(mse(a, b))


def mse(a, b) -> np.ndarray:
  """Mean squared error of equation (1), [B], where the range of the images counts as 1; else as `psnr`."""
  return np.mean(_difference(a, b) ** 2, axis=(1, 2, 3))


def mae(a, b) -> np.ndarray:
  """Mean absolute error of equation (1), [B], where the range of the images counts as 1; else as `psnr`."""
  return np.mean(np.abs(_difference(a, b)), axis=(1, 2, 3))


def _difference(a, b):
  """(a − b)/peak, [B, H, W, C] float64."""
  a, b = np.asarray(a), np.asarray(b)
  if a.ndim != 4 or a.shape != b.shape or not a.size:
    raise ValueError(f"a and b must be [B, H, W, C] of one shape, got {list(a.shape)} and {list(b.shape)}")
  in_bytes = a.dtype == b.dtype == np.uint8
  if not in_bytes and not all(np.issubdtype(x.dtype, np.floating) for x in (a, b)):
    raise ValueError(f"a and b must both be uint8 or both floating-point in [-1, 1], got {a.dtype} and {b.dtype}")
  for name, x in (("a", a), ("b", b)):
    bad = np.count_nonzero(~np.isfinite(x).all(axis=(1, 2, 3)))
    if bad:
      raise ValueError(f"{name} must be finite, got {bad} of {len(x)} images that are not")
  return (a.astype(np.float64) - b) / (255 if in_bytes else 2)
