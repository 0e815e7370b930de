"""One process of a sweep: trains a group, then scores its members one by one. Started by a launcher as

  python -m diffusion_jax.sweep.worker WORKDIR WEIGHTS ID ...

with WEIGHTS as JSON, {"inception": FILE}. A member that fails leaves the others alone; SIGTERM saves and exits 0.
"""

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

from diffusion_jax.study import Evaluation, Run, Study
from diffusion_jax.study import run as runs
from diffusion_jax.sweep import folder
from diffusion_jax.training import checkpoint

BUSY = 75  # exit code where another process holds the lock


class _Terminated(BaseException):
  """SIGTERM arrived; not an Exception, so that nothing on the way takes it for an error of its own."""


def main(argv: Sequence[str]) -> int:
  """The exit code: 0 if all members have a status that says what became of them, BUSY if another is at work."""
  workdir, weights, *ids = argv
  print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()} on {socket.gethostname()}: {' '.join(ids)}")
  for warning in (signal.SIGUSR1, signal.SIGUSR2):  # Slurm's go to every process of a job; the launcher heeds them
    signal.signal(warning, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, _terminated)
  try:
    with folder.hold(Path(workdir)):
      work(Path(workdir), json.loads(weights), ids)
  except folder.Busy as busy:
    print(busy)
    return BUSY
  except _Terminated:
    pass
  return 0


def _terminated(*_):
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
    for member in members:
      if folder.written(member)["state"] in (folder.RUNNING, folder.WAITING):
        folder.set_status(member, folder.STOPPED, str(stop) or "stopped by SIGTERM")


def _train(workdir: Path) -> tuple[runs.Job | None, str]:
  """The trained job, or why it failed."""
  try:
    started = (workdir / "config.json").exists()  # then training may have resolved what init_from brings
    config = checkpoint.read_config(workdir if started else workdir / "members")
    job = runs.Job(Run({}), config.seed, config, epath.Path(workdir))
    if not runs.trained(job):
      runs.train(job)
  except runs.Stopped:
    raise
  except Exception as error:  # whatever it is, it is this training's alone
    return None, _reason(error)
  return job, ""


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
