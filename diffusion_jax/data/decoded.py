"""Sources whose images are decoded when they are gathered, by several threads (PIL decodes outside Python's lock).

That all images have one size is seen when the source is opened, from their headers alone: no pixel is decoded for it.
Then damage of files is looked for too, see `Files`.
"""

import concurrent.futures
import contextlib
import functools
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from diffusion_jax.data.base import DataError, check_indices
from diffusion_jax.data.transforms import TooSmall, Transform

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")  # of image files
DAMAGE = (  # of a file; RuntimeError is zipfile's for one that is encrypted
  OSError, ValueError, SyntaxError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile
)  # fmt: skip
CHANNELS = {"L": 1, "RGB": 3}  # by PIL's modes: what is taken as it is

_PNG = b"\x89PNG\r\n\x1a\n"  # how one starts
_JPEG = (b"\xff\xd8", b"\xff\xd9")  # how one starts and ends
_HEADER_BYTES = 1 << 16  # read for a header; those of photographs may hold a profile and a thumbnail
_THOROUGH = 2 << 30  # bytes: files of up to so many together are read whole when they are opened
_SAMPLED = 256  # files whose sizes say how many bytes all have
TAIL = 12  # bytes: the last chunk of a PNG, the last of a JPEG
_LEAST = 16  # images a thread: fewer are not worth another one


class Decoded:
  """Base of these sources, see `base.Source`. A subclass gives `_read`, `place`, `__len__`, and may give `_header`."""

  def __init__(self, name: str, split: str, num_classes: int, transform: Transform | None):
    """Without a transform images must be 8-bit grey or RGB already, of one shape."""
    self.name, self.split, self.num_classes, self.transform = name, split, num_classes, transform

  def _read(self, i: int):
    """(PIL image i, its label)."""
    raise NotImplementedError

  def place(self, i: int) -> str:
    """Where image i lies, for messages."""
    raise NotImplementedError

  def _header(self, i: int) -> tuple[tuple[int, int], str]:
    """((width, height), PIL mode) of image i."""
    raise NotImplementedError

  def gather(self, indices):
    indices = check_indices(indices, len(self))
    images = np.empty((len(indices), *self.image_shape), np.uint8)
    labels = np.empty(len(indices), np.int32)

    def decode(slots):
      for k in slots:
        images[k], labels[k] = self._decode(int(indices[k]))

    in_threads(decode, len(indices))
    return {"image": images, "label": labels}

  def check(self) -> list[int]:
    """Reads all headers, and sets image_shape and sizes ([N, 2] int32, width and height of what is decoded).

    Returns:
      The images that the transform leaves out as too small.

    Raises:
      DataError: the first image that cannot be read, or is not like the first.
    """
    small, self.sizes = [], np.zeros((len(self), 2), np.int32)

    def examine(slots):
      for i in slots:
        with self.reading(i):
          size, mode = self._header(i)
          self.sizes[i] = size
          try:
            shape = self._shape(size, mode)
          except TooSmall:
            small.append(i)
            continue
        self._same(i, shape)

    with self.reading(0):
      self.image_shape = self.transform.shape if self.transform else self._shape(*self._header(0))
    in_threads(examine, len(self))
    return sorted(small)

  def check_all(self):
    """`check`, where an image too small is an error."""
    for i in self.check():
      try:
        self._shape(*self._header(i))
      except TooSmall as error:
        raise DataError(f"{self.place(i)} cannot be transformed: {error}") from None

  def _shape(self, size, mode) -> tuple[int, int, int]:
    if self.transform:
      self.transform.check(size, mode)
      return self.transform.shape
    if mode not in CHANNELS:
      raise ValueError(f"its mode is {mode}, not 8-bit grey or RGB")
    return (size[1], size[0], CHANNELS[mode])

  def _same(self, i, shape):
    if shape != self.image_shape:
      raise DataError(f"{self.place(i)} has shape {shape}: expected {self.image_shape}, that of the first")

  def _decode(self, i: int) -> tuple[np.ndarray, int]:
    with self.reading(i):
      image, label = self._read(i)
      shape = self._shape(image.size, image.mode)
      pixels = self.transform(image) if self.transform else np.asarray(image).reshape(shape)
    self._same(i, shape)
    return pixels, label

  @contextlib.contextmanager
  def reading(self, i: int):
    """Around what reads image i: damage becomes a DataError that names it."""
    try:
      yield
    except DataError:
      raise
    except _damage() as error:
      raise DataError(f"{self.place(i)} cannot be read: {error}") from None


class Files(Decoded):
  """Image files, which are looked at for damage when their headers are checked.

  A subclass gives `_bytes(i, most)`, the first `most` bytes of file i, or all of them; and, if they are to be looked
  at, their sizes and last bytes. Up to 2 GiB of files are read whole. Then what is found is: a PNG that is truncated or
  has a wrong CRC, a JPEG without its end, a member of a zip with a wrong CRC. Of more bytes the first 64 KiB and the
  end of each file are read: PNGs and JPEGs without their end are found. Not found, until they are decoded, are damage
  inside a JPEG, files of other formats, and compressed data that are wrong under a right CRC. A file that seems damaged
  is decoded, which settles it.
  """

  names: list[str]  # in their folder or archive, with slashes
  labels: np.ndarray  # [N] int32
  _look = None  # at file i: gives its header after looking for damage; set by `check`

  def __len__(self):
    return len(self.labels)

  def _bytes(self, i: int, most: int | None = None) -> bytes:
    raise NotImplementedError

  def _size(self, i: int) -> int | None:
    """Bytes of file i; None for files that are not looked at for damage."""
    return None

  def _tail(self, i: int) -> bytes:
    """The last TAIL bytes of file i."""
    raise NotImplementedError

  def check(self):
    sampled = range(0, len(self), max(1, len(self) // _SAMPLED))
    try:
      sizes = [self._size(i) for i in sampled]
    except OSError:  # found, and named, by the headers
      sizes = [None]
    if None not in sizes:
      self._look = self._whole if sum(sizes) * len(self) <= _THOROUGH * len(sizes) else self._ends
    return super().check()

  def each(self, numbers, put: Callable[[int, object], None]):
    """Calls put(k, image) for the PIL image of each file of `numbers` [n], in threads.

    Neighbours in their order share an image, so that many parts of a file cost little more than one.
    """
    order = np.argsort(numbers, kind="stable")

    def read(slots):
      last = None
      for k in order[slots.start : slots.stop]:
        i = int(numbers[k])
        with self.reading(i):
          if i != last:
            image, last = self._read(i)[0], i
          put(k, image)

    in_threads(read, len(numbers), least=1)

  def _read(self, i):
    return opened(self._bytes(i)), self.labels[i]

  def _header(self, i):
    if self._look:
      return self._look(i)
    return header(self._bytes(i, _HEADER_BYTES), lambda: self._bytes(i))

  def _whole(self, i):
    data = self._bytes(i)
    found = header(data)
    if not intact(data):
      opened(data).load()
    return found

  def _ends(self, i):
    first = self._bytes(i, _HEADER_BYTES)
    found = header(first, lambda: self._bytes(i))
    if not (intact(first) if len(first) < _HEADER_BYTES else _has_end(first, self._tail(i))):
      opened(self._bytes(i)).load()
    return found


def intact(data: bytes) -> bool:
  """Whether a file shows no damage: chunks and CRCs of a PNG, the end of a JPEG; of other formats nothing is seen.

  Raises:
    ValueError: a CRC of a PNG's header, palette or pixels is wrong, which PIL may pass over.
  """
  if data[:2] == _JPEG[0]:
    return data[-2:] == _JPEG[1]
  if data[:8] != _PNG:
    return True
  view, at = memoryview(data), 8
  while at + 12 <= len(data):
    stop = at + 8 + struct.unpack_from(">I", data, at)[0]  # of the chunk, before its CRC
    kind = data[at + 4 : at + 8]
    if stop + 4 > len(data):
      return False
    if zlib.crc32(view[at + 4 : stop]) != struct.unpack_from(">I", data, stop)[0]:
      if kind in (b"IHDR", b"PLTE", b"IDAT"):
        raise ValueError(f"wrong CRC in its chunk {kind.decode()}")
      return False
    if kind == b"IEND":
      return True
    at = stop + 4
  return False


def _has_end(first: bytes, tail: bytes) -> bool:
  """`intact`, as far as a file's first and last bytes tell."""
  if first[:8] == _PNG:
    return tail[4:8] == b"IEND"
  return first[:2] != _JPEG[0] or tail[-2:] == _JPEG[1]


def header(first: bytes, whole: Callable[[], bytes] | None = None) -> tuple[tuple[int, int], str]:
  """((width, height), PIL mode) of an image file.

  Args:
    first: its first bytes.
    whole: gives all of them, asked for where those are not enough.

  Raises:
    One of DAMAGE: it is no image.
  """
  if first[:8] == _PNG and first[12:16] == b"IHDR":
    width, height, depth, colour = struct.unpack_from(">IIBB", first, 16)
    if depth == 8 and colour in (0, 2):  # the usual ones, in a thirtieth of PIL's time
      return (width, height), "RGB" if colour else "L"
    if depth == 16 and colour:  # of which PIL would give the upper 8; grey it refuses to call 8-bit
      raise ValueError("it is a PNG of 16 bits a channel, not 8")
  try:
    image = opened(first)
  except _damage():
    if whole is None:
      raise
    image = opened(whole())
  return image.size, image.mode


def opened(data: bytes):
  """The PIL image of a file's bytes, not decoded yet; a ValueError if they are no image."""
  import PIL.Image

  try:
    return PIL.Image.open(io.BytesIO(data))
  except PIL.UnidentifiedImageError:  # whose own message is an address in memory
    raise ValueError("it is no image, or of a format that PIL does not know") from None


def in_threads(function: Callable[[range], None], count: int, least: int = _LEAST):
  """Calls function on ranges that make up range(count), in threads; raises the error of the first range with one.

  A thread is given at least so many.
  """
  parts = max(1, min(_workers(), count // least))
  edges = [count * k // parts for k in range(parts + 1)]
  ranges = list(map(range, edges, edges[1:]))
  if parts == 1:
    return function(ranges[0])
  futures = [_pool().submit(function, part) for part in ranges]
  concurrent.futures.wait(futures)
  for future in futures:
    future.result()


@functools.cache
def _damage() -> tuple[type[Exception], ...]:
  import PIL.Image

  return (*DAMAGE, PIL.Image.DecompressionBombError)


def _workers() -> int:
  return min(16, max(4, os.cpu_count() or 1))  # at least 4: threads that wait for a file system take no processor


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(_workers(), thread_name_prefix="decode")
