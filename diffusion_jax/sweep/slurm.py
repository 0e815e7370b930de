"""The Slurm launcher: one job of an array for each group, through submitit.

A job runs its group as the local launcher would. When its time is up or it is preempted, submitit calls `checkpoint`:
the training saves, and the job is queued again.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_jax.sweep import folder, local
from diffusion_jax.sweep.description import SweepError

_SAVE_SECONDS = 90  # between Slurm's signal and the end of a job
_MAX_TIMEOUTS = 1000  # a training goes on over so many time limits; submitit's own default is 3


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
      # Slurm signals all processes of a job: this one was faster than submitit, which is about to queue it again.
      time.sleep(_SAVE_SECONDS)
    return states

  def checkpoint(self):
    """Called by submitit on preemption or timeout: saves, and says what to go on with."""
    from submitit.helpers import DelayedSubmission

    if self._launcher is not None:
      self._launcher.stop()
      self._launcher.wait(0.9 * _SAVE_SECONDS)
    return DelayedSubmission(Job(self.workdir, self.ids, self.weights))

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
    parameters.update(slurm_signal_delay_s=_SAVE_SECONDS, slurm_array_parallelism=parallel)
  given = {name: value for name, value in parameters.items() if value is not None}
  try:
    out = submitit.AutoExecutor(root / "slurm", cluster, slurm_max_num_timeout=_MAX_TIMEOUTS)
    out.update_parameters(name="sweep_" + root.name, **given)
  except (RuntimeError, NameError, TypeError, ValueError, OSError) as error:
    raise SweepError(f"--launcher=slurm: {' '.join(str(error).split())}") from None
  return out


def submit(tasks: Sequence[local.Task], weights: Mapping[str, str], through) -> list:
  """Submits one job for each task through an `executor`; returns submitit's jobs.

  Raises:
    SweepError: Slurm refused.
  """
  paths = [path for task in tasks for path in task.paths()]
  for path in paths:  # before the jobs, which may start at once
    folder.set_status(path, folder.SUBMITTED, "to Slurm")
  try:
    with through.batch():
      return [through.submit(Job(task.workdir.absolute(), task.ids, weights)) for task in tasks]
  except Exception as error:  # whatever sbatch says
    for path in paths:
      folder.set_status(path, folder.STOPPED, "could not be submitted")
    raise SweepError(f"Slurm refused: {' '.join(str(error).split())}") from None
