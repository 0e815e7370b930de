"""Decoded images held in memory."""

import numpy as np
from etils import epath

from diffusion_jax.data.base import Source, check_indices
from diffusion_jax.data.decoded import Decoded

_SHARE = 4  # a set is held by itself if it takes at most one in this many of the bytes available
_CHUNK = 1024  # images gathered at a time


class Cached:
  """A source whose images are kept once they have been read: every host keeps those that it reads.

  Threads may gather together: two that want the same image may both read it, and both write the same bytes.
  """

  def __init__(self, source: Source):
    self._source = source
    self.name, self.split, self.num_classes = source.name, source.split, source.num_classes
    self.image_shape, self.path = source.image_shape, getattr(source, "path", None)
    nothing = source.gather(np.arange(0))
    self._held = {key: np.empty((len(source), *x.shape[1:]), x.dtype) for key, x in nothing.items()}
    self._read = np.zeros(len(source), bool)  # set after the image is there

  def __len__(self):
    return len(self._source)

  def gather(self, indices):
    indices = check_indices(indices, len(self))
    self._fill(indices)
    return {key: held[indices] for key, held in self._held.items()}

  def whole(self) -> dict[str, np.ndarray]:
    """All examples, in their order; not a copy."""
    for start in range(0, len(self), _CHUNK):
      self._fill(np.arange(start, min(start + _CHUNK, len(self))))
    return self._held

  def _fill(self, indices):
    missing = indices[~self._read[indices]]
    if missing.size:
      missing = np.unique(missing)
      for key, values in self._source.gather(missing).items():
        self._held[key][missing] = values
      self._read[missing] = True


def cached(source: Source, mode: str) -> Source:
  """The source as config.data.cache says: "none", "host", "device" (read once like host), or "auto".

  "auto" holds the set if it takes at most a quarter of the memory available now. Sources in memory stay as they are.
  """
  if mode == "none" or not isinstance(source, Decoded):
    return source
  fits = len(source) * int(np.prod(source.image_shape)) * _SHARE <= available_memory()
  return Cached(source) if mode != "auto" or fits else source


def everything(source: Source) -> dict[str, np.ndarray]:
  """All of a source: "image" [N, H, W, C] uint8 or float32 in [−1, 1], and "label" [N] int32; not to be written to."""
  return (source if isinstance(source, Cached) else Cached(source)).whole()


def available_memory() -> int:
  """Bytes that the machine has left or, where that is less, the container (cgroup) of this process; 0 if unknown."""
  left = []
  try:
    fields = dict(line.split(":") for line in epath.Path("/proc/meminfo").read_text().splitlines())
    left.append(int(fields["MemAvailable"].split()[0]) * 1024)
  except (OSError, KeyError, ValueError):
    pass  # no Linux
  for limit, used in (
    ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
  ):
    folder = epath.Path("/sys/fs/cgroup")
    try:
      left.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
    except (OSError, ValueError):
      pass  # another version of cgroups, or "max"
  return max(0, min(left, default=0))
