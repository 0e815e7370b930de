"""Labels of image files: of a dataset.json in EDM's form, or of the folders in which they lie."""

import json
from collections.abc import Callable, Sequence

import numpy as np

from diffusion_jax.data.base import DataError

FILE = "dataset.json"


def from_json(text, names: Sequence[str], where: str, place: Callable[[int], str]) -> tuple[np.ndarray, int]:
  """Labels of the files `names` by dataset.json: {"labels": [[name, whole number], …]}, or null.

  Args:
    text: of dataset.json.
    names: of the images, in their order.
    where: the archive or folder, for messages.
    place: gives the place of image i, for messages.

  Returns:
    [N] int32, and the number of classes: one more than the largest label. Zeros and 0 for null.

  Raises:
    DataError: the text is not of that form, or an image has no label, or one that is not 0, 1, …
  """
  try:
    labels = json.loads(text)["labels"]
    by_name = None if labels is None else dict(labels)
  except (KeyError, TypeError, ValueError) as error:
    raise DataError(f"{where}: {FILE} cannot be read: {error!r}") from None
  if by_name is None:
    return none(len(names))
  for i, name in enumerate(names):
    label = by_name.get(name)
    if type(label) is not int or not 0 <= label < 2**31:
      raise DataError(f"{place(i)} has label {label} in {FILE}: expected 0, 1, …")
  labels = np.array([by_name[name] for name in names], np.int32)
  return labels, int(labels.max()) + 1


def from_folders(names: Sequence[str]) -> tuple[np.ndarray, int]:
  """The first-level folders as classes, in the order of their names.

  They are classes only if there are two or more and every image lies in one: [N] int32, and their number. Otherwise
  there are no labels: zeros and 0.
  """
  folders = [name.partition("/")[0] if "/" in name else None for name in names]
  classes = set(folders)
  if len(classes) < 2 or None in classes:
    return none(len(names))
  number = {folder: k for k, folder in enumerate(sorted(classes))}
  return np.array([number[folder] for folder in folders], np.int32), len(number)


def none(count: int) -> tuple[np.ndarray, int]:
  """No labels: zeros [count] int32, and 0 classes."""
  return np.zeros(count, np.int32), 0
