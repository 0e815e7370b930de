"""The mean of Dual-Output's r at each t, for the paper's "fixed r_t". It is measured on noised data; the paper's, and
that of experiments/figures/dual_curves.py (Fig. 6), along the sampler's walks, where r may differ.

    r̄_t = E r_θ(x_t, t),  x_t = α(t)·x_0 + σ(t)·ε                                       (1)

over pixels, over images x_0 of a run's data and over noise, at t = T/n, 2T/n, …, T. A run keeps what was measured in
r_table.json, a list of {"step", "images", "times", "mean", "low", "high"}; low and high are the least and the largest
value of an image's mean over its pixels.
"""

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import mesh, sampling
from diffusion_jax.data import sources
from diffusion_jax.methods import Method, base, dual_output
from diffusion_jax.types import normal

FILE = "r_table.json"
NUM_IMAGES = 256
POINTS = 100
_FIELDS = {"step", "images", "times", "mean", "low", "high"}


def measure(config: ConfigDict, variables, num_images: int = NUM_IMAGES, points: int = POINTS, progress=None) -> dict:
  """r_θ on the first images of a run's data: {"images", "times" [n], "mean" [n], "low" [n], "high" [n]}.

  Args:
    config: a run's, of the method dual_output.
    variables: its parameters.
    num_images: at most; all of them see the same noise at every t.
    points: n, at most T.
    progress: called with 1 as a time is done.

  Raises:
    ValueError: config is of another method, or the numbers are not positive.
    ConfigError, DataError: the data cannot be had.
  """
  if config.method != "dual_output" or config.dual.heads != "dual":
    raise ValueError(f"r is measured for method 'dual_output' with all heads, got {config.method}, {config.dual.heads}")
  if num_images < 1 or points < 1:
    raise ValueError(f"num_images and points must be positive, got {num_images} and {points}")
  chain, heads = dual_output.process_from_config(config), dual_output.heads_from_config(config)
  source, points = sources.from_config(config), min(points, chain.num_steps)
  batch = source.gather(np.arange(min(num_images, len(source))))
  x0 = base.images_of({"image": jnp.asarray(batch["image"])}, None, False)
  eps = normal(sampling.keys_of(np.arange(len(x0))), 0, x0.shape[1:])
  cond = {"label": jnp.asarray(batch["label"])} if config.data.num_classes else None

  @jax.jit
  def ratio(variables, t):
    x = chain.perturb(x0, eps, t)
    return jnp.mean(jax.nn.sigmoid(heads(variables, x, t, cond)["r"]), axis=(1, 2, 3))

  times, found = chain.num_steps * np.arange(1, points + 1) / points, []
  for t in times:
    found.append(np.asarray(ratio(variables, jnp.float32(t)), np.float64))
    if progress:
      progress(1)
  values = {"mean": np.mean(found, 1), "low": np.min(found, 1), "high": np.max(found, 1)}
  return {"images": len(x0), "times": times.tolist(), **{name: value.tolist() for name, value in values.items()}}


def resolve(
  config: ConfigDict, folder, step: int | str | None, take: Callable[[], tuple[Method, dict]], stored_only: bool = False
) -> ConfigDict | None:
  """The config with the means of r put in where config.sampling.ratio is "mean"; else the config as it is.

  What is on file for the same checkpoint is taken from there.

  Args:
    config: a run's config.
    folder: with the file.
    step: of the checkpoint.
    take: () -> (method, variables), called only where needed.
    stored_only: measure nothing; None where it is not on file.

  Raises:
    ConfigError, DataError: it has to be measured, and the data cannot be had.
  """
  if config.sampling.ratio != "mean":
    return config
  table = json.loads(mesh.from_first_host(lambda: json.dumps(stored(folder, step))))
  if table is None and stored_only:
    return None
  if table is None:
    table = measure(config, take()[1])
    save(folder, step, table)
  chosen = config.copy_and_resolve_references()
  chosen.sampling.ratio = ",".join(f"{value:.4g}" for value in table["mean"])
  config_lib.check(chosen)
  return chosen


def stored(folder, step: int | str | None) -> dict | None:
  """What is on file for a checkpoint; None where there is nothing."""
  return next((entry for entry in reversed(_entries(folder)) if entry["step"] == step), None)


def save(folder, step: int | str | None, table: dict):
  """Puts what was measured into folder/r_table.json, in place of what was there for the checkpoint; on the first host.

  The file is written beside and renamed. A folder that cannot be written gives a warning alone.
  """
  if jax.process_index() != 0:
    return
  path = epath.Path(folder) / FILE
  kept = [entry for entry in _entries(folder) if entry["step"] != step]
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
