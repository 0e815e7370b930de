"""Folders of images."""

import os
from collections.abc import Iterator

from etils import epath

from diffusion_jax import files
from diffusion_jax.data import labels as labels_lib
from diffusion_jax.data.base import DataError, known
from diffusion_jax.data.decoded import SUFFIXES, TAIL, Files
from diffusion_jax.data.transforms import Transform


class Folder(Files):
  """Images of any usual format in a folder and the folders in it, in the order of their paths.

  Labels are those of dataset.json in the folder, if it is there (the form is that of `zips.Zip`, names relative to the
  folder, with slashes). Else the first-level folders are classes in the order of their names, if there are two or more
  and no image lies beside them. Else there are none. Names that start with a dot are passed over. Links are followed.
  """

  def __init__(
    self, split: str, path, transform: Transform | None = None, check: bool = True, called: str = "", names=None
  ):
    """With check=False headers are not read yet: `check` is to be called before `gather`.

    Messages name the folder as it is `called`, by default by its path. `names` are those of the images to take, in
    their order, if not all.
    """
    self._folder = epath.Path(path)
    self._called = called or os.fspath(self._folder)
    if not self._folder.is_dir():
      raise ValueError(f"{self._called} is no folder")
    try:
      self.names = sorted(images_under(self._folder)) if names is None else list(names)
    except OSError as error:  # a folder in it that may not be read
      raise DataError(f"{self._called} cannot be listed: {error}") from None
    if not self.names:
      raise ValueError(f"{self._called} holds no images ({', '.join(SUFFIXES)})")
    described = self._folder / labels_lib.FILE
    if described.exists():
      try:
        text = described.read_bytes()
      except OSError as error:
        raise DataError(f"{self._called}: {labels_lib.FILE} cannot be read: {error.strerror or error}") from None
      self.labels, num_classes = labels_lib.from_json(text, self.names, self._called, self.place)
    else:
      self.labels, num_classes = labels_lib.from_folders(self.names)
    super().__init__("folder", split, num_classes, transform)
    if check:
      self.check_all()

  def place(self, i):
    return f"{self._called}/{self.names[i]} (image {i})"

  def _size(self, i):
    return None if files.is_remote(self._folder) else (self._folder / self.names[i]).stat().length

  def _tail(self, i):
    with (self._folder / self.names[i]).open("rb") as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
      return file.read()

  def _bytes(self, i, most=None):
    with (self._folder / self.names[i]).open("rb") as file:
      return file.read() if most is None else file.read(most)


def folder(split: str, path: str = "", transform: Transform | None = None) -> Folder:
  """A folder of images, see `Folder`; "train" is all of it.

  Args:
    split: "train".
    path: of the folder, local or remote as etils' epath knows them.
    transform: what brings the images to one size; None if they have it.
  """
  known("split of source 'folder'", split, ("train",))
  if not path:
    raise ValueError("source 'folder' needs a path")
  return Folder(split, path, transform)


def images_under(folder: epath.Path) -> Iterator[str]:
  """Names of the image files, relative to the folder, with slashes; links are followed, but not in circles."""
  if not files.is_remote(folder):
    yield from _images_on_disk(os.fspath(folder), "", frozenset())
    return
  for root, folders, names in folder.walk():
    folders[:] = [name for name in folders if not name.startswith(".")]
    inside = root.relative_to(folder).as_posix()
    prefix = "" if inside == "." else inside + "/"
    yield from (prefix + name for name in names if _is_image(name))


def _images_on_disk(path: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
  """`above` are the folders in which this one lies, by device and number."""
  found = os.stat(path)
  number = found.st_dev, found.st_ino
  if number in above:
    return
  with os.scandir(path) as entries:
    entries = list(entries)  # not held open while those inside are
  for entry in entries:
    if entry.is_dir() and not entry.name.startswith("."):
      yield from _images_on_disk(entry.path, f"{prefix}{entry.name}/", above | {number})
    elif _is_image(entry.name) and not entry.is_dir():
      yield prefix + entry.name


def _is_image(name: str) -> bool:
  return name.lower().endswith(SUFFIXES) and not name.startswith(".")
