"""Checkpoints: atomic, asynchronous, each with the config that made it and digests of its files.

workdir/checkpoints/STEP holds `state` (the whole TrainState, by orbax), `meta` (format, package version, config, score)
and digests.json. A checkpoint lies there under its name only when it is complete; one whose files were changed since is
passed over.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import files, mesh, methods
from diffusion_jax.training import digests, start
from diffusion_jax.training import state as state_lib
from diffusion_jax.training.run_config import WorkdirError, as_config
from diffusion_jax.training.run_config import check_workdir as check_workdir
from diffusion_jax.training.run_config import read_config as read_config
from diffusion_jax.training.run_config import write_config as write_config
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Params

T = TypeVar("T")

FORMAT = 1  # of what a checkpoint holds; one of a later format is refused


class SaveError(RuntimeError):
  """A run that cannot write; its message is one line: what, why, and from where the run will go on."""


class Checkpoints:
  """The checkpoints of one workdir's run, for the process that trains it."""

  def __init__(self, workdir, config: ConfigDict):
    """config is the run's; of config.train it reads keep_checkpoints, keep_every and keep_best."""
    self._folder = folder_of(workdir)
    self._meta = {
      "format": FORMAT,
      "version": importlib.metadata.version("diffusion-jax"),
      "config": config_lib.flatten(config),
    }
    self._scores = scores_of(self._folder)
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_Kept(config.train, self._scores),
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
      ),
      item_names=("state", "meta"),
    )
    self._writing = None  # the step whose files are being written
    self._damaged = []  # steps passed over by `restore`; they give way to the first `save` after it

  def latest_step(self) -> int | None:
    """The newest complete checkpoint's step."""
    return self._manager.latest_step()

  def save(self, state: TrainState, step: int, score: float | None = None):
    """Starts to write a state under its step; returns when it is copied, before it is on disk.

    Args:
      state: `Layout.gather` of the run's state.
      step: its step.
      score: by which the best are kept, the lower the better.

    Raises:
      SaveError: this or the checkpoint before cannot be written.
    """
    try:
      while self._damaged:
        self._manager.delete(self._damaged.pop())
      if step in self._manager.all_steps():
        return
      self._manager.wait_until_finished()
      self._writing = step
      if score is not None:
        self._scores[step] = score
      meta = {**self._meta, "score": score}
      args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
      self._manager.save(step, args=args)
    except Exception as error:  # whatever a full disk raises inside the writer
      raise self._lost(error) from error

  def restore(self, template: TrainState) -> TrainState:
    """The newest checkpoint that can be read; one that cannot is passed over with a warning.

    Args:
      template: shapes and types of the state, with the shardings under which it shall lie.

    Raises:
      WorkdirError: there is none.
    """
    for step in sorted(self._manager.all_steps(), reverse=True):
      folder = self._folder / str(step)
      args = ocp.args.Composite(state=ocp.args.StandardRestore(template))
      found = _read_whole(folder, lambda step=step, args=args: self._manager.restore(step, args=args).state)
      if found is not None:
        return found
      self._damaged.append(step)
    raise WorkdirError(f"{self._folder} holds no checkpoint that can be read")

  def close(self):
    """Waits for writes to end; raises SaveError if the last one failed."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._lost(error) from error
    finally:
      self._manager.close()

  def _lost(self, error: Exception) -> SaveError:
    reason = " ".join(str(error).split()) or type(error).__name__
    last = _last_good(self._folder, but=self._writing)
    return SaveError(f"checkpoint {self._folder / str(self._writing)} cannot be written; {last}: {reason[:500]}")

  def _write_digests(self):
    """Runs when all files are written, before the checkpoint gets its name."""
    if jax.process_index() or files.is_remote(self._folder):  # a bucket has checksums of its own
      return
    for folder in self._folder.iterdir():
      if folder.name.split(".")[0] == str(self._writing):
        digests.write(folder)


@contextlib.contextmanager
def writing(workdir):
  """Makes of an error in writing a run's other files a SaveError, which says from where the run will go on."""
  try:
    yield
  except Exception as error:
    if not (isinstance(error, OSError) or files.unreachable(error)):
      raise
    raise SaveError(f"--workdir={workdir} cannot be written; {_last_good(folder_of(workdir))}: {error}") from error


def _last_good(folder: epath.Path, but: int | None = None) -> str:
  complete = [step for step in steps_of(folder) if step != but]
  return f"the last good checkpoint is {folder / str(complete[-1])}" if complete else "there is no checkpoint before it"


def folder_of(workdir) -> epath.Path:
  """Where a workdir's checkpoints lie."""
  return files.absolute(workdir) / "checkpoints"


def steps_of(folder: epath.Path) -> list[int]:
  """The steps of the complete checkpoints in a folder, in order.

  On a disk a folder gets its last name when it is complete; in a bucket, which has no renaming, orbax then adds a file.
  """
  found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
  return sorted(int(path.name) for path in found if ocp.utils.is_checkpoint_finalized(path))


def _read_meta(folder: epath.Path) -> dict:
  """What a checkpoint says of itself; raises WorkdirError if it is of a format that this version does not know."""
  meta = json.loads((folder / "meta" / "metadata").read_text())
  if meta["format"] > FORMAT:
    raise WorkdirError(f"{folder} is of format {meta['format']}, by diffusion-jax {meta['version']}: this is too old")
  return meta


def _read_whole(folder: epath.Path, read: Callable[[], T]) -> T | None:
  """read(), if a checkpoint is as it was written; else None, with a warning."""
  damage = mesh.from_first_host(lambda: digests.altered(folder))
  if not damage:
    try:
      _read_meta(folder)
      return read()
    except WorkdirError:
      raise
    except Exception as error:  # whatever a damaged file raises inside the reader
      if files.unreachable(error):
        raise WorkdirError(" ".join(f"{folder} cannot be read now: {error}".split())) from None
      damage = " ".join(str(error).split())
  logging.warning("checkpoint %s is damaged and passed over: %s", folder, damage)
  return None


def scores_of(folder: epath.Path) -> dict[int, float]:
  """{step: score} of those checkpoints in a folder that have one."""
  found = {}
  for step in steps_of(folder):
    with contextlib.suppress(OSError, ValueError, KeyError):  # what is damaged has none
      score = json.loads((folder / str(step) / "meta" / "metadata").read_text())["score"]
      if score is not None:
        found[step] = score
  return found


class _Kept:
  """orbax's preservation policy: the newest, those of every so many steps, and the best by score."""

  def __init__(self, train: ConfigDict, scores: dict[int, float]):
    self._train, self._scores = train, scores

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    steps = [checkpoint.step for checkpoint in checkpoints]
    scored = sorted((step for step in steps if step in self._scores), key=lambda step: (self._scores[step], step))
    kept = {*sorted(steps)[-self._train.keep_checkpoints :], *scored[: self._train.keep_best]}
    every = self._train.keep_every
    return [step in kept or bool(every and step % every == 0) for step in steps]


def has_checkpoint(workdir) -> bool:
  """Whether a run has anything to go on from; no workdir has nothing."""
  return workdir is not None and bool(steps_of(folder_of(workdir)))


def newest(workdir) -> int:
  """The step of the newest complete checkpoint; raises WorkdirError where there is none."""
  steps = steps_of(folder_of(workdir))
  if not steps:
    raise WorkdirError(f"--workdir={workdir}: no checkpoint here yet")
  return steps[-1]


def best(workdir) -> int:
  """The step of the checkpoint with the lowest score; raises WorkdirError where none has one."""
  found = scores_of(folder_of(workdir))
  if not found:
    raise WorkdirError(f"--workdir={workdir}: no checkpoint here has a score; see config.train.score_every")
  return min(found, key=lambda step: (found[step], step))


def fingerprint(workdir, step: int) -> str:
  """SHA-256 in hexadecimal of the files of one checkpoint: their names and bytes."""
  found = digests.of(folder_of(workdir) / str(step))
  return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def load_for_inference(path, step: int | None = None, config: ConfigDict | None = None) -> tuple[methods.Method, dict]:
  """A run's method and averaged parameters, on this machine's first device, whatever it was trained on.

      method, variables = load_for_inference("runs/edm_digits")

  Args:
    path: the workdir of a run, or the folder of one checkpoint, wherever that was copied to.
    step: which checkpoint of the workdir; the newest by default.
    config: the run's config with other sampling fields; that of the checkpoint by default.

  Returns:
    (method, variables).

  Raises:
    ConfigError: config is wrong.
    WorkdirError: there is no run or no checkpoint, or it cannot be read.
  """
  ema, own = load_averages(path, step)
  method = methods.from_config(config or own)
  return method, state_lib.inference_variables(ema)


def load_averages(path, step: int | None = None) -> tuple[dict[str, Params], ConfigDict]:
  """{role: averaged parameters} of a checkpoint, see `load_for_inference`, and the config that it was trained with.

  Raises:
    WorkdirError: there is no run or no checkpoint, or it cannot be read.
  """
  path = epath.Path(path)
  if (path / "state").exists():
    folders = [files.absolute(path)]
  else:
    steps = steps_of(folder_of(path))
    if not steps:
      read_config(path)  # raises where there is no run at all
      raise WorkdirError(f"--workdir={path}: no checkpoint here yet")
    if step is not None and step not in steps:
      raise WorkdirError(f"{folder_of(path)} has no checkpoint of step {step}, only {steps}")
    folders = [folder_of(path) / str(s) for s in (steps[::-1] if step is None else [step])]
  for folder in folders:
    found = _read_whole(folder, lambda folder=folder: _read_averages(folder))
    if found is not None:
      return found
  raise WorkdirError(f"{path} holds no checkpoint that can be read")


def _read_averages(folder: epath.Path) -> tuple[dict[str, Params], ConfigDict]:
  config = as_config(_read_meta(folder)["config"])
  shapes = start.shapes(methods.from_config(config), config).ema
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  template = {"ema": jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)}
  restore_args = ocp.checkpoint_utils.construct_restore_args(template)
  with ocp.PyTreeCheckpointer() as reader:
    args = ocp.args.PyTreeRestore(item=template, restore_args=restore_args, partial_restore=True)
    return reader.restore(folder / "state", args=args)["ema"], config
