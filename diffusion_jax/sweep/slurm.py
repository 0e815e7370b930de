"""The Slurm launcher: one job of an array for each group, through submitit.

A job runs its group as the local launcher would. What Slurm sends goes to every process of a job:

  USR2   some time before the job's time is up, as --signal asks, and at preemption where Slurm has send_user_signal.
         submitit calls `checkpoint`: the training saves, and submitit queues the job again.
  TERM   at preemption and scancel. submitit's process ignores it, the worker saves and ends. A preempted job is queued
         again by Slurm itself, where its PreemptMode and JobRequeue let --requeue do so; a cancelled one is not.

The status of a member that waits in Slurm's queue names its job, and `statuses` asks Slurm what became of that.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from diffusion_jax.sweep import folder, local
from diffusion_jax.sweep.description import SweepError

_SAVE_SECONDS = 90  # between Slurm's USR2 and the end of a job
_ENDED = tuple("CANCELLED COMPLETED FAILED TIMEOUT NODE_FAIL OUT_OF_MEMORY BOOT_FAIL DEADLINE REVOKED".split())
_UNKNOWN = "UNKNOWN"  # to sacct, which learns of a new job some seconds after sbatch
_UNKNOWN_SECONDS = 600  # after which a job that is still unknown is given up
_MAX_TIMEOUTS = 1000  # a training goes on over so many time limits; submitit's own default is 3


_OPEN = (folder.STOPPED, folder.WAITING, folder.RUNNING)


class Job:
  """What submitit pickles and calls: one group."""

  def __init__(self, workdir: Path, ids: Sequence[str], weights: Mapping[str, str]):
    self.workdir, self.ids, self.weights = workdir, tuple(ids), dict(weights)
    self._launcher = None

  def __call__(self) -> dict[str, str]:
    """{member: its state}."""
    self._launcher = local.Launcher(self.weights)
    self._launcher.run([local.task(self.workdir, self.ids)])
    states = self._states()
    if folder.STOPPED in states.values():
      # Slurm has signalled the worker too, which was faster: submitit or Slurm is about to queue this job again.
      self._wait_again()
      time.sleep(_SAVE_SECONDS)
    return states

  def checkpoint(self):
    """Called by submitit on USR2, before it queues the job again: saves, and says what to go on with."""
    from submitit.helpers import DelayedSubmission

    if self._launcher is not None:
      self._launcher.stop()
      self._launcher.wait(0.9 * _SAVE_SECONDS)
      self._launcher.reap()
    self._wait_again()
    return DelayedSubmission(Job(self.workdir, self.ids, self.weights))

  def _wait_again(self):
    """Says of the members that are left that they wait in the queue, so that nobody submits them again."""
    task = local.task(self.workdir, [id for id, state in self._states().items() if state in _OPEN])
    _set_submitted(task, _own_id())

  def _states(self) -> dict[str, str]:
    return {id: folder.written(self.workdir / "members" / id)["state"] for id in self.ids}

  def __getstate__(self):
    return {**self.__dict__, "_launcher": None}


def executor(root: Path, cluster: str = "slurm", parallel: int | None = None, **parameters):
  """submitit's executor with its scripts and logs under ROOT/slurm.

  Args:
    root: the sweep's folder, which all machines see.
    cluster: "slurm"; "local" and "debug" are submitit's own, for tests.
    parallel: jobs of the array that run at a time.
    **parameters: of submitit.AutoExecutor.update_parameters; those that are None are left out.

  Raises:
    SweepError: submitit or Slurm is missing, or a parameter is unknown.
  """
  try:
    import submitit
  except ImportError:
    raise SweepError("--launcher=slurm needs submitit: pip install 'diffusion-jax[slurm]'") from None
  if cluster == "slurm":
    more = {"requeue": True, **(parameters.pop("slurm_additional_parameters", None) or {})}
    more = {name: value for name, value in more.items() if value not in ("false", "False")}
    parameters.update(slurm_additional_parameters=more)
    parameters.update(slurm_signal_delay_s=_SAVE_SECONDS, slurm_array_parallelism=parallel)
  given = {name: value for name, value in parameters.items() if value is not None}
  try:
    out = submitit.AutoExecutor(root / "slurm", cluster, slurm_max_num_timeout=_MAX_TIMEOUTS)
    out.update_parameters(name="sweep_" + root.name, **given)
  except (RuntimeError, NameError, TypeError, ValueError, OSError) as error:
    raise SweepError(f"--launcher=slurm: {' '.join(str(error).split())}") from None
  return out


def submit(tasks: Sequence[local.Task], weights: Mapping[str, str], through, say: Callable = print) -> list[object]:
  """Submits one job for each task through an `executor`; returns submitit's jobs.

  Groups that a process is at work on, or whose job still waits in Slurm's queue, are left out.

  Args:
    tasks: what is to be run.
    weights: files of weights by extractor.
    through: from `executor`.
    say: takes a line for each group that is left out.

  Raises:
    SweepError: Slurm refused; then no status has changed.
  """
  taken = [_taken(task) for task in tasks]
  for task, why in zip(tasks, taken):
    if why:
      say(f"{task.workdir.name}: {why}")
  tasks = [task for task, why in zip(tasks, taken) if not why]
  if not tasks:
    return []
  try:
    with through.batch():
      jobs = [through.submit(Job(task.workdir.absolute(), task.ids, weights)) for task in tasks]
  except Exception as error:  # whatever sbatch says
    raise SweepError(f"Slurm refused: {' '.join(str(error).split())}") from None
  for task, job in zip(tasks, jobs):
    _set_submitted(task, job.job_id)
  return jobs


def _taken(task: local.Task) -> str:
  """Why a group is not to be submitted now; "" if it is."""
  if folder.busy(task.workdir):
    return "a process is at work there"
  waiting = [found for found in statuses(task.paths()) if found["state"] == folder.SUBMITTED]
  return f"is in the queue already: {waiting[0]['reason']}" if waiting else ""


def _set_submitted(task: local.Task, job: str):
  """Says so of the members whose status has not changed since; a job that has begun holds the lock."""
  try:
    with folder.hold(task.workdir, patience=0.0):
      for id in task.left():
        folder.set_status(task.workdir / "members" / id, folder.SUBMITTED, f"Slurm job {job}", job=job)
  except folder.Busy:
    pass


def _own_id() -> str:
  """The id of the job that this process is."""
  array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
  return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")


def statuses(members: Sequence[Path]) -> list[dict]:
  """`folder.status` of members, where those whose Slurm job is no more have stopped."""
  found = [folder.status(member) for member in members]
  known = _states({each["job"] for each in found if each["state"] == folder.SUBMITTED and each.get("job")})
  return [_settled(each, known.get(each.get("job"), _UNKNOWN)) for each in found]


def _settled(found: dict, state: str) -> dict:
  waits = time.time() - found.get("time", 0.0) < _UNKNOWN_SECONDS if state == _UNKNOWN else not state.startswith(_ENDED)
  if found["state"] != folder.SUBMITTED or waits:
    return found
  return {**found, "state": folder.STOPPED, "reason": f"{found['reason']} is no more: {state.lower()}"}


def _states(jobs: Iterable[str]) -> dict[str, str]:
  """{job: Slurm's word for its state}, by one call of sacct; without it nothing."""
  if not jobs or not shutil.which("sacct"):
    return {}
  try:
    from submitit.slurm.slurm import SlurmInfoWatcher

    watcher = SlurmInfoWatcher()
    for job in jobs:
      watcher.register_job(job)
    watcher.update()
    return {job: watcher.get_state(job, mode="cache").upper() for job in jobs}
  except Exception:  # whatever submitit or sacct make of it, a report does without
    return {}
