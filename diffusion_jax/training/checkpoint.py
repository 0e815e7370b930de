"""Checkpoints: atomic, asynchronous, kept by count, each with the config that made it."""

import contextlib
import hashlib
import json

import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import files, methods
from diffusion_jax.training import start
from diffusion_jax.training import state as state_lib
from diffusion_jax.training.state import TrainState


class WorkdirError(ValueError):
  """A workdir that cannot serve; its message is one line."""


class Checkpoints:
  """The checkpoints of one workdir, under workdir/checkpoints."""

  def __init__(self, workdir, keep: int | None = None):
    self._manager = ocp.CheckpointManager(
      files.absolute(workdir) / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=keep)
    )
    self._damaged = []  # steps passed over by `restore`; they give way to the first `save` after it

  def latest_step(self) -> int | None:
    """The newest complete checkpoint's step."""
    return self._manager.latest_step()

  def save(self, state: TrainState):
    """Starts to write an unreplicated state under its own step; returns before it is on disk."""
    step = int(state.step)
    while self._damaged:
      self._manager.delete(self._damaged.pop())
    if step not in self._manager.all_steps():
      self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, template: TrainState, step: int | None = None) -> TrainState:
    """The newest checkpoint that can be read, or that of `step`; one that cannot is passed over with a warning.

    Args:
      template: a state of the same structure, shapes and types; placed where the result shall lie.
      step: which one; then no other will do.

    Raises:
      WorkdirError: there is none.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    if step is not None:
      if step not in steps:
        raise WorkdirError(f"{self._manager.directory} has no checkpoint of step {step}, only {steps[::-1]}")
      steps = [step]
    for candidate in steps:
      try:
        return self._manager.restore(candidate, args=ocp.args.StandardRestore(template))
      except Exception as error:  # whatever a damaged file raises inside the reader
        if files.unreachable(error):
          raise WorkdirError(" ".join(f"{self._manager.directory} cannot be read now: {error}".split())) from None
        logging.warning("checkpoint %s is damaged and passed over: %s", self._manager.directory / str(candidate), error)
        self._damaged.append(candidate)
    raise WorkdirError(f"{self._manager.directory} holds no checkpoint that can be read")

  def close(self):
    """Waits for writes to end."""
    self._manager.close()


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
  config = config_lib.default()
  try:
    for field, value in json.loads(path.read_text()).items():
      config.update_from_flattened_dict({field: tuple(value) if isinstance(value, list) else value})
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise WorkdirError(f"{path} cannot be read: {error}") from None
  return config


def has_checkpoint(workdir) -> bool:
  """Whether a run has anything to go on from."""
  return bool(_complete(workdir))


def newest(workdir) -> int:
  """The step of the newest complete checkpoint; raises WorkdirError where there is none."""
  steps = _complete(workdir)
  if not steps:
    raise WorkdirError(f"--workdir={workdir}: no checkpoint here yet")
  return max(steps)


def _complete(workdir) -> list[int]:
  """The steps of all complete checkpoints.

  On a disk a folder gets its last name when it is complete; in a bucket, which has no renaming, orbax then adds a file.
  """
  folder = epath.Path(workdir) / "checkpoints"
  found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
  return [int(path.name) for path in found if ocp.utils.is_checkpoint_finalized(path)]


def fingerprint(workdir, step: int) -> str:
  """SHA-256 in hexadecimal of the files of one checkpoint: their names, sizes and bytes."""
  folder = epath.Path(workdir) / "checkpoints" / str(step)
  digest = hashlib.sha256()
  for path in _files(folder):
    data = path.read_bytes()
    digest.update(f"{path.relative_to(folder)} {len(data)}\n".encode() + data)
  return digest.hexdigest()


def _files(folder: epath.Path):
  """All files under a folder, in the order of their names."""
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def check_workdir(workdir, config: ConfigDict):
  """Raises WorkdirError if the workdir holds the run of another config.

  What does not change the run's updates may differ: train.num_steps, data.path and all of sampling.
  """
  if not (epath.Path(workdir) / "config.json").exists():
    return
  old, new = config_lib.flatten(read_config(workdir)), config_lib.flatten(config)
  for field in new:
    free = field in ("train.num_steps", "data.path") or field.startswith("sampling.")
    if old[field] != new[field] and not free:
      raise WorkdirError(f"--workdir={workdir} holds a run with config.{field} = {old[field]!r}, not {new[field]!r}")


def load_for_inference(workdir, step: int | None = None, config: ConfigDict | None = None):
  """A run's method and averaged parameters, on this machine's first device.

  Args:
    workdir: of `experiments/train.py`.
    step: which checkpoint; the newest by default.
    config: the run's config with other sampling fields; read from the workdir by default.

  Returns:
    (method, variables, step).

  Raises:
    ConfigError: config is wrong.
    WorkdirError: there is no run or no checkpoint.
  """
  config = config or read_config(workdir)
  method = methods.from_config(config)
  state = restore(workdir, method, config, step)
  return method, state_lib.inference_variables(state), int(state.step)


def restore(workdir, method: methods.Method, config: ConfigDict, step: int | None = None) -> TrainState:
  """The newest state of a run, or that of `step`, on this machine's first device.

  Raises:
    WorkdirError: there is no checkpoint.
  """
  folder = epath.Path(workdir) / "checkpoints"
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir))) if folder.exists() else None
    if checkpoints is None or checkpoints.latest_step() is None:
      raise WorkdirError(f"--workdir={workdir}: no checkpoint here yet")
    return checkpoints.restore(start.template(method, config), step)
