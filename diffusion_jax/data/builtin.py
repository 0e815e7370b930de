"""The sets that come with scikit-learn and need no download: digits, patches of photographs, digits on patches."""

import dataclasses
import functools

import numpy as np

from diffusion_jax.data.base import Arrays, BadOption, Source, check_indices, known

DIGITS_TEST = 297  # of 1,797 digits
SCENES_PER_DIGIT = {"train": 4, "test": 1}  # of each split
PHOTO_COLUMNS = {"train": (0, 480), "test": (480, 640)}  # the columns of each photograph that a split may see

_SCENES = 0x7363656E  # the draws of scenes, apart from all others
_COLOURS = 8  # drawn for a digit, of which one is taken
_APART = (90, 220)  # its distance from the ground's mean, in levels of RGB


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


@dataclasses.dataclass(frozen=True, eq=False)
class Scenes(Arrays):
  """Digits on patches of photographs, held in memory: `masks` [N, H, W, 1] uint8 are 255 on the digit, else 0."""

  masks: np.ndarray


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


@functools.lru_cache(maxsize=4, typed=True)
def scenes(split: str, resolution: int = 32) -> Scenes:
  """A handwritten digit on a patch of a photograph, uint8 RGB, with the mask of its ink; the label is the digit.

  The digit has half to seven eighths of the image's size and lies wholly in it. Its colour is apart from the mean of
  what it covers, lighter, darker or another hue, and the photograph shows through, so that no one threshold finds it.
  Example i is a pure function of i and the split: 6,000 in "train", 297 in "test", of digits and columns of the
  photographs that the other split does not have.

  Args:
    split: "train" or "test".
    resolution: 16 or 32, height and width in pixels.
  """
  known("split of source 'scenes'", split, SCENES_PER_DIGIT)
  if not isinstance(resolution, int) or resolution not in (16, 32):
    raise BadOption("resolution", f"resolution of source 'scenes' must be 16 or 32, got {resolution!r}")
  ink, photographs, (first, stop) = digits(split), _photographs(), PHOTO_COLUMNS[split]
  count = SCENES_PER_DIGIT[split] * len(ink)
  images = np.empty((count, resolution, resolution, 3), np.uint8)
  masks = np.zeros((count, resolution, resolution, 1), np.uint8)
  seed = _SCENES, list(SCENES_PER_DIGIT).index(split), resolution
  for i in range(count):
    words = np.random.Philox(np.random.SeedSequence([*seed, i])).random_raw(7 + 3 * _COLOURS)
    u = (words >> np.uint64(11)) * 2.0**-53  # uniform in [0, 1)
    photo = _between(0, len(photographs) - 1, u[0])
    row, column = _between(0, photographs.shape[1] - resolution, u[1]), _between(first, stop - resolution, u[2])
    image = photographs[photo, row : row + resolution, column : column + resolution].astype(np.float64)
    size = _between(resolution // 2, resolution * 7 // 8, u[3])
    top, left = _between(0, resolution - size, u[4]), _between(0, resolution - size, u[5])
    alpha = _enlarged(ink.images[i % len(ink), ..., 0] / 2 + 0.5, size)
    alpha = np.clip(2 * alpha - 0.5, 0, 1)[..., None]  # crisp, with a soft edge about half the ink
    under = image[top : top + size, left : left + size]  # a view
    colour = _apart(255 * u[7:].reshape(_COLOURS, 3), (alpha * under).sum((0, 1)) / alpha.sum())
    under += (0.65 + 0.35 * u[6]) * alpha * (colour - under)
    images[i] = np.rint(image)
    masks[i, top : top + size, left : left + size] = np.where(alpha > 0.5 - 1e-6, 255, 0)  # where ½ is rounded
  return Scenes("scenes", split, images, np.tile(ink.labels, SCENES_PER_DIGIT[split]), 10, masks)


def _between(low: int, high: int, u: float) -> int:
  """A whole number, both ends included, by u in [0, 1)."""
  return low + int(u * (high - low + 1))


def _apart(colours, ground):
  """The first of `colours` [n, 3] that can be told from `ground` [3] and is not its opposite; else the farthest."""
  distance = np.sqrt(((colours - ground) ** 2).sum(axis=1))
  fit = (distance > _APART[0]) & (distance < _APART[1])
  return colours[np.argmax(fit) if fit.any() else np.argmax(distance)]


def _enlarged(image, size: int):
  """[n, n] to [size, size], linearly between the centres of pixels."""
  weights = _weights(len(image), size)
  return weights @ image @ weights.T


@functools.cache
def _weights(length: int, size: int):
  at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
  return np.maximum(1 - np.abs(at[:, None] - np.arange(length)), 0)


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
