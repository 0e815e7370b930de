"""A sweep's folder: what is on disk is all that launchers, workers and reports know of each other.

    DIR/sweep.json                       the members: names, labels, folders
    DIR/GROUP/                           the workdir of one training, which its members share
    DIR/GROUP/log.txt                    what its processes printed
    DIR/GROUP/lock                       locked by the process that is at work there
    DIR/GROUP/members/config.json        its config as planned
    DIR/GROUP/members/ID/member.json     how this member is sampled and scored
    DIR/GROUP/members/ID/status.json     what became of it, with its scores

Files are replaced, never changed in place. The lock is the kernel's (flock): it ends with its process, however that
ends. It holds between machines where the file system passes locks on: NFS does; Lustre if it is mounted with `flock`;
object stores have none.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from diffusion_jax.sweep.description import SweepError

# State of a member. "running" is at work or lost; "waiting" has its training but no scores yet.
MISSING, SUBMITTED, RUNNING, WAITING = "missing", "submitted", "running", "waiting"
STOPPED, FAILED, DONE = "stopped", "failed", "done"


class Busy(SweepError):
  """Another process is at work in this folder."""


def root_of(root: str) -> Path:
  """The folder of a sweep; raises SweepError for one that has no locks."""
  if "://" in str(root):
    raise SweepError(f"--runs={root}: expected a folder of a file system with locks (local, NFS), not an object store")
  return Path(root)


def write_json(path: Path, value):
  """Writes a file by replacing it; raises SweepError where that is not possible."""
  temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "w") as file:
      file.write(json.dumps(value, indent=1) + "\n")
      file.flush()
      os.fsync(file.fileno())  # or a machine that goes down may leave an empty file under the name
    temporary.replace(path)
  except OSError as error:
    raise SweepError(f"{path} cannot be written: {error}") from None


def read_json(path: Path) -> dict:
  """Raises SweepError where there is no such file, or no JSON in it."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise SweepError(f"{path} cannot be read: {error}") from None


def set_status(member: Path, state: str, reason: str = "", **more):
  """Writes a member's status, with this process and the time."""
  who = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
  write_json(member / "status.json", {"state": state, "reason": reason, **who, **more})


def written(member: Path) -> dict:
  """A member's status as it was last written: "missing" if it never was, "failed" if it cannot be read."""
  path = member / "status.json"
  if not path.exists():
    return {"state": MISSING, "reason": ""}
  try:
    found = read_json(path)
  except SweepError:
    found = None
  whole = isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ("state", "reason"))
  return found if whole else {"state": FAILED, "reason": "status cannot be read"}


def status(member: Path) -> dict:
  """A member's status as it is: one whose process is gone without a word has failed."""
  found = written(member)
  if found["state"] not in (RUNNING, WAITING) or busy(member.parent.parent):
    return found
  found = written(member)  # it may have ended between the two looks
  if found["state"] == RUNNING:
    gone = f"process {found.get('pid')} on {found.get('host')} ended while {found['reason']}: killed, or out of memory"
    return {**found, "state": FAILED, "reason": gone}
  return {**found, "state": STOPPED, "reason": "trained, not scored"} if found["state"] == WAITING else found


@contextlib.contextmanager
def hold(workdir: Path, patience: float = 1.0):
  """Holds the lock of a workdir.

  Args:
    workdir: a folder; made if missing.
    patience: seconds for which to try: `busy` of another process holds it for an instant.

  Raises:
    Busy: another process holds it.
    SweepError: the file system has no locks, or cannot be written.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / "lock", "a")
  except OSError as error:
    raise SweepError(f"{workdir} cannot be written: {error}") from None
  with file:
    end = time.monotonic() + patience
    while not _lock(file, fcntl.LOCK_EX):
      if time.monotonic() > end:
        raise Busy(f"{workdir}: another process is at work there")
      time.sleep(0.05)
    yield


def busy(workdir: Path) -> bool:
  """Whether a process is at work in a workdir; asks with a shared lock, so that those who ask do not see each other."""
  try:
    file = open(workdir / "lock")
  except FileNotFoundError:
    return False
  with file:
    return not _lock(file, fcntl.LOCK_SH)


def _lock(file, kind: int) -> bool:
  try:
    fcntl.flock(file, kind | fcntl.LOCK_NB)
    return True
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      return False
    raise SweepError(f"{file.name} cannot be locked: {error}; --runs must be on a file system with locks") from None
