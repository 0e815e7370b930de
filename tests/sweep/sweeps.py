"""What tests of sweeps share: the command line in a process of its own, and small sweeps of tests/training/tiny.py."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from test_cli import FORKS

ROOT = Path(__file__).parents[2]
TINY = "tests/training/tiny.py"
SHORT = {"train.num_steps": 4, "train.log_every": 2, "train.checkpoint_every": 4, "train.max_skipped": 2}
HEAD = "from diffusion_jax.sweep import Sweep, chain, product, values\n\n\ndef get_sweep():\n  return "


def environment(cache) -> dict[str, str]:
  """The toy network on one CPU device, and a compilation cache that processes share."""
  return {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "sweep" / "toy_network")]),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def arguments(*argv, **fields) -> list[str]:
  """experiments/sweep.py with arguments, and fields (by dotted names) of the base config."""
  return ["experiments/sweep.py", *map(str, argv), *(f"--set={name}={value}" for name, value in fields.items())]


def start(cache, *argv, **fields) -> subprocess.Popen:
  """The same in a process of its own."""
  command, pipe = [sys.executable, *arguments(*argv, **fields)], subprocess.PIPE
  return subprocess.Popen(command, cwd=ROOT, env=environment(cache), stdout=pipe, stderr=pipe, text=True)


def calls(cache, commands: dict[str, list[str]]) -> dict[str, tuple[int, str, str]]:
  """{name: (exit code, stdout, stderr)} of `arguments` one after another, in forks of one process; nothing computes."""
  done = subprocess.run(
    [sys.executable, "-c", FORKS],
    input=json.dumps(list(commands.items())),
    cwd=ROOT,
    env=environment(cache),
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
