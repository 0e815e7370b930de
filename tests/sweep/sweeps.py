"""What tests of sweeps share: the command line in a process of its own, and small sweeps of tests/training/tiny.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from test_cli import FORKS

ROOT = Path(__file__).parents[2]
TINY = "tests/training/tiny.py"
SHORT = {"train.num_steps": 4, "train.log_every": 2, "train.checkpoint_every": 4, "train.max_skipped": 2}
HEAD = "from diffusion_jax.sweep import Sweep, chain, product, values\n\n\ndef get_sweep():\n  return "


def environment() -> dict[str, str]:
  """The toy network on one CPU device."""
  return {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "sweep" / "toy_network")]),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
  }


def arguments(*argv, **fields) -> list[str]:
  """experiments/sweep.py with arguments, and fields (by dotted names) of the base config."""
  return ["experiments/sweep.py", *map(str, argv), *(f"--set={name}={value}" for name, value in fields.items())]


SERVER = """
import json, os, runpy, signal, sys, traceback, warnings
import diffusion_jax.cli, diffusion_jax.sampling, diffusion_jax.sweep, matplotlib.pyplot
warnings.simplefilter("ignore")
for line in sys.stdin:
  base, argv = json.loads(line)
  if os.fork():
    continue
  child = os.fork()
  if child:  # waits for the other
    for name, what in (("pid", lambda: child), ("code", lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))):
      with open(base + ".tmp", "w") as file:
        file.write(str(what()))
      os.rename(base + ".tmp", base + "." + name)
    os._exit(0)
  signal.alarm(300)  # ends a child that hangs
  for number, name in ((0, os.devnull), (1, base + ".out"), (2, base + ".err")):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
  sys.argv, code = argv, 0
  sys.path.insert(0, os.path.dirname(argv[0]))
  try:
    runpy.run_path(argv[0], run_name="__main__")
  except SystemExit as end:
    code = end.code or 0
  except BaseException:
    traceback.print_exc()
    code = 70
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
"""


class Server:
  """Starts commands in forks of one process that has imported everything: importing takes longer than most of them."""

  def __init__(self, tmp: Path):
    self._tmp, self._count = tmp, 0
    command = [sys.executable, "-c", SERVER]
    self._process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, text=True)

  def start(self, *argv, **fields) -> "Started":
    """experiments/sweep.py with `arguments`, at work."""
    self._count += 1
    base = self._tmp / str(self._count)
    self._process.stdin.write(json.dumps([str(base), arguments(*argv, **fields)]) + "\n")
    self._process.stdin.flush()
    return Started(base)

  def close(self):
    self._process.stdin.close()
    self._process.wait()


class Started:
  """A command of a Server."""

  def __init__(self, base: Path):
    self._base = base

  def terminate(self):
    os.kill(int(self._read("pid")), signal.SIGTERM)

  def end(self) -> tuple[int, str, str]:
    """(exit code, stdout, stderr), as soon as it has ended."""
    return int(self._read("code", 300)), self._read("out"), self._read("err")

  def _read(self, what: str, seconds: float = 120.0) -> str:
    path = self._base.with_suffix("." + what)
    wait_for(path.exists, seconds)
    return path.read_text()


def calls(commands: dict[str, list[str]]) -> dict[str, tuple[int, str, str]]:
  """{name: (exit code, stdout, stderr)} of `arguments` one after another, in forks of one process; nothing computes."""
  done = subprocess.run(
    [sys.executable, "-c", FORKS],
    input=json.dumps(list(commands.items())),
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return {name: tuple(result) for name, result in json.loads(done.stdout.splitlines()[-1]).items()}


def wait_for(what, seconds: float = 120.0):
  """what(), as soon as it is something."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if found := what():
      return found
    time.sleep(0.02)
  raise TimeoutError
