"""benchmark.py --input: how many images a second a config's own data source gives, as training reads them."""

import itertools
import os
import time

import numpy as np

from diffusion_jax import cli
from diffusion_jax.data import batching, sources

_TURN = 0.5  # seconds that a turn takes at least


class Reader:
  """Batches of a source as the training loop reads them: this host's share, made ahead by a thread."""

  def __init__(self, source: sources.Source, seed: int, batch_size: int, first: int, stop: int):
    self._make = lambda step: batching.batch(source, seed, step, batch_size, first, stop)
    self._steps, self._images = itertools.count(), stop - first
    self._batches = 1

  def turn(self) -> tuple[int, float]:
    """(images, seconds) of the next batches; the first turn decides how many those are."""
    while True:
      steps = list(itertools.islice(self._steps, self._batches))
      begin = time.perf_counter()
      for _ in batching.prefetch(self._make, steps):
        pass
      seconds = time.perf_counter() - begin
      if seconds >= _TURN:
        return self._batches * self._images, seconds
      self._batches *= 2


def measure(config, slots: tuple[int, int], repeats: int) -> dict:
  """The record: images a second in turns, decoded for every batch and held in memory.

  Args:
    config: whose data, seed and train.batch_size are taken.
    slots: this host's share of the batch.
    repeats: how many turns.
  """
  chosen = config.copy_and_resolve_references()
  chosen.data.cache = "none"
  begin = time.perf_counter()
  source = cli.checked(sources.from_config, chosen)
  opened = time.perf_counter()
  held = sources.cached(source, "host")
  if held is source:  # it lies in memory by itself
    cases = {"in memory": source}
  else:
    cases = {"decoded": source, "held in memory": held}
    sources.everything(held)
  filled = time.perf_counter()
  readers = {name: Reader(x, config.seed, config.train.batch_size, *slots) for name, x in cases.items()}
  rates = {name: [] for name in readers}
  for reader in readers.values():
    reader.turn()
  for _ in range(repeats):
    for name, reader in readers.items():
      images, seconds = reader.turn()
      rates[name].append(images / seconds)
  return {
    "config": config.to_dict(),
    "cpus": os.cpu_count(),
    "repeats": repeats,
    "num_images": len(source),
    "image_shape": list(source.image_shape),
    "open_seconds": opened - begin,
    "fill_seconds": filled - opened,
    "cases": {
      name: {"turns": turns, "images_per_second": np.quantile(turns, [0.25, 0.5, 0.75]).tolist()}
      for name, turns in rates.items()
    },
  }


def show(record: dict):
  """Prints a record as a table."""
  height, width, channels = record["image_shape"]
  data = record["config"]["data"]
  place = f"{data['name']}:{data['path']}" if data["path"] else data["name"]
  print(f"{place}: {record['num_images']} images {width}×{height}×{channels}, {record['cpus']} processors")
  print(f"opened in {record['open_seconds']:.2f} s, read into memory in {record['fill_seconds']:.2f} s")
  columns = "{:16}{:>12}{:>24}"
  print(columns.format("", "images/s", "quartiles"))
  for name, case in record["cases"].items():
    low, middle, high = case["images_per_second"]
    print(columns.format(name, f"{middle:.4g}", f"{low:.4g} – {high:.4g}"))
