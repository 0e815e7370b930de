"""Writes zips in the form of EDM's data sets, see `zips.Zip`."""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable

import numpy as np
from etils import epath

from diffusion_jax.data.base import Source
from diffusion_jax.data.decoded import in_threads
from diffusion_jax.data.labels import FILE

_CHUNK = 1024  # images in memory at a time


def write_zip(path, source: Source, indices=None, progress: Callable[[int], None] | None = None):
  """Writes images of a source, and their labels where it has classes, as an uncompressed zip of uncompressed PNGs.

  The file appears under its name when it is complete; the same images give the same bytes.

  Args:
    path: of the zip; one that is there is replaced. Its folder is made.
    source: of uint8 images with 1 or 3 channels.
    indices: which images, in this order; all by default.
    progress: called with the number of images of each chunk done.

  Raises:
    DataError: an image cannot be read. Nothing is left of the file then.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.partial")
  try:
    with partial.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
      _write(archive, source, np.arange(len(source)) if indices is None else np.asarray(indices), progress)
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink()
    raise


def _write(archive, source, indices, progress):
  labels = []
  for start in range(0, len(indices), _CHUNK):
    batch = source.gather(indices[start : start + _CHUNK])
    for k, data in enumerate(_encode(batch["image"]), start):
      name = f"{k // 1000:05d}/img{k:08d}.png"
      _add(archive, name, data)
      labels.append([name, int(batch["label"][k - start])])
    if progress:
      progress(len(batch["image"]))
  _add(archive, FILE, json.dumps({"labels": labels if source.num_classes else None}).encode())


def _encode(images) -> list[bytes]:
  import PIL.Image

  files = [b""] * len(images)

  def encode(slots):
    for k in slots:
      data = io.BytesIO()
      image = images[k][..., 0] if images.shape[-1] == 1 else images[k]
      PIL.Image.fromarray(image).save(data, format="png", compress_level=0)  # as EDM's tool: quick to decode
      files[k] = data.getvalue()

  in_threads(encode, len(images))
  return files


def _add(archive, name: str, data: bytes):
  member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the same bytes at any time, on any system
  member.create_system, member.external_attr = 3, 0o644 << 16
  archive.writestr(member, data)
