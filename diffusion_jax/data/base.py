"""What a source of images is: its protocol, the one that is held in memory, its errors.

A source is addressed, never iterated: which examples make up a step is decided in batching.py, so a source holds no
state.
"""

import dataclasses
import difflib
from typing import Protocol

import numpy as np


class DataError(ValueError):
  """Data that cannot be read; its message is one line with the place."""


class BadOption(ValueError):
  """An option of a source with a wrong value; `option` is its name."""

  def __init__(self, option: str, message: str):
    super().__init__(message)
    self.option = option


class Source(Protocol):
  """Images with labels, addressed by index. One with a task gives what they are made from too, see tasks.py.

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


@dataclasses.dataclass(frozen=True)
class Numbers:
  """In place of a source whose examples lie on the devices: `gather` gives nothing, their numbers are enough there."""

  size: int

  def __len__(self):
    return self.size

  def gather(self, indices):
    check_indices(indices, self.size)
    return {}


def check_indices(indices, size: int) -> np.ndarray:
  """Returns `indices` as an array; raises ValueError unless whole and [n], IndexError unless all lie in [0, size)."""
  indices = np.asarray(indices)
  if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
    raise ValueError(f"indices must be whole numbers [n], got {indices.dtype} of shape {list(indices.shape)}")
  if indices.size and not 0 <= indices.min() <= indices.max() < size:
    raise IndexError(f"indices must lie in [0, {size}), got {indices.min()} to {indices.max()}")
  return indices


def known(kind: str, name: str, valid) -> str:
  """Returns `name`; raises BadOption with the nearest of the names `valid` if it is not one of them.

  The option is the first word of `kind`, "split of source 'zip'".
  """
  if name in valid:
    return name
  nearest = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.0)
  hint = f"; did you mean {nearest[0]!r}? Valid:" if nearest else "; valid:"
  raise BadOption(kind.partition(" ")[0], f"unknown {kind}: {name!r}{hint} {', '.join(valid) or 'none'}")
