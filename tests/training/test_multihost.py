"""Two real processes over jax.distributed, on localhost, against one: training, sampling and evaluation on a pod."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from training import tiny

from diffusion_jax import methods
from diffusion_jax.training import checkpoint, start

ROOT = Path(__file__).parents[2]
TRAIN = ["experiments/train.py", "--config=tests/training/toy.py", "--config.train.num_steps=20"]


class Pod:
  """Starts programs as one process or as two."""

  def __init__(self, folder):
    self.folder = folder

  def start(self, argv, devices, number=0, **env) -> subprocess.Popen:
    """A process with so many CPU devices; its output goes to a file that `said` reads."""
    env = {
      **os.environ,
      **env,
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
    }
    with (self.folder / f"said{number}").open("w") as file:
      return subprocess.Popen([sys.executable, *argv], cwd=ROOT, env=env, stdout=file, stderr=file)

  def start_two(self, argv, devices, flags=True, **env) -> list[subprocess.Popen]:
    """Two processes, joined by flags or by draw.py's arguments."""
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    own = lambda i: (
      ["--multihost", f"--coordinator={address}", "--num_processes=2", f"--process_id={i}"]
      if flags
      else [address, "2", str(i)]
    )
    return [self.start([*argv, *own(i)], devices, i, **env) for i in range(2)]

  def said(self, number=0) -> str:
    return (self.folder / f"said{number}").read_text()

  def finish(self, *processes):
    """Waits; asserts exit code 0."""
    for i, process in enumerate(processes):
      assert process.wait(timeout=300) == 0, self.said(i)[-3000:]

  def run(self, argv, devices, processes=1, flags=True):
    if processes == 1:
      self.finish(self.start(argv, devices))
    else:
      self.finish(*self.start_two(argv, devices, flags))

  def train(self, name, devices, processes=1, *overrides):
    self.run([*TRAIN, f"--workdir={self.folder / name}", *overrides], devices, processes)

  def metrics(self, name):
    return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pod(tmp_path_factory):
  return Pod(tmp_path_factory.mktemp("pod"))


@pytest.fixture(scope="module")
def trained(pod):
  """Runs of twenty steps: one process with one device, one with eight, two with four each by pmap and by fsdp."""
  pod.train("one", 1)
  pod.train("eight", 8)
  pod.train("two", 4, 2)
  pod.train("fsdp", 4, 2, "--config.train.parallel=fsdp")
  return pod


@pytest.fixture(scope="module")
def network(pod):
  """A workdir with the tiny U-Net, its parameters drawn at random: freshly made ones would give zeros."""
  config, rng = tiny.get_config(), np.random.default_rng(0)
  state = start.create_state(methods.from_config(config), config)
  state = state.replace(ema=jax.tree.map(lambda x: x + 0.03 * rng.normal(size=x.shape).astype(x.dtype), state.ema))
  checkpoint.write_config(pod.folder / "network", config)
  checkpoints = checkpoint.Checkpoints(pod.folder / "network", config)
  checkpoints.save(state, 24)
  checkpoints.close()
  return pod.folder / "network"


@pytest.mark.parametrize("name", ["eight", "two", "fsdp"])
def test_losses_do_not_depend_on_hosts_devices_or_layout(trained, name):
  """To 1e-5 over twenty steps; one host writes the metrics."""
  one, other = trained.metrics("one"), trained.metrics(name)
  assert [m["step"] for m in one] == [m["step"] for m in other] == list(range(1, 21))
  for field in ("loss", "grad_norm"):
    np.testing.assert_allclose([m[field] for m in other], [m[field] for m in one], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["device", "host"])
def test_two_hosts_remember_their_examples(pod, memory):
  """DDDM's losses, which hang on every example's estimate, are those of one host; each goes on where the other was."""
  train = ["experiments/train.py", "--config=tests/training/toy_dddm.py", f"--config.dddm.buffer_memory={memory}"]
  run = lambda name, devices, processes, steps: pod.run(
    [*train, f"--workdir={pod.folder / name}", f"--config.train.num_steps={steps}"], devices, processes
  )
  one, two = f"dddm_one_{memory}", f"dddm_two_{memory}"
  run(one, 8, 1, 12)
  run(two, 4, 2, 6)
  shutil.copytree(pod.folder / two, pod.folder / f"{two}_then_one")
  run(two, 4, 2, 12)
  run(f"{two}_then_one", 8, 1, 12)
  for name in (two, f"{two}_then_one"):
    for field in ("loss", "previous_error"):
      wanted, got = ([m[field] for m in pod.metrics(n)] for n in (one, name))
      np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("name, devices, processes, layout", [
  ("fsdp", 8, 1, "pmap"), ("eight", 4, 2, "fsdp"),
  pytest.param("two", 1, 1, "pmap", marks=pytest.mark.slow), pytest.param("one", 4, 2, "pmap", marks=pytest.mark.slow),
])  # fmt: skip
def test_checkpoints_open_wherever_they_were_not_saved(trained, name, devices, processes, layout):
  """A run goes on elsewhere, in another layout too, to the losses of one that stayed."""
  if not (trained.folder / "stayed").exists():
    shutil.copytree(trained.folder / "one", trained.folder / "stayed")
    trained.train("stayed", 1, 1, "--config.train.num_steps=24")
  moved = f"{name}_{devices}_{processes}"
  shutil.copytree(trained.folder / name, trained.folder / moved)
  trained.train(moved, devices, processes, "--config.train.num_steps=24", f"--config.train.parallel={layout}")
  assert "resumed from step 20" in trained.said()
  one, other = trained.metrics("stayed"), trained.metrics(moved)
  assert [m["step"] for m in other] == list(range(1, 25))
  np.testing.assert_allclose([m["loss"] for m in other], [m["loss"] for m in one], rtol=1e-5)


def test_images_do_not_depend_on_hosts_and_devices(pod, network):
  """To 1e-4, their initial noise to the bit; sample.py on two hosts writes them once."""
  drawn = {}
  for name, devices, processes in (("1", 1, 1), ("8", 8, 1), ("4+4", 4, 2)):
    out = pod.folder / f"drawn_{name}.npz"
    pod.run(["tests/training/draw.py", str(network), str(out)], devices, processes, flags=False)
    drawn[name] = dict(np.load(out))
  assert drawn["1"]["images"].std() > 0.1 and drawn["1"]["noise"].std() > 70
  for name in ("8", "4+4"):
    np.testing.assert_allclose(drawn[name]["images"], drawn["1"]["images"], atol=1e-4)
    np.testing.assert_array_equal(drawn[name]["noise"], drawn["1"]["noise"])

  pod.run(["experiments/sample.py", f"--workdir={network}", "--seeds=0-20", f"--out={pod.folder}/sampled"], 4, 2)
  images = np.load(pod.folder / "sampled.npz")["images"].astype(np.int32)
  assert np.abs(images - np.clip(drawn["1"]["images"] * 127.5 + 127.5, 0, 255)).max() <= 1
  assert sum("21 images" in pod.said(i) for i in range(2)) == 1


def test_scores_do_not_depend_on_hosts(pod, network):
  argv = ["experiments/evaluate.py", f"--workdir={network}"]
  argv += ["--num_images=25", "--blocks=2", "--metrics=frechet,recall"]
  pod.run([*argv, f"--out={pod.folder}/together"], 2, 2)
  pod.run([*argv, f"--out={pod.folder}/alone"], 1)
  together, alone = (
    [json.loads(line) for line in (pod.folder / name / "scores.jsonl").read_text().splitlines()]
    for name in ("together", "alone")
  )
  assert len(together) == len(alone) == 4  # one writer
  for a, b in zip(together, alone):
    assert a["seeds"] == b["seeds"] and a["value"] == pytest.approx(b["value"], rel=1e-4)


def started(pod, name, *overrides):
  """Two processes that train for ever, after their third step."""
  argv = [*TRAIN, f"--workdir={pod.folder / name}", "--config.train.num_steps=10000000", *overrides]
  processes, path, deadline = pod.start_two(argv, 1), pod.folder / name / "metrics.jsonl", time.monotonic() + 200
  while not path.exists() or path.read_bytes().count(b"\n") < 3:
    assert time.monotonic() < deadline and all(p.poll() is None for p in processes), pod.said(0)[-3000:]
    time.sleep(0.01)
  return processes


def test_a_notice_to_one_host_stops_all_at_one_step(pod):
  """SIGTERM to one of two: both save the same step and exit with 0."""
  processes = started(pod, "preempted", "--config.train.checkpoint_every=10000000")
  processes[1].send_signal(signal.SIGTERM)
  pod.finish(*processes)
  (step,) = checkpoint.steps_of(pod.folder / "preempted" / "checkpoints")
  assert step >= 3 and pod.metrics("preempted")[-1]["step"] == step
  for i in range(2):
    assert f"stopped by SIGTERM at step {step}; saved" in pod.said(i)


def test_a_host_that_hangs_does_not_hold_the_others(pod):
  """SIGSTOP to one of two: the other exits with code 3 within the timeout and 30 seconds, its stacks dumped."""
  processes = started(pod, "hung", "--config.hang_timeout=8")
  processes[1].send_signal(signal.SIGSTOP)
  begin = time.monotonic()
  try:
    assert processes[0].wait(timeout=38) == 3
    assert time.monotonic() - begin > 7
    said = pod.said(0)
    assert "error: nothing ended in 8 seconds after " in said and "(config.hang_timeout) on host 0" in said
    assert "Current thread" in said and "loop.py" in said  # where the main thread waits
  finally:
    for process in processes:
      process.kill()


@pytest.mark.parametrize("trouble, codes, line", [
  ("unread", (2, 2), "error: .*checkpoints/20 cannot be read now: ValueError: garbled on the way"),
  ("asleep", (3, None), "error: nothing ended in 10 seconds after the preparation"),
])  # fmt: skip
def test_one_host_in_trouble_over_a_checkpoint_does_not_hold_the_other(trained, trouble, codes, line):
  """What one cannot read none goes on from, and none takes for damaged; one that hangs there ends the other too."""
  shutil.copytree(trained.folder / "one", trained.folder / trouble)
  argv = ["experiments/train.py", "--config=tests/training/trouble.py", f"--workdir={trained.folder / trouble}"]
  processes = trained.start_two([*argv, "--config.hang_timeout=10"], 1, TROUBLE=trouble)
  try:
    assert processes[0].wait(timeout=240) == codes[0], trained.said(0)[-3000:]
    assert codes[1] is None or processes[1].wait(timeout=240) == codes[1]
    assert re.search(line, trained.said(0))
    assert checkpoint.steps_of(trained.folder / trouble / "checkpoints")[-1] == 20
  finally:
    for process in processes:
      process.kill()
