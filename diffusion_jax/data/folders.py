"""Folders of images."""

import os

from etils import epath

from diffusion_jax.data import labels as labels_lib
from diffusion_jax.data.base import known
from diffusion_jax.data.decoded import SUFFIXES, Files
from diffusion_jax.data.transforms import Transform


class Folder(Files):
  """Images of any usual format in a folder and the folders in it, in the order of their paths.

  Labels are those of dataset.json in the folder, if it is there (the form is that of `zips.Zip`, names relative to the
  folder, with slashes). Else the first-level folders are classes in the order of their names, if there are two or more
  and no image lies beside them. Else there are none. Names that start with a dot are passed over.
  """

  def __init__(self, split: str, path, transform: Transform | None = None, check: bool = True):
    """With check=False headers are not read yet: `check` is to be called before `gather`."""
    self._folder = epath.Path(path)
    if not self._folder.is_dir():
      raise ValueError(f"{self._folder} is no folder")
    self._names = sorted(_images_under(self._folder))
    if not self._names:
      raise ValueError(f"{self._folder} holds no images ({', '.join(SUFFIXES)})")
    described = self._folder / labels_lib.FILE
    if described.exists():
      text = described.read_text()
      self._labels, num_classes = labels_lib.from_json(text, self._names, os.fspath(self._folder), self._place)
    else:
      self._labels, num_classes = labels_lib.from_folders(self._names)
    super().__init__("folder", split, num_classes, transform)
    if check:
      self.check_all()

  def _place(self, i):
    return f"{self._folder / self._names[i]} (image {i})"

  def _bytes(self, i, most=None):
    with (self._folder / self._names[i]).open("rb") as file:
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


def _images_under(folder: epath.Path):
  """Names of the image files, relative to the folder, with slashes."""
  for root, folders, files in folder.walk():
    folders[:] = [name for name in folders if not name.startswith(".")]
    inside = root.relative_to(folder).as_posix()
    prefix = "" if inside == "." else inside + "/"
    yield from (prefix + name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))
