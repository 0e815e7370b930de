"""The mean of Dual-Output's r at each t: the paper's "fixed r_t", and the curve of its Fig. 6.

    r̄_t = E r_θ(x_t, t),  x_t on the way from noise to image by DDIM                      (1)

over pixels, classes and seeds, at t = T, T − T/n, …, T/n. A run keeps what was measured in r_table.json, a list of
{"step", "clip", "images", "times", "mean", "low", "high"}; low and high are the least and the largest value of an
image's mean over its pixels.
"""

import json
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import mesh, sampling
from diffusion_jax.evaluation import walks
from diffusion_jax.methods import Method

FILE = "r_table.json"
NUM_IMAGES = 64
POINTS = 100
_BATCH = 64
_FIELDS = {"step", "clip", "images", "times", "mean", "low", "high"}


def measure(
  config: ConfigDict, method: Method, variables, num_images: int = NUM_IMAGES, points: int = POINTS, progress=None
) -> dict:
  """r_θ along the walks of seeds 0, 1, …: {"clip", "images", "times" [n], "mean" [n], "low" [n], "high" [n]}.

  Args:
    config: a run's, of the method dual_output; the walks are clipped as its sampling is.
    method: its method.
    variables: its parameters.
    num_images: how many.
    points: n, at most T.
    progress: called with 1 as a step is done.

  Returns:
    The table, by increasing time.

  Raises:
    ValueError: config is of another method or has not all heads, or the numbers are not positive.
  """
  if config.method != "dual_output" or config.dual.heads != "dual":
    raise ValueError(f"r is measured for method 'dual_output' with all heads, got {config.method}, {config.dual.heads}")
  if num_images < 1 or points < 1:
    raise ValueError(f"num_images and points must be positive, got {num_images} and {points}")
  points = min(points, method.process.num_steps)
  config = config.copy_and_resolve_references()
  clip = config.sampling.clip
  config.sampling.update(config_lib.default().sampling)
  config.sampling.update(sampler="ddim", grid="respaced", num_steps=points, clip=clip)
  step, found = walks.stepper(config, method, variables), np.empty((points, num_images))
  times = sampling.schedule_of(config.sampling, method)[1][:-1]
  for start in range(0, num_images, _BATCH):
    seeds = np.arange(start, min(start + _BATCH, num_images))
    for done in walks.walk(config, method, step, seeds):
      found[done.number - 1, seeds] = np.mean(done.r, axis=(1, 2, 3), dtype=np.float64)
      if progress:
        progress(1)
  values = {"mean": found.mean(1), "low": found.min(1), "high": found.max(1)}
  values = {name: value[::-1].tolist() for name, value in {"times": times, **values}.items()}
  return {"clip": clip, "images": num_images, **values}


def resolve(
  config: ConfigDict, folder, step: int | str | None, take: Callable[[], tuple[Method, dict]], stored_only: bool = False
) -> ConfigDict | None:
  """The config with the means of r put in where config.sampling.ratio is "mean"; else the config as it is.

  What is on file for the same checkpoint and clip is taken from there.

  Args:
    config: a run's config.
    folder: with the file.
    step: of the checkpoint.
    take: () -> (method, variables), called only where needed.
    stored_only: measure nothing; None where it is not on file.

  Raises:
    ConfigError: the run has no r, or no such grid.
  """
  if config.sampling.ratio != "mean":
    return config
  clip = config.sampling.clip
  table = json.loads(mesh.from_first_host(lambda: json.dumps(stored(folder, step, clip))))
  if table is None and stored_only:
    return None
  if table is None:
    table = measure(config, *take())
    save(folder, step, table)
  chosen = config.copy_and_resolve_references()
  chosen.sampling.ratio = ",".join(f"{value:.4g}" for value in table["mean"])
  config_lib.check(chosen)
  return chosen


def stored(folder, step: int | str | None, clip: float = 0.0) -> dict | None:
  """What is on file for a checkpoint and the limit of clipping; None where there is nothing."""
  return next((entry for entry in _entries(folder) if (entry["step"], entry["clip"]) == (step, clip)), None)


def save(folder, step: int | str | None, table: dict):
  """Puts what was measured into folder/r_table.json, in place of what was there for the same; on the first host.

  The file is written beside and renamed. A folder that cannot be written gives a warning alone.
  """
  if jax.process_index() != 0:
    return
  path = epath.Path(folder) / FILE
  kept = [entry for entry in _entries(folder) if (entry["step"], entry["clip"]) != (step, table["clip"])]
  try:
    temporary = path.parent / f"{FILE}.tmp"
    temporary.write_text(json.dumps([*kept, {"step": step, **table}], indent=1) + "\n")
    temporary.replace(path)
  except OSError as error:
    logging.warning("%s cannot be written, r will be measured again: %s", path, error)


def _entries(folder) -> list[dict]:
  path = epath.Path(folder) / FILE
  try:
    found = json.loads(path.read_text()) if path.exists() else []
    return [entry for entry in found if _FIELDS <= entry.keys()]
  except (OSError, ValueError, AttributeError, TypeError) as error:
    logging.warning("%s cannot be read, and does not count: %s", path, error)
    return []
