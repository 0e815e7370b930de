"""The benchmark program: its counts against counts by hand, its record, and a user's mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[1]

# A stem, an encoder block, two bottleneck blocks, two decoder blocks that project the concatenation, an output.
_STEM, _OUT = 2 * 64 * 9 * 1 * 8, 2 * 64 * 9 * 8 * 1
_PAIR = 2 * 64 * 9 * (8 * 8 + 8 * 8)
_DECODER = 2 * 64 * (9 * (16 * 8 + 8 * 8) + 16 * 8)
_ATTENTION = 2 * 64 * (8 * 24 + 8 * 8) + 2 * 2 * 64 * 64 * 8  # qkv and its projection; logits and their sums
_EMBEDDING = 2 * (8 * 32 + 32 * 32 + 10 * 8)  # two maps, and labels
_AFFINE = 2 * 32 * 8 * 5  # a block
OPERATIONS = _STEM + 3 * _PAIR + 2 * _DECODER + _ATTENTION + _EMBEDDING + _AFFINE + _OUT


def benchmark(*args, devices=2, config="tiny"):
  program = [sys.executable, "experiments/benchmark.py", f"--config=tests/training/{config}.py", *args]
  flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
  return subprocess.run(program, capture_output=True, text=True, timeout=120, cwd=ROOT, env=env)


def test_record(tmp_path):
  ran = benchmark("--repeats=2", "--sample_batch=4", f"--out={tmp_path}/tiny", "--profile")
  assert ran.returncode == 0, ran.stderr
  record = json.loads((tmp_path / "tiny.json").read_text())
  assert list(record["cases"]) == ["matmul", "convolution", "network", "sampler", "update"]
  assert (record["devices"], record["nfe"], record["dtype"]) == (2, 5, "float32")
  for name, images in {"network": 4, "sampler": 4, "update": 8}.items():
    case, evaluations = record["cases"][name], {"network": 1, "sampler": 5, "update": 3}[name]
    assert case["gflops_per_image"] == pytest.approx(evaluations * OPERATIONS / 1e9)
    low, middle, high = case["seconds"]
    assert 0 < low <= middle <= high
    assert case["images_per_second"][1] == pytest.approx(images / middle)
    assert 0 < case["utilisation_matmul"][1] < 1.5
    assert 0 < case["utilisation_convolution"][1] < 1.5
    assert case["compile_seconds"] > 0
    assert case["memory_bytes"] is None if name == "sampler" else case["memory_bytes"] > 0
  counted = record["xla_operations"]
  dense = 2 * 9 * 16 * 32 * 32 * 256 * 256  # a device; XLA leaves out what meets padding
  assert counted["convolution"] == pytest.approx(dense * (3 * 32 - 2) ** 2 / (3 * 32) ** 2, rel=1e-3)
  assert record["sampler_overhead"][1] > 0
  assert record["peak_memory_bytes"]["process"] > 1e8
  assert "sampler: NFE 5" in ran.stdout and "update: " in ran.stdout
  for costs in record["profile"].values():
    assert costs is None or sum(share for _, share in costs) == pytest.approx(1)


def test_an_alternation_is_measured_beside_plain_training(tmp_path):
  fields = ("--config.method=dpdm", "--config.init_from=a/teacher", "--config.dpdm.score_steps=2", "--sample_batch=2")
  ran = benchmark("--repeats=1", "--only=update", f"--out={tmp_path}/toy", *fields, config="toy")
  assert ran.returncode == 0, ran.stderr
  record = json.loads((tmp_path / "toy.json").read_text())
  work = {name: record["cases"][name]["gflops_per_image"] for name in ("network", "update", "plain update")}
  assert work["update"] == pytest.approx(13 * work["network"])  # 4 + 4 of the score network, 5 of the generator
  assert work["plain update"] == pytest.approx(3 * work["network"])
  state = record["state_bytes"]
  assert 1.9 < state["update"] / state["plain update"] < 2.1
  assert f"training state {state['update'] / 1e6:.1f} MB" in ran.stdout


def test_counts_by_hand():
  sys.path.insert(0, str(ROOT / "experiments"))
  try:
    import benchmark as program
  finally:
    sys.path.pop(0)
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

  @jax.jit
  def function(x):
    y = program.layers.conv3x3_cpu(x, kernel)
    return jax.checkpoint(lambda y: jnp.einsum("bijc,bklc->bijkl", y, y))(y)

  count = program.products(jax.make_jaxpr(function)(x).jaxpr)
  assert count == 2 * 2 * 64 * 9 * 3 * 5 + 2 * 2 * 64 * 64 * 5


def test_mistakes():
  mistakes = {
    "--config.network.channels=42": "config.network.channels = 42",
    "--sample_batch=3": "--sample_batch=3: must be a multiple of the 2 devices",
    "--repeats=0": "--repeats=0: at least 1",
    "--profile": "--profile needs --out",
    "--config.sampling.sampler=huen": "nearest: heun",
  }
  for flag, message in mistakes.items():
    ran = benchmark(flag)
    assert ran.returncode == 2, ran.stderr
    assert message in ran.stderr and ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1
