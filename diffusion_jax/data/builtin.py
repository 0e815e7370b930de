"""The two sets that come with scikit-learn and need no download: digits, and patches of photographs."""

import dataclasses
import functools

import numpy as np

from diffusion_jax.data.base import Arrays, BadOption, Source, check_indices, known

DIGITS_TEST = 297  # of 1,797 digits
PHOTO_COLUMNS = {"train": (0, 480), "test": (480, 640)}  # the columns of each photograph that a split may see


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
  """Square patches of photographs, cut when they are gathered.

  Attributes:
    photographs: [P, H, W, C] uint8; the label of a patch is its photograph.
    corners: [N, 3] int, the (photograph, top row, left column) of each patch.
    resolution: height and width of a patch, in pixels.
  """

  name: str
  split: str
  photographs: np.ndarray
  corners: np.ndarray
  resolution: int

  def __len__(self):
    return len(self.corners)

  @property
  def image_shape(self):
    return (self.resolution, self.resolution, self.photographs.shape[-1])

  @property
  def num_classes(self):
    return len(self.photographs)

  def gather(self, indices):
    photo, row, column = self.corners[check_indices(indices, len(self))].T[..., None, None]  # each [n, 1, 1]
    offset = np.arange(self.resolution)
    images = self.photographs[photo, row + offset[:, None], column + offset]
    return {"image": images, "label": photo.reshape(-1).astype(np.int32)}


def digits(split: str) -> Source:
  """Scikit-learn's 1,797 handwritten digits: 8×8 grey images of 10 classes, float32 v/8 − 1 for v in 0..16.

  The splits are fixed and stratified by class: "train" 1,500, "test" 297, and "all", in scikit-learn's order.
  """
  images, labels = _digits()
  train, test = digits_split(labels)
  chosen = {"train": train, "test": test, "all": np.arange(len(labels))}
  chosen = chosen[known("split of source 'digits'", split, chosen)]
  return Arrays("digits", split, images[chosen], labels[chosen], num_classes=10)


def digits_split(labels) -> tuple[np.ndarray, np.ndarray]:
  """Sorted indices (train, test) of `labels` [N]: every class gives its share of the test split, to one example.

  Test examples are evenly spaced in an order sorted by class and, inside a class, by raw Philox words. (Raw words,
  because numpy keeps those the same from version to version, and not what its Generator makes of them.)
  """
  words = np.random.Philox(np.random.SeedSequence(0)).random_raw(len(labels))
  order = np.lexsort((words, labels))
  test = np.sort(order[(2 * np.arange(DIGITS_TEST) + 1) * len(labels) // (2 * DIGITS_TEST)])
  return np.setdiff1d(np.arange(len(labels)), test), test


def photos(split: str, resolution: int = 32, stride: int = 4) -> Source:
  """Patches of scikit-learn's two photographs (china, flower; each 427×640), uint8 RGB; the label is the photograph.

  "train" patches lie in the left three quarters of a photograph and "test" patches in the right quarter, so no pixel
  is in both.

  Args:
    split: "train" or "test".
    resolution: 16 or 32, the size of a patch in pixels.
    stride: distance between neighbouring patches in pixels, 1 or more.
  """
  first, stop = PHOTO_COLUMNS[known("split of source 'photos'", split, PHOTO_COLUMNS)]
  if not isinstance(resolution, int) or resolution not in (16, 32):
    raise BadOption("resolution", f"resolution of source 'photos' must be 16 or 32, got {resolution!r}")
  if not isinstance(stride, int) or stride < 1:
    raise BadOption("stride", f"stride of source 'photos' must be a whole number >= 1, got {stride!r}")
  photographs = _photographs()
  rows = range(0, photographs.shape[1] - resolution + 1, stride)
  columns = range(first, stop - resolution + 1, stride)
  corners = np.stack(np.meshgrid(range(len(photographs)), rows, columns, indexing="ij"), axis=-1).reshape(-1, 3)
  return Patches("photos", split, photographs, corners, resolution)


@functools.lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
  """Images [1797, 8, 8, 1] float32 in [−1, 1] and labels [1797] int32."""
  import sklearn.datasets

  data = sklearn.datasets.load_digits()
  return (data.images[..., None] / 8 - 1).astype(np.float32), data.target.astype(np.int32)


@functools.lru_cache(maxsize=1)
def _photographs() -> np.ndarray:
  """The two photographs [2, 427, 640, 3] uint8: china, flower."""
  import sklearn.datasets

  return np.stack(sklearn.datasets.load_sample_images().images)
