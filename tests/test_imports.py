"""What `import diffusion_jax` costs: no heavy optional packages, and no accelerator taken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import importlib, json, pkgutil, sys
import diffusion_jax
names = [m.name for m in pkgutil.walk_packages(diffusion_jax.__path__, "diffusion_jax.")]
for name in names:
  importlib.import_module(name)
from jax._src import xla_bridge
print(json.dumps({"names": names, "loaded": sorted(sys.modules), "backends": xla_bridge.backends_are_initialized()}))
"""


@pytest.fixture(scope="module")
def imported():
  """All submodules of the library, imported in a fresh process."""
  env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
  done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_the_public_modules_are_there(imported):
  for name in ("process", "times", "losses", "samplers", "methods", "sampling", "guidance", "nets", "training.loop"):
    assert f"diffusion_jax.{name}" in imported["names"]


@pytest.mark.parametrize("package", ["tensorflow", "sklearn", "matplotlib", "tensorflow_datasets", "torch"])
def test_no_module_imports_an_optional_package(imported, package):
  assert [name for name in imported["loaded"] if name.split(".")[0] == package] == []


def test_importing_takes_no_device(imported):
  """No module computes anything with JAX when it is imported: jax.distributed can still be initialised."""
  assert not imported["backends"]
