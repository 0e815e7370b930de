"""Two real processes over jax.distributed against one: training and evaluation on a pod, on localhost."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OVERRIDES = [
  "--config=configs/edm_digits.py", "--config.network.channels=8", "--config.network.channel_mult=(1,)",
  "--config.network.attention_resolutions=(8,)", "--config.train.num_steps=4", "--config.train.log_every=1",
  "--config.train.batch_size=8", "--config.train.checkpoint_every=2", "--config.train.sample_every=4",
  "--config.sampling.num_steps=1",
]  # fmt: skip


def launch(workdir, devices, *flags, program="train"):
  own = OVERRIDES if program == "train" else []
  flags = [sys.executable, f"experiments/{program}.py", *own, f"--workdir={workdir}", *flags]
  xla = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  env = {**os.environ, "XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu"}
  return subprocess.Popen(flags, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def finish(*processes):
  for process in processes:
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_of_two_devices_are_one_process_of_one(tmp_path):
  """Losses to 1e-5, one writer of metrics, checkpoints that one process on one device goes on from, and scores."""
  shared = ["--multihost", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
  steps = "--config.train.num_steps=2"
  finish(*(launch(tmp_path / "two", 2, *shared, f"--process_id={i}", steps) for i in range(2)))
  finish(launch(tmp_path / "two", 1))  # resumes the two processes' run
  finish(launch(tmp_path / "one", 1))
  two, one = metrics(tmp_path / "two"), metrics(tmp_path / "one")
  assert [record["step"] for record in two] == [record["step"] for record in one] == [1, 2, 3, 4]
  for a, b in zip(two, one):
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)

  protocol = ["--num_images=25", "--blocks=2", "--metrics=frechet,recall"]
  shared[1] = f"--coordinator=127.0.0.1:{free_port()}"
  together = [*protocol, *shared, f"--out={tmp_path}/together"]
  finish(*(launch(tmp_path / "one", 2, *together, f"--process_id={i}", program="evaluate") for i in range(2)))
  finish(launch(tmp_path / "one", 1, *protocol, f"--out={tmp_path}/alone", program="evaluate"))
  together, alone = (
    [json.loads(line) for line in (tmp_path / name / "scores.jsonl").read_text().splitlines()]
    for name in ("together", "alone")
  )
  assert len(together) == len(alone) == 4  # one writer
  for a, b in zip(together, alone):
    assert a["seeds"] == b["seeds"] and a["value"] == pytest.approx(b["value"], rel=1e-4)
