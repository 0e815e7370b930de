"""A run's config in its workdir: config.json, and what may differ when the run goes on."""

import json

from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib


class WorkdirError(ValueError):
  """A workdir that cannot serve; its message is one line."""


def write_config(workdir, config: ConfigDict):
  """Writes workdir/config.json, through a temporary file; raises WorkdirError where that is not possible."""
  workdir = epath.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / "config.json.tmp"
    temporary.write_text(json.dumps(config_lib.flatten(config), indent=1) + "\n")
    temporary.replace(workdir / "config.json")
  except OSError as error:
    raise WorkdirError(f"--workdir={workdir} cannot be written: {error}") from None


def read_config(workdir) -> ConfigDict:
  """The config of a run.

  Raises:
    WorkdirError: the workdir holds no run, or its config cannot be read.
  """
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    raise WorkdirError(f"--workdir={workdir}: no run here, config.json is missing")
  try:
    return as_config(json.loads(path.read_text()))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise WorkdirError(f"{path} cannot be read: {error}") from None


def as_config(fields: dict) -> ConfigDict:
  """A config from its fields by dotted names, as JSON gives them."""
  config = config_lib.default()
  for field, value in fields.items():
    config.update_from_flattened_dict({field: tuple(value) if isinstance(value, list) else value})
  return config


# What does not change a run's updates (beyond rounding), and may differ when it goes on. A last dot stands for all
# fields of a part.
FREE = (
  "train.num_steps", "train.parallel", "train.accumulation", "train.max_skipped", "train.log_every",
  "train.checkpoint_every", "train.keep_checkpoints", "train.keep_every", "train.keep_best",
  "train.sample_every", "train.score_every", "train.score_images", "train.score_inception", "network.remat",
  "data.path", "data.data_dir", "data.cache", "task.path", "hang_timeout", "latent.autoencoder", "sampling.",
  "dddm.buffer_memory", "lpips.weights",
)  # fmt: skip
# What a run's own config has from its data, where it was left to them.
MEASURED = ("latent.scale", "latent.sha256", "dddm.num_examples", "dddm.fingerprint")


def is_free(field: str) -> bool:
  """Whether a field, by its dotted name, is one of FREE."""
  return any(field == name or (name.endswith(".") and field.startswith(name)) for name in FREE)


def check_workdir(workdir, config: ConfigDict, started: bool = False):
  """Raises WorkdirError if the workdir holds the run of another config.

  What does not change the run's updates may differ, such as train.num_steps, data.path and all of sampling; and of a
  run that has `started`, what it started from.
  """
  if workdir is None or not (epath.Path(workdir) / "config.json").exists():
    return
  old, new = config_lib.flatten(read_config(workdir)), config_lib.flatten(config)
  for field in new:
    free = is_free(field)
    if field == "data.path" and config.data.name == "tfds":
      free = False  # a name, not a place
    if field == "task.path" and not (old[field] and new[field]):
      free = False  # made from the images, or read from files
    free |= started and field.startswith(("init_", "condition.weights")) or field in MEASURED and not new[field]
    free |= field == "optimizer.decay_images"
    if old[field] != new[field] and not free and field in ("dddm.num_examples", "dddm.fingerprint"):
      then, now = (f"{c['dddm.num_examples']:,} examples ({c['dddm.fingerprint']})" for c in (old, new))
      raise WorkdirError(f"--workdir={workdir} holds estimates of other data, example by example: of {then}, not {now}")
    if old[field] != new[field] and not free:
      raise WorkdirError(f"--workdir={workdir} holds a run with config.{field} = {old[field]!r}, not {new[field]!r}")
  before, now = (config_lib.decay_images(c) for c in (as_config(old), config))
  if started and config.optimizer.decay_power and before != now:
    hint = f"--config.optimizer.decay_images={before} goes on so"
    raise WorkdirError(f"--workdir={workdir} holds a run whose rate falls over {before:,} images, not {now:,}: {hint}")
