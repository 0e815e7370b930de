"""Checkpoints: atomic, asynchronous, each with the config that made it and digests of its files.

workdir/checkpoints/STEP holds `state` (the whole TrainState, by orbax), `meta` (format, package version, config) and
digests.json. A checkpoint lies there under its name only when it is complete; one whose files were changed since is
passed over. Scores by which the best are kept are those of workdir/scores.jsonl.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
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

_DAMAGED = "damaged: "
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
    self._scores = {}
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
    """The newest complete checkpoint's step, as the first host sees it."""
    return max(self._steps(), default=None)

  def _steps(self) -> list[int]:
    """The steps of at most the last hundred checkpoints, the newest first, as the first host sees them."""
    steps = lambda: json.dumps(sorted(self._manager.all_steps(), reverse=True)[:100])
    return json.loads(mesh.from_first_host(steps))

  def save(self, state: TrainState, step: int):
    """Starts to write a state under its step; returns when it is copied, before it is on disk.

    Args:
      state: `Layout.gather` of the run's state.
      step: its step.

    Raises:
      SaveError: this or the checkpoint before cannot be written.
    """
    try:
      self._manager.wait_until_finished()
      self._writing = step
      while self._damaged:
        self._manager.delete(self._damaged[-1])
        self._damaged.pop()
      args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(self._meta))
      self._manager.save(step, args=args)
    except Exception as error:  # whatever a full disk raises inside the writer
      raise self._lost(error) from error

  def scored(self, scores: dict[int, float]):
    """Says how good checkpoints are, {step: score}, the lower the better: from the next `save` on the best are kept."""
    self._scores.update(scores)

  def restore(self, template: TrainState) -> TrainState:
    """The newest checkpoint that is whole; one that is damaged is passed over with a warning, by all hosts alike.

    Args:
      template: shapes and types of the state, with the shardings under which it shall lie.

    Raises:
      WorkdirError: there is none, or one cannot be read now that is not known to be damaged.
    """
    for step in self._steps():
      found = _read_whole(self._folder / str(step), lambda folder: _read_state(folder, template), together=True)
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
    last = _last_good(self._folder, (self._writing, *self._damaged))
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


def _last_good(folder: epath.Path, but: Sequence[int] = ()) -> str:
  complete = [step for step in steps_of(folder) if step not in but]
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


def _read_whole(folder: epath.Path, read: Callable[[epath.Path], T], together: bool = False) -> T | None:
  """read(folder) if a checkpoint is whole; None, with a warning, if it is damaged.

  Damaged is one whose files are not those that were written, or, where that cannot be told, that the reader does not
  understand. All else (a file system that fails, a device without memory) may pass, and is an error.

  Args:
    folder: of the checkpoint.
    read: what reads it.
    together: whether all hosts do this at once; then they come to one result, that of the first that has trouble.

  Raises:
    WorkdirError: the checkpoint is of a later format, or cannot be read now.
  """
  found, trouble, damage = None, "", None
  try:
    damage = digests.altered(folder) if not together else _from_first_host(digests.altered, folder)
    if damage:
      trouble = f"{_DAMAGED}{damage}"
    else:
      _read_meta(folder)
      found = read(folder)
  except WorkdirError as error:
    trouble = str(error)
  except Exception as error:  # whatever a damaged file raises inside the reader
    may_pass = damage == "" or _may_pass(error)  # "": the files are as they were written
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    trouble = f"{folder} cannot be read now: {reason}" if may_pass else f"{_DAMAGED}{reason}"
  troubles = list(filter(None, mesh.from_all_hosts(trouble) if together else [trouble]))
  for trouble in troubles:
    if not trouble.startswith(_DAMAGED):
      raise WorkdirError(trouble)
  if not troubles:
    return found
  logging.warning("checkpoint %s is damaged and passed over: %s", folder, troubles[0].removeprefix(_DAMAGED))
  return None


def _from_first_host(function: Callable[[epath.Path], str | None], folder: epath.Path) -> str | None:
  return json.loads(mesh.from_first_host(lambda: json.dumps(function(folder))))


def _may_pass(error: Exception) -> bool:
  """Whether an error says nothing about the files: of a file system, a network, or a device's memory."""
  if isinstance(error, OSError):
    return not isinstance(error, FileNotFoundError)
  return isinstance(error, MemoryError) or files.unreachable(error) or "RESOURCE_EXHAUSTED" in str(error)


def _reader() -> ocp.PyTreeCheckpointer:
  """A reader that waits for no other host: hosts agree on the outcome afterwards, see `_read_whole`."""
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host{me}"
  )
  return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _read_state(folder: epath.Path, template):
  """The arrays of a tree of shapes with shardings, which may be a part of what was saved."""
  restore_args = ocp.checkpoint_utils.construct_restore_args(template)
  with _reader() as reader:
    args = ocp.args.PyTreeRestore(item=template, restore_args=restore_args, partial_restore=True)
    return reader.restore(folder / "state", args=args)


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
  scores, steps = scores_of(workdir), steps_of(folder_of(workdir))
  found = [step for step in steps if step in scores]
  if not found:
    raise WorkdirError(f"--workdir={workdir}: no checkpoint here has a score; see config.train.score_every")
  return min(found, key=lambda step: (scores[step], step))


def newest_whole(workdir) -> int:
  """The step of the newest checkpoint whose files are as they were written, with a warning for each passed over.

  Raises:
    WorkdirError: there is none.
  """
  newest(workdir)  # raises where there is none at all
  for step in reversed(steps_of(folder_of(workdir))):
    damage = digests.altered(folder_of(workdir) / str(step))
    if not damage:
      return step
    logging.warning("checkpoint %s is damaged and passed over: %s", folder_of(workdir) / str(step), damage)
  raise WorkdirError(f"--workdir={workdir}: every checkpoint here is damaged")


def scores_of(workdir) -> dict[int, float]:
  """{step: score} of a run's scores.jsonl."""
  path, found = epath.Path(workdir) / "scores.jsonl", {}
  for line in path.read_text().splitlines() if path.exists() else ():
    with contextlib.suppress(KeyError, TypeError, ValueError):  # a line that a kill cut off
      record = json.loads(line)
      found[int(record["step"])] = float(record["frechet"])
  return found


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
  if (path / "state" / "_METADATA").exists():
    if step is not None:
      raise WorkdirError(f"{path} is one checkpoint: it goes without a step ({step})")
    folders = [files.absolute(path)]
  else:
    workdir = path.parent if path.name == "checkpoints" else path
    steps = steps_of(folder_of(workdir))
    if not steps:
      read_config(workdir)  # raises where there is no run at all
      raise WorkdirError(f"--workdir={workdir}: no checkpoint here yet")
    if step is not None and step not in steps:
      raise WorkdirError(f"{folder_of(workdir)} has no checkpoint of step {step}, only {steps}")
    folders = [folder_of(workdir) / str(s) for s in (steps[::-1] if step is None else [step])]
  for folder in folders:
    found = _read_whole(folder, _read_averages)
    if found is not None:
      return found
  raise WorkdirError(f"{path} holds no checkpoint that can be read")


def _read_averages(folder: epath.Path) -> tuple[dict[str, Params], ConfigDict]:
  config = as_config(_read_meta(folder)["config"])
  shapes = start.average_shapes(methods.from_config(config), config)
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  template = {"ema": jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)}
  return _read_state(folder, template)["ema"], config
