"""The local launcher: each group of members in a process of its own, one after another or one a device.

A process that is killed fails the members it was at work on; those of its group that only wait for their scores get
another process.
"""

import collections
import contextlib
import json
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


class Task(NamedTuple):
  """A group, and which of its members are to be run."""

  workdir: Path
  ids: tuple[str, ...]
  before: tuple[float, ...]  # when each one's status was written, as the launcher saw it; 0 if never

  def paths(self) -> list[Path]:
    """The folders of the members."""
    return [self.workdir / "members" / id for id in self.ids]

  def left(self) -> tuple[str, ...]:
    """The members that no other launcher has been at since this one looked."""
    now = [_stamp(path) for path in self.paths()]
    return tuple(id for id, then, time in zip(self.ids, self.before, now) if then == time)


def task(workdir: Path, ids: Sequence[str]) -> Task:
  """A task with members as they are now."""
  plain = Task(workdir, tuple(ids), ())
  return plain._replace(before=tuple(map(_stamp, plain.paths())))


def _stamp(member: Path) -> float:
  return folder.written(member).get("time", 0.0)


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
    """Runs tasks to their end, or until `stop`; what became of each member is in its status."""
    queue = collections.deque(tasks)
    while self._active or (queue and not self.stopping):
      for i in range(len(self._slots)):
        if i not in self._active and queue and not self.stopping:
          self._start(i, queue.popleft())
      for i, (task, process) in list(self._active.items()):
        if process.poll() is not None:
          del self._active[i]
          rest = self._ended(task, process)
          if rest:
            queue.appendleft(rest)
      time.sleep(_POLL)

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

  def wait(self, seconds: float):
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
    with open(task.workdir / "log.txt", "ab") as log:
      process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **self._slots[slot]},
        start_new_session=True,  # Ctrl-C in the terminal reaches the launcher alone, which asks them to save
      )
    self._active[slot] = task._replace(ids=ids), process
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
    for path in cut or ([] if waiting else unborn if process.returncode else []):
      state = folder.STOPPED if self.stopping and process.returncode == -signal.SIGTERM else folder.FAILED
      folder.set_status(path, state, _why(process.returncode, ended.workdir))
    for path in ended.paths():
      found = folder.written(path)
      self._say(f"{ended.workdir.name}/{path.name}: {found['state']}" + f": {found['reason']}" * bool(found["reason"]))
    return task(ended.workdir, [path.name for path in waiting]) if waiting and cut else None


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
