"""Archives of images as they are published: zips, tars, CIFAR-10's batches."""

import contextlib
import lzma
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator

import numpy as np
from etils import epath

from diffusion_jax.data import labels as labels_lib
from diffusion_jax.data.base import Arrays, DataError
from diffusion_jax.data.decoded import DAMAGE, SUFFIXES

_CIFAR10 = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}


@contextlib.contextmanager
def unpacked(path, beside=None) -> Iterator[tuple[epath.Path, str]]:
  """The folder with what is in a zip or a tar (also compressed), removed at the end.

  Args:
    path: of the archive.
    beside: the folder in which it is unpacked; None is the system's for temporary files.

  Yields:
    The folder, and what messages call it, by the archive's name. It is the innermost that is not alone in its folder,
    so that classes are its first-level folders; names that start with a dot, __MACOSX, and files that are no images do
    not count.

  Raises:
    DataError: it is no archive, or a damaged or dangerous one.
  """
  with tempfile.TemporaryDirectory(dir=beside, prefix="unpacked-") as root:
    try:
      with epath.Path(path).open("rb") as file:
        is_zip = zipfile.is_zipfile(file)
        file.seek(0)
        if is_zip:
          with zipfile.ZipFile(file) as archive:
            archive.extractall(root)
        elif tarfile.is_tarfile(file):  # which leaves the file where it was
          with tarfile.open(fileobj=file) as archive:
            archive.extractall(root, filter="data")
        else:
          raise ValueError("it is neither a zip nor a tar")
    except (*DAMAGE, tarfile.TarError, lzma.LZMAError) as error:
      reason = " ".join(str(error).replace(root, str(path)).split())
      raise DataError(f"{path} cannot be unpacked: {reason}") from None
    folder = epath.Path(root)
    while len(inside := list(filter(_counts, folder.iterdir()))) == 1 and inside[0].is_dir():
      folder = inside[0]
    yield folder, (epath.Path(path) / folder.relative_to(root)).as_posix()


def _counts(path: epath.Path) -> bool:
  name = path.name.lower()
  if name.startswith(".") or name == "__macosx":
    return False
  return path.is_dir() or name.endswith(SUFFIXES) or name in (labels_lib.FILE, _CIFAR10["train"][0])


def find_cifar10(folder: epath.Path) -> epath.Path | None:
  """cifar-10-batches-py, be it the folder or anywhere in it; None if it is not there."""
  for root, folders, names in folder.walk():
    folders.sort()
    if _CIFAR10["train"][0] in names:
      return epath.Path(root)
  return None


def cifar10(folder: epath.Path, split: str, called: str) -> Arrays:
  """CIFAR-10 from the batches of its Python form, in their order; messages name the folder as it is `called`.

  Raises:
    DataError: a batch is missing or not of that form.
  """
  if split not in _CIFAR10:
    raise DataError(f"CIFAR-10 has the splits {', '.join(_CIFAR10)}, got {split!r}")
  images, labels = [], []
  for name in _CIFAR10[split]:
    try:
      with (folder / name).open("rb") as file:
        batch = _NumpyUnpickler(file, encoding="bytes").load()
      images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
      labels.append(np.array(batch[b"labels"], np.int32))
      if labels[-1].shape != (len(images[-1]),) or not 0 <= labels[-1].min() <= labels[-1].max() < 10:
        raise ValueError("its labels are not one of 0 to 9 an image")
    except (OSError, EOFError, AttributeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
      raise DataError(f"{called}/{name} cannot be read: {type(error).__name__}: {error}") from None
  return Arrays("cifar10", split, np.concatenate(images), np.concatenate(labels), 10)


class _NumpyUnpickler(pickle.Unpickler):
  """Reads arrays and nothing else: nothing in the file is run."""

  def find_class(self, module, name):
    if (name, module) in (("ndarray", "numpy"), ("dtype", "numpy")):
      return getattr(np, name)
    if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
      return np.empty(0).__reduce__()[0]
    raise pickle.UnpicklingError(f"it asks for {module}.{name}")
