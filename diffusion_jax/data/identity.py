"""Which data a path names, so that data may be moved and a changed set is another one."""

import functools
import hashlib
import os
import zipfile

from etils import epath

from diffusion_jax import config as config_lib
from diffusion_jax import files
from diffusion_jax.data import labels as labels_lib
from diffusion_jax.data.decoded import in_threads
from diffusion_jax.data.folders import images_under

LATENTS_FILE = "latents.json"  # of a folder of latents, see `latents`
_ENDS = 1 << 20  # bytes at each end of a file that are looked at


def of_path(name: str, path: str) -> list:
  """What is the same wherever the data lie, and differs for other data, without reading all of them.

  Args:
    name: of the source, config.data.name.
    path: config.data.path.

  A folder is looked at again in the same process where the time of its last change is another.

  Returns:
    Plain values. Of a TFDS set its whole name. Of a folder the names of its images, their sizes and dataset.json. Of a
    file its name, its size and, of a zip or an .npz, the names and CRCs of its members, else its first and last MiB; of
    latents that of their JSON. Of what is not there its name.
  """
  if name == "tfds":
    return [path]
  path = epath.Path(path) / LATENTS_FILE if name == config_lib.LATENTS else epath.Path(path)
  try:
    return _of_what_is_there(os.fspath(path), *_stat(path))
  except OSError:  # opening the data says so
    return [path.name, None]


def _stat(path: epath.Path) -> tuple[int, int]:
  """Bytes, and the time of the last change."""
  if files.is_remote(path):
    found = path.stat()
    return found.length, found.mtime
  found = os.stat(path)
  return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)  # a sweep asks once a member
def _of_what_is_there(path: str, length: int, changed: int) -> list:
  path = epath.Path(path)
  return _folder(path) if path.is_dir() else [path.name, length, _file(path, length)]


def _folder(path: epath.Path) -> list:
  names = sorted(images_under(path))
  sizes = [0] * len(names)

  def measure(slots):
    for i in slots:
      sizes[i], _ = _stat(path / names[i])

  in_threads(measure, len(names))
  digest = hashlib.sha256()
  for name, size in zip(names, sizes):
    digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
  described = path / labels_lib.FILE
  if described.is_file():
    digest.update(described.read_bytes())
  return [len(names), digest.hexdigest()]


def _file(path: epath.Path, length: int) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as file:
    try:
      with zipfile.ZipFile(file) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename):
          digest.update(f"{member.filename}\0{member.file_size}\0{member.CRC}\0".encode(errors="surrogateescape"))
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
      file.seek(0)
      digest.update(file.read(_ENDS))
      file.seek(max(0, length - _ENDS))
      digest.update(file.read(_ENDS))
  return digest.hexdigest()
