"""One process of a sweep: trains a group, then scores its members one by one. Started by a launcher as

  python -m diffusion_jax.sweep.worker WORKDIR WEIGHTS ID ...

with WEIGHTS as JSON, {"inception": FILE}. A member that fails leaves the others alone; SIGTERM saves and exits 0, and
so does the end of its launcher.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.study import Evaluation, Run, Study
from diffusion_jax.study import run as runs
from diffusion_jax.sweep import folder
from diffusion_jax.training import checkpoint

BUSY = 75  # exit code where another process holds the lock
LAUNCHER = "DIFFUSION_JAX_SWEEP_LAUNCHER"  # environment variable: the launcher's process id
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class _Terminated(BaseException):
  """SIGTERM arrived; not an Exception, so that nothing on the way takes it for an error of its own."""


def main(argv: Sequence[str]) -> int:
  """The exit code: 0 if all members have a status that says what became of them, BUSY if another is at work."""
  workdir, weights, *ids = argv
  print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()} on {socket.gethostname()}: {' '.join(ids)}")
  signal.signal(signal.SIGTERM, _terminated)
  try:
    _end_with(os.environ.get(LAUNCHER))
    with folder.hold(Path(workdir)):
      work(Path(workdir), json.loads(weights), ids)
  except folder.Busy as busy:
    print(busy)
    return BUSY
  except _Terminated:
    pass
  return 0


def _terminated(*_):
  signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not come between the statuses that are now written
  raise _Terminated


def _end_with(launcher: str | None):
  """Linux: SIGTERM when the launcher ends, also by SIGKILL; raises _Terminated if it has ended already."""
  if launcher and sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != int(launcher):
      raise _Terminated


def work(workdir: Path, weights: Mapping[str, str], ids: Sequence[str]):
  """Trains, and scores the members `ids`, whose status says what became of each; the lock is the caller's."""
  members = [workdir / "members" / id for id in ids]
  members = [member for member in members if folder.written(member)["state"] != folder.DONE]
  try:
    for member in members:
      folder.set_status(member, folder.RUNNING, "training")
    job, error = _train(workdir)
    for member in members:
      folder.set_status(member, *(folder.FAILED, error) if error else (folder.WAITING, "trained"))
    if not error:
      score = _Scoring(job, weights)
      for member in members:
        score(member)
  except (_Terminated, runs.Stopped) as stop:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for member in members:
      if folder.written(member)["state"] in (folder.RUNNING, folder.WAITING):
        folder.set_status(member, folder.STOPPED, str(stop) or "stopped by SIGTERM")


def _train(workdir: Path) -> tuple[runs.Job | None, str]:
  """The trained job, or why it failed."""
  try:
    started = (workdir / "config.json").exists()  # then training may have resolved what init_from brings
    config = checkpoint.read_config(workdir / "members")
    if started:
      config = _as_planned(workdir, config)
    job = runs.Job(Run({}), config.seed, config, epath.Path(workdir))
    if not runs.trained(job):
      runs.train(job)
  except runs.Stopped:
    raise
  except Exception as error:  # whatever it is, it is this training's alone
    return None, _reason(error)
  return job, ""


def _as_planned(workdir: Path, planned: ConfigDict) -> ConfigDict:
  """The config of a run with what may change since it was started, such as where its data are, as it is planned now."""
  config = checkpoint.read_config(workdir)
  held = config_lib.flatten(config)
  for field, value in config_lib.flatten(planned).items():
    if held[field] != value:
      changed = config.copy_and_resolve_references()
      changed.update_from_flattened_dict({field: value})
      try:
        checkpoint.check_workdir(workdir, changed)
      except checkpoint.WorkdirError:
        continue  # training resolved it from what init_from brings
      config = changed
  return config


class _Scoring:
  """Scores the members of a job, which share its network, what is compiled for it, and the real images' features."""

  def __init__(self, job: runs.Job, weights: Mapping[str, str]):
    self._job, self._weights, self._model, self._pools = job, weights, None, {}

  def __call__(self, member: Path):
    """Writes the member's status, and never raises for what is wrong with it."""
    folder.set_status(member, folder.RUNNING, "scoring")
    try:
      asked = folder.read_json(member / "member.json")
      found = self._records(asked["sampling"], asked["protocol"])
    except Exception as error:  # whatever it is, it is this member's alone
      folder.set_status(member, folder.FAILED, _reason(error))
      return
    for record in found:
      del record["study"]  # labels are the sweep's, which may rename them
    folder.set_status(member, folder.DONE, scores=found)

  def _records(self, sampling: dict, protocol: dict) -> list[dict]:
    fields = {name: value for name, value in protocol.items() if name != "weights"}
    study = Study([self._job.run], [Evaluation({}, sampling)], **fields)
    self._model = self._model or runs.Opened(self._job)
    key = json.dumps(protocol, sort_keys=True)
    if key not in self._pools:
      self._pools[key] = runs.ScorerPool(study, self._weights)
    return runs.evaluate(study, self._job, self._pools[key].of(self._job), model=self._model)


def _reason(error: Exception) -> str:
  """One line; all of it is in the log."""
  traceback.print_exc()
  lines = str(error).strip().splitlines()
  text = " ".join(lines[0].split()) if lines else ""
  return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
