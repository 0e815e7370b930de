"""Images in an .npz."""

import numpy as np
from etils import epath

from diffusion_jax.data import labels as labels_lib
from diffusion_jax.data.base import Arrays, Source, known
from diffusion_jax.data.decoded import CHANNELS, DAMAGE, Decoded
from diffusion_jax.data.transforms import Transform

_IMAGES = ("images", "arr_0")
_LABELS = ("labels", "label", "arr_1")


class Transformed(Decoded):
  """Images [N, H, W, C] uint8 in memory, each transformed when it is gathered."""

  def __init__(
    self, name: str, split: str, images, labels, num_classes: int, transform: Transform, where: str, check=True
  ):
    """With check=False sizes are not compared with the transform yet: `check` does."""
    super().__init__(name, split, num_classes, transform)
    self._images, self._labels, self._where = images, labels, where
    if check:
      self.check_all()

  def __len__(self):
    return len(self._images)

  def place(self, i):
    return f"{self._where}: image {i}"

  def _header(self, i):
    height, width, channels = self._images.shape[1:]
    return (width, height), next(mode for mode, count in CHANNELS.items() if count == channels)

  def _read(self, i):
    import PIL.Image

    image = self._images[i]
    return PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), self._labels[i]


def npz(split: str, path: str = "", transform: Transform | None = None, check: bool = True) -> Source:
  """The arrays of an .npz, held in memory; "train" is all of it.

  Images [N, H, W, C] uint8, C = 1 or 3, are the array `images`, or `arr_0`, or the only one of rank 4. Labels [N],
  whole numbers from 0, are `labels`, `label` or `arr_1`, if there is one.

  Args:
    split: "train".
    path: of the file, local or remote as etils' epath knows them.
    transform: what brings the images to another size; None if they have it.
    check: refuse images that are too small for the transform; else `Decoded.check` tells them.
  """
  known("split of source 'npz'", split, ("train",))
  if not path:
    raise ValueError("source 'npz' needs a path")
  try:
    with epath.Path(path).open("rb") as file:
      arrays = np.load(file, allow_pickle=False)
      if isinstance(arrays, np.ndarray):
        raise ValueError("it is a single array, an .npy")
      images, labels = _find(arrays)
  except (*DAMAGE, AttributeError, TypeError) as error:
    raise ValueError(f"{path} cannot be read as an .npz of images: {error}") from None
  shape = list(images.shape)
  if images.dtype != np.uint8 or images.ndim != 4 or not images.size or shape[-1] not in CHANNELS.values():
    raise ValueError(f"{path}: images must be [N, H, W, 1 or 3] uint8 with N >= 1, got {images.dtype} of shape {shape}")
  labels, num_classes = labels_lib.none(len(images)) if labels is None else _checked(labels, len(images), path)
  if transform:
    return Transformed("npz", split, images, labels, num_classes, transform, path, check)
  return Arrays("npz", split, images, labels, num_classes)


def _find(arrays) -> tuple[np.ndarray, np.ndarray | None]:
  labels = next((arrays[name] for name in _LABELS if name in arrays), None)
  for name in _IMAGES:
    if name in arrays:
      return arrays[name], labels
  found = {name: arrays[name] for name in arrays.files}
  images = [array for array in found.values() if array.ndim == 4]
  if len(images) != 1:
    raise ValueError(f"it has neither `images` nor one array of rank 4, but {', '.join(found) or 'nothing'}")
  return images[0], labels


def _checked(labels, count: int, path) -> tuple[np.ndarray, int]:
  if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
    expected = f"whole numbers [{count}], one an image"
    raise ValueError(f"{path}: labels must be {expected}, got {labels.dtype} of shape {list(labels.shape)}")
  wrong = np.flatnonzero((labels < 0) | (labels >= 2**31))
  if wrong.size:
    raise ValueError(f"{path}: image {wrong[0]} has label {labels[wrong[0]]}: expected 0, 1, …")
  return labels.astype(np.int32), int(labels.max()) + 1
