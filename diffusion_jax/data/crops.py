"""Square parts of large images in their own resolution, as for the photographs of DIV2K.

The parts of an image are spread evenly over it, from edge to edge, at most their own side apart, so that every pixel is
in one. Along an axis of L pixels, in parts of N,

    n = ⌈L/N⌉,   corner k = round(k·(L − N)/(n − 1)),   k = 0, …, n − 1                                   (1)

in units of `step` pixels, so that the same part of an image `step` times smaller begins at a pixel too.
"""

import dataclasses

import numpy as np

from diffusion_jax.data import transforms
from diffusion_jax.data.base import check_indices
from diffusion_jax.data.decoded import Files


@dataclasses.dataclass(frozen=True)
class Crop:
  """In place of a `transforms.Transform`, for files of which `Crops` takes parts.

  Attributes:
    resolution: N, width and height of a part in pixels.
    channels: 1 or 3; converted as by Transform.
    step: corners are multiples of it.
  """

  resolution: int
  channels: int = 3
  step: int = 1

  @property
  def shape(self) -> tuple[int, int, int]:
    return (self.resolution, self.resolution, self.channels)

  def check(self, size: tuple[int, int], mode: str):
    """Raises ValueError unless parts can be taken of an image of this (width, height) and PIL mode."""
    transforms.check_mode(mode)
    if min(size) < self.resolution:
      side = self.resolution
      raise transforms.TooSmall(f"it has {size[0]}×{size[1]} pixels, too few for parts of {side}×{side}")

  def corners(self, size: tuple[int, int]) -> np.ndarray:
    """[n, 2] int32: (left, top) of all parts of an image of this (width, height), row by row; equation (1)."""
    left, top = (self._along(int(length)) for length in size)
    return np.stack(np.meshgrid(left, top), axis=-1).reshape(-1, 2).astype(np.int32)

  def _along(self, length: int) -> np.ndarray:
    gaps = max(-(-length // self.resolution) - 1, 1)
    room = (length - self.resolution) // self.step
    return np.unique((2 * np.arange(gaps + 1) * room + gaps) // (2 * gaps)) * self.step  # round half up


class Crops:
  """All parts of all images of `files`, which were opened with a `Crop`; a part has its image's label.

  Attributes:
    files: the images.
    file: [N] int32, which of them a part is of.
    corner: [N, 2] int32, (left, top) of a part.
  """

  def __init__(self, files: Files, crop: Crop):
    self.name, self.split, self.num_classes, self.image_shape = files.name, files.split, files.num_classes, crop.shape
    corners = [crop.corners(size) for size in files.sizes]
    self.files, self.corner = files, np.concatenate(corners)
    self.file = np.repeat(np.arange(len(files), dtype=np.int32), list(map(len, corners)))

  def __len__(self):
    return len(self.file)

  def gather(self, indices):
    indices = check_indices(indices, len(self))
    images = np.empty((len(indices), *self.image_shape), np.uint8)

    def put(k, image):
      images[k] = part(image, self.corner[indices[k]], *self.image_shape[1:])

    self.files.each(self.file[indices], put)
    return {"image": images, "label": self.files.labels[self.file[indices]]}

  def together(self, indices) -> np.ndarray:
    """All parts of the files of which these are parts, which cost little more than these."""
    return np.flatnonzero(np.isin(self.file, self.file[indices]))


def part(image, corner, side: int, channels: int) -> np.ndarray:
  """The part [side, side, channels] uint8 of a PIL image that begins at `corner` (left, top)."""
  left, top = map(int, corner)
  cut = transforms.converted(image.crop((left, top, left + side, top + side)), channels)
  return np.asarray(cut).reshape(side, side, channels)
