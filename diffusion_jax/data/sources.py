"""Where images come from: `load(name, split)` gives a Source, from which whole batches are gathered by index.

A source is addressed, never iterated: which examples make up a step is decided in batching.py, so a source holds no
state. Digits and photos come with scikit-learn and need no download.
"""

import dataclasses
import difflib
import functools
import inspect
import io
import json
import os
import threading
import zipfile
import zlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from diffusion_jax import config as config_lib
from diffusion_jax import files

DIGITS_TEST = 297  # of 1,797 digits
PHOTO_COLUMNS = {"train": (0, 480), "test": (480, 640)}  # the columns of each photograph that a split may see


class DataError(ValueError):
  """Data that cannot be read; its message is one line with the place."""


class Source(Protocol):
  """Images with labels, addressed by index.

  Attributes:
    name: the name under which `load` knows it.
    split: which part of the data this is.
    image_shape: (H, W, C).
    num_classes: labels are 0..num_classes−1; 0 if there are no labels (they are then all 0).
  """

  name: str
  split: str
  image_shape: tuple[int, int, int]
  num_classes: int

  def __len__(self) -> int: ...

  def gather(self, indices) -> dict[str, np.ndarray]:
    """Images and labels of `indices` [n], whole numbers in [0, len).

    Returns:
      "image": [n, H, W, C] uint8, or float32 in [−1, 1]; "label": [n] int32.

    Raises:
      ValueError: indices are not whole numbers of rank 1.
      IndexError: an index is outside [0, len).
    """
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
  """A source held in memory: `images` [N, H, W, C] uint8 or float32 in [−1, 1], `labels` [N] int32."""

  name: str
  split: str
  images: np.ndarray
  labels: np.ndarray
  num_classes: int

  def __len__(self):
    return len(self.images)

  @property
  def image_shape(self):
    return self.images.shape[1:]

  def gather(self, indices):
    indices = check_indices(indices, len(self))
    return {"image": self.images[indices], "label": self.labels[indices]}


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


class Zip:
  """Images in a zip in the form of EDM's data sets, decoded when they are gathered.

  The archive holds PNGs of one size, 00000/img00000000.png and so on, taken in the order of their names, and, for data
  with classes, dataset.json: {"labels": [[name, int], …]}.
  """

  def __init__(self, split: str, path):
    self.name, self.split, self.path = "zip", split, os.fspath(path)
    try:
      self._zip = zipfile.ZipFile(files.open_for_seeking(path))
    except (OSError, zipfile.BadZipFile) as error:
      raise ValueError(f"{self.path} cannot be read as a zip: {error}") from None
    self._lock = threading.Lock()
    self._files = sorted(name for name in self._zip.namelist() if name.lower().endswith(".png"))
    if not self._files:
      raise ValueError(f"{self.path} holds no PNG")
    self._labels, self.num_classes = self._read_labels()
    self.image_shape = self._decode(0).shape

  def __len__(self):
    return len(self._files)

  def gather(self, indices):
    indices = check_indices(indices, len(self))
    images = [self._decode(i) for i in indices]
    for i, image in zip(indices, images):
      if image.shape != self.image_shape:
        raise DataError(f"{self._place(i)} has shape {image.shape}: expected {self.image_shape}, that of the first")
    images = np.stack(images) if images else np.zeros((0, *self.image_shape), np.uint8)
    return {"image": images, "label": self._labels[indices]}

  def _place(self, i: int) -> str:
    return f"{self.path}: {self._files[i]} (image {i})"

  def _decode(self, i: int) -> np.ndarray:
    """Image i, [H, W, C] uint8."""
    import PIL.Image

    try:
      with self._lock:  # an archive has one position
        data = self._zip.read(self._files[i])
      image = PIL.Image.open(io.BytesIO(data))
      if image.mode not in ("L", "RGB"):
        raise ValueError(f"its mode is {image.mode}, not 8-bit grey or RGB")
      image = np.asarray(image)
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
      raise DataError(f"{self._place(i)} cannot be read: {error}") from None
    return image if image.ndim == 3 else image[..., None]

  def _read_labels(self) -> tuple[np.ndarray, int]:
    none = np.zeros(len(self._files), np.int32), 0
    if "dataset.json" not in self._zip.namelist():
      return none
    try:
      labels = json.loads(self._zip.read("dataset.json"))["labels"]
      if labels is None:
        return none
      by_name = {name: int(label) for name, label in labels}
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f"{self.path}: dataset.json cannot be read: {error!r}") from None
    for i, name in enumerate(self._files):
      if by_name.get(name, -1) < 0:
        raise ValueError(f"{self._place(i)} has label {by_name.get(name)} in dataset.json: expected 0, 1, …")
    labels = np.array([by_name[name] for name in self._files], np.int32)
    return labels, int(labels.max()) + 1


def check_indices(indices, size: int) -> np.ndarray:
  """Returns `indices` as an array; raises ValueError unless whole and [n], IndexError unless all lie in [0, size)."""
  indices = np.asarray(indices)
  if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
    raise ValueError(f"indices must be whole numbers [n], got {indices.dtype} of shape {list(indices.shape)}")
  if indices.size and not 0 <= indices.min() <= indices.max() < size:
    raise IndexError(f"indices must lie in [0, {size}), got {indices.min()} to {indices.max()}")
  return indices


def load(name: str, split: str, **options) -> Source:
  """Opens a source by name.

  Args:
    name: "digits", "photos" or "zip".
    split: which part; see the source's own function.
    **options: the source's own: `photos` takes resolution and stride, `zip` the path of the archive.

  Raises:
    ValueError: an unknown name, split or option (with the nearest valid one), or an option out of range.
  """
  make = SOURCES[_known("source", name, SOURCES)]
  valid = list(inspect.signature(make).parameters)[1:]
  for option in options:
    if option not in valid:
      _known(f"option of source {name!r}", option, valid)
  return make(split, **options)


def from_config(config) -> Source:
  """The data of config.data.

  Raises:
    ConfigError: there is no such source, or its images or classes are not what the config says.
  """
  data = config.data
  config_lib.choose("data.name", data.name, SOURCES)
  options = {"photos": {"resolution": data.resolution}, "zip": {"path": data.path}}.get(data.name, {})
  try:
    source = load(data.name, data.split, **options)
  except ValueError as error:
    field = "data.path" if data.name == "zip" else "data.split"
    raise config_lib.wrong(field, data[field.removeprefix("data.")], str(error)) from None
  shape = (data.resolution, data.resolution, data.channels)
  if source.image_shape != shape:
    raise config_lib.wrong("data.resolution, data.channels", shape, f"{data.name} has images {source.image_shape}")
  if data.num_classes not in (0, source.num_classes):
    expected = f"{data.name} has {source.num_classes}; 0 ignores them"
    raise config_lib.wrong("data.num_classes", data.num_classes, expected)
  return source


def digits(split: str) -> Source:
  """Scikit-learn's 1,797 handwritten digits: 8×8 grey images of 10 classes, float32 v/8 − 1 for v in 0..16.

  The splits are fixed and stratified by class: "train" 1,500, "test" 297, and "all", in scikit-learn's order.
  """
  images, labels = _digits()
  train, test = digits_split(labels)
  chosen = {"train": train, "test": test, "all": np.arange(len(labels))}
  chosen = chosen[_known("split of source 'digits'", split, chosen)]
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
  first, stop = PHOTO_COLUMNS[_known("split of source 'photos'", split, PHOTO_COLUMNS)]
  if not isinstance(resolution, int) or resolution not in (16, 32):
    raise ValueError(f"resolution of source 'photos' must be 16 or 32, got {resolution!r}")
  if not isinstance(stride, int) or stride < 1:
    raise ValueError(f"stride of source 'photos' must be a whole number >= 1, got {stride!r}")
  photographs = _photographs()
  rows = range(0, photographs.shape[1] - resolution + 1, stride)
  columns = range(first, stop - resolution + 1, stride)
  corners = np.stack(np.meshgrid(range(len(photographs)), rows, columns, indexing="ij"), axis=-1).reshape(-1, 3)
  return Patches("photos", split, photographs, corners, resolution)


def zipped(split: str, path: str = "") -> Source:
  """A zip of PNGs in the form of EDM's data sets, see `Zip`; "train" is all of it.

  Args:
    split: "train".
    path: of the archive, local or remote as etils' epath knows them.
  """
  _known("split of source 'zip'", split, ("train",))
  if not path:
    raise ValueError("source 'zip' needs a path")
  return Zip(split, path)


SOURCES: dict[str, Callable[..., Source]] = {"digits": digits, "photos": photos, "zip": zipped}


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


def _known(kind: str, name: str, valid) -> str:
  """Returns `name`; raises ValueError with the nearest of the names `valid` if it is not one of them."""
  if name in valid:
    return name
  nearest = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.0)
  hint = f"; did you mean {nearest[0]!r}? Valid:" if nearest else "; valid:"
  raise ValueError(f"unknown {kind}: {name!r}{hint} {', '.join(valid) or 'none'}")
