"""The local launcher: each group of members in a process of its own, one after another or one a device.

A process that is killed fails the members it was at work on; those of its group that only wait for their scores get
another process. One that is asked to end (SIGTERM, or Slurm's warnings) has stopped. Processes end with their launcher.
"""

import collections
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.sweep import folder, worker

_POLL = 0.1  # seconds
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # Slurm's go to every process of a job; the launcher heeds them
_ASKED = tuple(-number for number in (signal.SIGTERM, *_WARNINGS))  # exit codes of a process that was asked to end


class Task(NamedTuple):
  """A group, and which of its members are to be run."""

  workdir: Path
  ids: tuple[str, ...]
  before: tuple[dict, ...]  # each one's status, as the launcher saw it

  def paths(self) -> list[Path]:
    """The folders of the members."""
    return [self.workdir / "members" / id for id in self.ids]

  def left(self) -> tuple[str, ...]:
    """The members whose status is as this launcher saw it, or that only wait in a queue: no other has been at them."""
    now = [folder.written(path) for path in self.paths()]
    same = lambda then, status: status == then or status["state"] == folder.SUBMITTED
    return tuple(id for id, then, status in zip(self.ids, self.before, now) if same(then, status))


def task(workdir: Path, ids: Sequence[str]) -> Task:
  """A task with members as they are now."""
  plain = Task(workdir, tuple(ids), ())
  return plain._replace(before=tuple(map(folder.written, plain.paths())))


class Launcher:
  """Runs tasks, each in a process of its own."""

  def __init__(
    self,
    weights: Mapping[str, str],
    slots: Sequence[Mapping[str, str]] = ({},),
    say: Callable[[str], None] = lambda line: print(line, flush=True),
  ):
    """
    Args:
      weights: files of weights by extractor, see `bench.scorers_for`.
      slots: environment variables of each of the processes that run at a time.
      say: takes lines of progress.
    """
    self._weights, self._slots, self._say = dict(weights), slots, say
    self._active: dict[int, tuple[Task, subprocess.Popen]] = {}
    self.stopping = False

  def run(self, tasks: Sequence[Task]):
    """Runs tasks to their end, or until `stop`; what became of each member is in its status.

    No process outlives the call: whatever raises on the way, they are stopped and waited for.
    """
    queue = collections.deque(tasks)
    try:
      while self._active or (queue and not self.stopping):
        for i in range(len(self._slots)):
          if i not in self._active and queue and not self.stopping:
            self._start(i, queue.popleft())
        queue.extendleft(self.reap())
        time.sleep(_POLL)
    finally:
      if self._active:
        self.stop()
        self.wait()
        self.reap()

  def reap(self) -> list[Task]:
    """Says what became of the members of processes that have ended; returns what other processes shall run."""
    rest = []
    for i, (task, process) in list(self._active.items()):
      if process.poll() is not None:
        del self._active[i]
        rest.append(self._ended(task, process))
    return [task for task in rest if task]

  def stop(self):
    """Starts nothing more, and asks what runs to save and to end."""
    self.stopping = True
    for _, process in self._active.values():
      if process.poll() is None:
        process.terminate()

  def kill(self):
    """Ends what runs without saving."""
    for _, process in self._active.values():
      if process.poll() is None:
        process.kill()

  def wait(self, seconds: float = math.inf):
    """Waits until nothing runs, at most so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for _, process in self._active.values()):
      time.sleep(_POLL)

  def _start(self, slot: int, task: Task):
    ids = task.left()
    if not ids:
      self._say(f"{task.workdir.name}: another launcher has been at it")
      return
    command = [sys.executable, "-m", "diffusion_jax.sweep.worker", str(task.workdir), json.dumps(self._weights), *ids]
    with open(task.workdir / "log.txt", "ab") as log, _blocked(_WARNINGS):
      process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", worker.LAUNCHER: str(os.getpid()), **self._slots[slot]},
        start_new_session=True,  # Ctrl-C in the terminal reaches the launcher alone, which asks them to save
      )
    self._active[slot] = task._replace(ids=ids), process
    if self.stopping:  # since it was started, and before it was among those that `stop` asks to end
      process.terminate()
    self._say(f"{task.workdir.name}: {len(ids)} member{'s' * (len(ids) > 1)}, process {process.pid}")

  def _ended(self, ended: Task, process: subprocess.Popen) -> Task | None:
    """Gives each member a final status; the members that another process shall run."""
    if process.returncode == worker.BUSY:
      self._say(f"{ended.workdir.name}: another process is at work there")
      return None
    ours = [path for path in ended.paths() if folder.written(path).get("pid") == process.pid]
    cut = [path for path in ours if folder.written(path)["state"] == folder.RUNNING]
    waiting = [path for path in ours if folder.written(path)["state"] == folder.WAITING]
    unborn = [path for path in ended.paths() if path not in ours]  # it died before it had begun
    asked = process.returncode in _ASKED or (self.stopping and process.returncode == 0)
    for path in cut or ([] if waiting else unborn if process.returncode else []):
      why = _why(process.returncode, ended.workdir)
      folder.set_status(path, *(folder.STOPPED, why) if asked else (folder.FAILED, why))
    for path in ended.paths():
      found = folder.written(path)
      self._say(f"{ended.workdir.name}/{path.name}: {found['state']}" + f": {found['reason']}" * bool(found["reason"]))
    return task(ended.workdir, [path.name for path in waiting]) if waiting and cut else None


@contextlib.contextmanager
def _blocked(numbers: Sequence[signal.Signals]) -> Iterator[None]:
  """Blocks signals. Processes that are started meanwhile never see them, from their first instruction on."""
  old = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _why(code: int, workdir: Path) -> str:
  if code >= 0:
    lines = (workdir / "log.txt").read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"its process ended with exit code {code}: {last}"
  name = signal.Signals(-code).name
  return f"its process was killed by {name}" + "; the machine may have run out of memory" * (name == "SIGKILL")


@contextlib.contextmanager
def signals(launcher: Launcher) -> Iterator[None]:
  """SIGTERM and Ctrl-C stop a launcher; a second Ctrl-C kills what it runs."""

  def stop(number, _):
    if launcher.stopping and number == signal.SIGINT:
      launcher.kill()
    launcher.stop()

  old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
