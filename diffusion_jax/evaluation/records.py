"""Scores with all that they depend on, as lines of JSON; each is computed once.

A record holds a metric's value over one block of seeds, the extractor, the reference, the checkpoint, the sampler and
the machine. What determines the value is the record's identity: a score whose identity is on file is not computed
again.
"""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable

import jax
import numpy as np
from etils import epath

from diffusion_jax import config as config_lib
from diffusion_jax import files

PACKAGES = ("diffusion-jax", "jax", "jaxlib", "flax", "numpy", "scikit-learn")
# Fields that say how a value came about without determining it.
_CIRCUMSTANCES = ("value", "versions", "device", "seconds", "nfe", "standard")


def identity(record: dict) -> str:
  """What determines a record's value, as 16 hexadecimal digits.

  Names of files and sampling fields at their defaults do not count: a workdir may be moved, and fields be added. A
  classifier that guides counts as its weights.
  """
  kept = {name: value for name, value in record.items() if name not in _CIRCUMSTANCES}
  for part in ("checkpoint", "reference", "classifier"):
    if kept.get(part):
      kept[part] = kept[part]["sha256"]
  if kept.get("sampling"):
    defaults = config_lib.default().sampling
    count = lambda name, value: name != "classifier" and defaults.get(name) != value
    kept["sampling"] = {name: value for name, value in kept["sampling"].items() if count(name, value)}
  return digest(kept)


def digest(value) -> str:
  """16 hexadecimal digits of a tree of dicts, lists and plain values."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def versions() -> dict[str, str]:
  """Versions of the packages that a value depends on, by name."""
  return {name: importlib.metadata.version(name) for name in PACKAGES}


def device() -> str:
  """The accelerator, as "8 × NVIDIA H100"."""
  return f"{jax.device_count()} × {jax.devices()[0].device_kind}"


class Records:
  """The records of one file, by identity.

  Attributes:
    path: one JSON object a line; a last line that a crash has cut off is passed over.
  """

  def __init__(self, path):
    self.path = epath.Path(path)
    self._known: dict[str, dict] = {}
    for line in self.path.read_text().splitlines() if self.path.exists() else []:
      try:
        record = json.loads(line)
      except json.JSONDecodeError:
        continue
      self._known[identity(record)] = record

  def __iter__(self):
    return iter(self._known.values())

  def __len__(self):
    return len(self._known)

  def get(self, record: dict) -> dict | None:
    """The record of this identity, None if it has not been computed."""
    return self._known.get(identity(record))

  def remember(self, records: Iterable[dict]):
    """Takes records without writing them: for hosts other than the first."""
    self._known.update((identity(record), record) for record in records)

  def add(self, records: Iterable[dict]):
    """Appends records to the file, in one write."""
    records = list(records)
    self.remember(records)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    cut = self.path.exists() and not (b"\n" + self.path.read_bytes()).endswith(b"\n")
    files.append(self.path, "\n" * cut + "".join(json.dumps(record) + "\n" for record in records))


def over_blocks(values: Iterable[float]) -> dict[str, float]:
  """Mean, standard deviation (0 for one value) and minimum over blocks of seeds, as papers report FID."""
  values = np.asarray(list(values), np.float64)
  spread = values.std(ddof=1) if len(values) > 1 else 0.0
  return {"mean": float(values.mean()), "std": float(spread), "min": float(values.min()), "max": float(values.max())}
