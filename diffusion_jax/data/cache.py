"""Decoded images held in memory."""

from collections.abc import Iterator

import numpy as np
from etils import epath

from diffusion_jax.data.base import Arrays, Source, check_indices
from diffusion_jax.data.crops import Crops
from diffusion_jax.data.decoded import Decoded
from diffusion_jax.data.tasks import Conditioned

_SHARE = 4  # a set is held by itself if it takes at most one in this many of the bytes available
_CHUNK = 1024  # images gathered at a time
_CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")


class Cached:
  """A source whose images are kept once they have been read: every host keeps those that it reads.

  Threads may gather together: two that want the same image may both read it, and both write the same bytes.
  """

  def __init__(self, source: Source):
    self._source = source
    self.name, self.split, self.num_classes = source.name, source.split, source.num_classes
    self.image_shape, self.path = source.image_shape, getattr(source, "path", None)
    if hasattr(source, "condition_shape"):
      self.condition_shape = source.condition_shape
    self._held = {key: np.empty((len(source), *x.shape[1:]), x.dtype) for key, x in _nothing(source).items()}
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
      if isinstance(self._source, Crops | Conditioned):
        missing = self._source.together(missing)
        missing = missing[~self._read[missing]]
      for key, values in self._source.gather(missing).items():
        self._held[key][missing] = values
      self._read[missing] = True


def cached(source: Source, mode: str) -> Source:
  """The source as config.data.cache says: "none", "host", "device" (read once like host), or "auto".

  "auto" holds the set if it takes at most a quarter of the memory available now, images and what they are made from.
  Sources in memory stay as they are, but for conditions that are computed from them.
  """
  if mode == "none" or not isinstance(source, Decoded | Crops | Conditioned):
    return source
  example = sum(int(np.prod(x.shape[1:])) * x.itemsize for key, x in _nothing(source).items() if key != "label")
  fits = len(source) * example * _SHARE <= available_memory()
  return Cached(source) if mode != "auto" or fits else source


def everything(source: Source) -> dict[str, np.ndarray]:
  """All of a source: "image" [N, H, W, C] uint8 or float32 in [−1, 1], and "label" [N] int32; not to be written to.

  Of a source with a task also what its images are made from. What is in memory already is not copied.
  """
  if isinstance(source, Arrays):
    return {"image": source.images, "label": source.labels}
  return (source if isinstance(source, Cached) else Cached(source)).whole()


def _nothing(source: Source) -> dict[str, np.ndarray]:
  """What `source` gathers, of no example: its keys, shapes and types."""
  return source.gather(np.arange(0))


def available_memory(root="/") -> int:
  """Bytes that the machine has left or, where that is less, a cgroup of this process or one above it; 0 if unknown.

  Files that the system keeps in memory and has not used lately count as left.

  Args:
    root: the folder with `proc` and `sys`.
  """
  root, left = epath.Path(root), []
  try:
    left.append(_fields(root / "proc/meminfo")["MemAvailable"] * 1024)
  except (OSError, KeyError, ValueError):
    pass  # no Linux
  for folder, (limit, used, cache) in _cgroups(root):
    try:
      room = int((folder / limit).read_text()) - int((folder / used).read_text())
      left.append(room + _fields(folder / "memory.stat").get(cache, 0))
    except (OSError, ValueError):
      pass  # no limit ("max"), or no such folder: a container sees its own cgroup at the top
  return max(0, min(left, default=0))


def _cgroups(root: epath.Path) -> Iterator[tuple[epath.Path, tuple[str, str, str]]]:
  """The memory cgroups of this process and those above them, with the names of limit, use and cache in them."""
  try:
    lines = (root / "proc/self/cgroup").read_text().splitlines()
  except OSError:
    return
  for line in lines:
    _, controllers, inside = line.split(":", 2)
    tops, names = [], _CGROUP_V1
    if not controllers:
      tops, names = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], _CGROUP_V2
    elif "memory" in controllers.split(","):
      tops = ["sys/fs/cgroup/memory", f"sys/fs/cgroup/{controllers}"]
    parts = [part for part in inside.split("/") if part not in ("", "..")]  # .. where it is outside of the container
    for top in tops:
      yield from ((root.joinpath(top, *parts[:depth]), names) for depth in range(len(parts), -1, -1))


def _fields(path: epath.Path) -> dict[str, int]:
  """The numbers of a file of lines "name: number kB" or "name number"."""
  words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
  return {line[0]: int(line[1]) for line in words if len(line) > 1}
