"""Zips of images in the form of EDM's data sets."""

import os
import struct
import zipfile
import zlib

from diffusion_jax import files
from diffusion_jax.data import labels as labels_lib
from diffusion_jax.data.base import DataError, known
from diffusion_jax.data.decoded import DAMAGE, SUFFIXES, TAIL, Files
from diffusion_jax.data.transforms import Transform

_LOCAL_HEADER = 30  # bytes before a member's name; the lengths of name and extra field are the last four


class Zip(Files):
  """Images in a zip in the form of EDM's data sets, decoded when they are gathered.

  The archive holds images of one size, 00000/img00000000.png and so on, taken in the order of their names, and, for
  data with classes, dataset.json: {"labels": [[name, int], …]}. With a transform they may have any size. EDM's tool
  writes PNGs; any usual format is read, as its loader does.
  """

  def __init__(self, split: str, path, transform: Transform | None = None):
    self._path = os.fspath(path)
    self.path = None if transform else self._path  # the file says what the images are, unless they are transformed
    try:
      self._file = files.open_for_seeking(path)
      self._zip = zipfile.ZipFile(self._file)
    except (OSError, zipfile.BadZipFile) as error:
      raise ValueError(f"{self._path} cannot be read as a zip: {error}") from None
    members = {member.filename: member for member in self._zip.infolist()}
    self._members = [members[name] for name in sorted(members) if name.lower().endswith(SUFFIXES)]
    if not self._members:
      raise ValueError(f"{self._path} holds no images ({', '.join(SUFFIXES)})")
    self.labels, num_classes = labels_lib.none(len(self._members))
    self.names = [member.filename for member in self._members]
    if labels_lib.FILE in members:
      try:
        text = self._zip.read(labels_lib.FILE)
      except DAMAGE as error:
        raise DataError(f"{self._path}: {labels_lib.FILE} cannot be read: {error}") from None
      self.labels, num_classes = labels_lib.from_json(text, self.names, self._path, self.place)
    super().__init__("zip", split, num_classes, transform)
    self.check_all()

  def place(self, i):
    return f"{self._path}: {self._members[i].filename} (image {i})"

  def _size(self, i):
    return self._members[i].compress_size

  def _tail(self, i):
    member = self._members[i]
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
      return self._bytes(i)[-TAIL:]
    count = min(TAIL, member.compress_size)
    return os.pread(self._file.fileno(), count, self._start_of(member) + member.compress_size - count)

  def _start_of(self, member) -> int:
    """Where a member's bytes are in the archive."""
    local = os.pread(self._file.fileno(), _LOCAL_HEADER, member.header_offset)
    if local[:4] != b"PK\x03\x04" or len(local) < _LOCAL_HEADER:
      raise zipfile.BadZipFile("the archive is damaged here")
    return member.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", local[-4:]))

  def _bytes(self, i, most=None):
    """As zipfile reads, but the first bytes alone if asked, and without its lock.

    What is rare (other compressions, encryption) is left to it.
    """
    member, descriptor = self._members[i], self._file.fileno()
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
      return self._zip.read(member)
    start = self._start_of(member)
    if member.compress_type == zipfile.ZIP_STORED:
      data = os.pread(descriptor, member.compress_size if most is None else min(most, member.compress_size), start)
    else:
      packed = os.pread(descriptor, member.compress_size, start)
      data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most or 0)
    if most is None and zlib.crc32(data) != member.CRC:
      raise zipfile.BadZipFile("Bad CRC-32")
    return data


def zipped(split: str, path: str = "", transform: Transform | None = None) -> Zip:
  """A zip of images in the form of EDM's data sets, see `Zip`; "train" is all of it.

  Args:
    split: "train".
    path: of the archive, local or remote as etils' epath knows them.
    transform: what brings the images to one size; None if they have it.
  """
  known("split of source 'zip'", split, ("train",))
  if not path:
    raise ValueError("source 'zip' needs a path")
  return Zip(split, path, transform)
