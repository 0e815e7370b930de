"""Do generated images copy training images?

An image x counts as memorised when it lies closer to its nearest training image y than any other training image lies
to y:

    |x − y| < min_{y' ≠ y} |y − y'|,   y = argmin_y |x − y|                                            (1)

Distances are Euclidean over pixels. Held-out real images give the reference (`heldout_share`, .40 for digits): a
generator that does not copy has about their share, and only more than that is evidence of copying.
"""

import numpy as np

from diffusion_jax.data import sources
from diffusion_jax.evaluation import neighbours


def nearest(a, b) -> tuple[np.ndarray, np.ndarray]:
  """The image of `b` nearest to each image of `a`.

  Args:
    a: [N, ...] images.
    b: [M, ...] images of the same shape, on the same scale.

  Returns:
    distances: [N] float64, Euclidean over pixels, exactly 0 for equal images.
    indices: [N] int64 in [0, M).

  Raises:
    ValueError: shapes or types that do not match, no images, or values that are not finite.
  """
  a, b = _flat("a", a, "b", b)
  return _nearest(a, b)


def memorised_share(images, train) -> float:
  """Share in [0, 1] of `images` [N, H, W, C] that are memorised from `train` [M, H, W, C] by equation (1).

  A training image that occurs twice in `train` has a neighbour at distance 0, so nothing counts as a copy of it.

  Raises:
    ValueError: as `nearest`, or fewer than two training images.
  """
  images, train = _flat("images", images, "train", train)
  if len(train) < 2:
    raise ValueError(f"train must hold at least 2 images, got {len(train)}")
  distances, indices = _nearest(images, train)
  hit, back = np.unique(indices, return_inverse=True)
  spacing, _ = _nearest(train[hit], train, skip=hit)
  return float(np.mean(distances < spacing[back.reshape(-1)]))


def heldout_share() -> float:
  """The memorised share of the 297 digits of the test split against the train split: the reference for digits."""
  test, train = (sources.load("digits", split) for split in ("test", "train"))
  return memorised_share(test.gather(np.arange(len(test)))["image"], train.gather(np.arange(len(train)))["image"])


def _nearest(a, b, skip=None):
  """`nearest` of [N, d] and [M, d]; with `skip` [N], image i may not choose b[skip[i]]."""
  squares, indices = neighbours.kth_nearest(a, b, skip=skip)
  return np.sqrt(squares), indices


def _flat(name_a, a, name_b, b):
  """Both as [N, d] float64, checked."""
  a, b = np.asarray(a), np.asarray(b)
  if a.ndim < 2 or a.shape[1:] != b.shape[1:] or not a.size or not b.size:
    shapes = f"{list(a.shape)} and {list(b.shape)}"
    raise ValueError(f"{name_a} and {name_b} must be [N, ...] and [M, ...] images of one shape, got {shapes}")
  if np.issubdtype(a.dtype, np.integer) != np.issubdtype(b.dtype, np.integer):
    raise ValueError(f"{name_a} and {name_b} must be on the same scale, got {a.dtype} and {b.dtype}")
  a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
  for name, x in ((name_a, a), (name_b, b)):
    if not np.isfinite(x).all():
      raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(x))} values that are not")
  return a, b
