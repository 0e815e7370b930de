"""What a config has to know of its data."""

import math

import numpy as np

from diffusion_jax.data.base import Source

_CHUNK = 1024


def measure_sigma(source: Source, limit: int = 10_000) -> float:
  """σ_data of a source: √(tr Cov / d) of its images in [−1, 1], d values an image.

  EDM's preconditioning wants inputs of unit variance: the standard deviation of a pixel about its own mean over the
  images, root mean square over pixels. Pooled over all pixels it would count the mean image too, which is no spread.

  Args:
    source: the images; uint8 v is v/127.5 − 1. Of latents, before they are scaled, posteriors count by their moments.
    limit: at most this many images are read, evenly spaced, >= 1.

  Returns:
    The square root, of the covariance with 1/n; 0 for a single image.

  Raises:
    ValueError: limit < 1.
  """
  if limit < 1:
    raise ValueError(f"limit must be >= 1, got {limit}")
  count = min(limit, len(source))
  chosen = np.arange(count) * len(source) // count
  total, squares = np.zeros(source.image_shape), 0.0
  for start in range(0, count, _CHUNK):
    batch = source.gather(chosen[start : start + _CHUNK])
    images = batch["image"]
    x = images / 127.5 - 1 if images.dtype == np.uint8 else images.astype(np.float64)
    total += x.sum(axis=0)
    squares += np.vdot(x, x)
    if "log_variance" in batch:
      squares += np.exp(batch["log_variance"].astype(np.float64)).sum()
  variance = squares / (count * total.size) - np.vdot(total, total) / (count**2 * total.size)
  return math.sqrt(max(variance, 0.0))
