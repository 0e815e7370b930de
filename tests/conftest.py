"""Tests run on eight virtual CPU devices, as the README's launch on eight GPUs would."""

import os
import tempfile

# Most of the suite's time is compilation: without optimisation it takes 40 % less.
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
  ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test has compiled serves the next, on all workers, and the programs that they start.
_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # which has the environment of the process that started it
os.environ["JAX_COMPILATION_CACHE_DIR"] = (
  os.environ["JAX_COMPILATION_CACHE_DIR"] if _WORKER else tempfile.mkdtemp(prefix="diffusion_jax_tests_")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests/oracle.py

import jax
import pytest


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
  """A module's compiled programs go with it.

  Each keeps memory maps, of which Linux gives a process 65,530: beyond that XLA crashes. A worker of the whole suite
  came near, with 9 GB.
  """
  yield
  jax.clear_caches()


def pytest_unconfigure(config):
  if not _WORKER:
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
