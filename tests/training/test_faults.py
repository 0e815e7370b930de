"""Runs that diverge, cannot write, or hang: what they say, and what they leave."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import tiny, toy

from diffusion_jax.data import batching, sources
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, faults, loop, start

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(monkeypatch):
  """tiny.py's run with the toy network."""
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
  return tiny.get_config()


def test_a_repro_file_says_what_the_skipped_updates_were_made_of(config, tmp_path, monkeypatch):
  """Examples and noise levels of each update since the last good one, by the formulas that the update goes by."""
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: toy.Toy(poison=float("nan")))
  config.seed = 5
  config.train.update(max_skipped=6, num_steps=20, log_every=4)
  with pytest.raises(faults.Diverged, match=r"the last 6 updates before step 6 \(seed 5\).*max_skipped = 6; .*repro_0"):
    loop.train(config, tmp_path)
  (path,) = tmp_path.glob("repro_*.json")
  record = json.loads(path.read_text())
  assert path.name == "repro_00000006.json" and record["seed"] == 5
  assert record["config"]["edm.p_mean"] == -1.2 and record["checkpoint"] in (4, None)
  assert [update["step"] for update in record["updates"]] == list(range(6))
  key = start.train_key(config)
  for update in record["updates"]:
    np.testing.assert_array_equal(update["examples"], batching.indices(5, update["step"], 8, 1500))
    for slot, level in zip(range(8), update["times"]):
      example = jax.random.fold_in(jax.random.fold_in(key, update["step"]), slot)
      z = jax.random.normal(jax.random.fold_in(example, 0), (1,))[0]  # stream 0 is the noise level's
      assert level == pytest.approx(float(jnp.exp(-1.2 + 1.2 * z)), rel=1e-5)


def test_skipped_updates_that_are_not_in_a_row_stop_nothing(config, tmp_path, monkeypatch):
  """Two of three updates fail: never three in a row."""
  source, gather = sources.load("digits", "train"), sources.Arrays.gather
  bad = np.concatenate([batching.indices(config.seed, k, 8, len(source)) for k in range(12) if k % 3])

  def spoilt(self, indices):
    batch = gather(self, indices)
    image = batch["image"].copy()
    image[np.isin(indices, bad)] = np.nan
    return {**batch, "image": image}

  monkeypatch.setattr(sources.Arrays, "gather", spoilt)
  config.train.update(max_skipped=3, num_steps=12)
  state = loop.train(config, tmp_path)
  assert int(state.skipped) == 8 and int(state.skipped_in_row) == 2


# Python ignores SIGXFSZ: a write past the limit is an error, as on a full disk.
_LIMIT = """
import resource, runpy, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def limited(workdir, *overrides, file_size=None):
  """train.py with the toy network, in a process that can write files of at most `file_size` bytes."""

  argv = ["experiments/train.py", "--config=tests/training/toy.py", f"--workdir={workdir}", *overrides]
  limit = ["-c", _LIMIT, str(file_size)] if file_size else []
  return subprocess.run([sys.executable, *limit, *argv], cwd=ROOT, capture_output=True, text=True)


def test_a_full_disk_costs_nothing_that_was_saved(tmp_path):
  """One line and exit code 1; the checkpoints from before are whole, and with space the run goes on from them."""
  first = limited(tmp_path / "run", "--config.train.num_steps=8")
  assert first.returncode == 0, first.stderr
  full = limited(tmp_path / "run", file_size=6000)
  assert full.returncode == 1
  (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
  assert f"{tmp_path}/run/checkpoints/12 cannot be written" in line
  assert f"the last good checkpoint is {tmp_path}/run/checkpoints/8" in line
  assert full.stderr.endswith(line + "\n")
  again = limited(tmp_path / "run")
  assert again.returncode == 0 and "resumed from step 8" in again.stderr, again.stderr
  assert checkpoint.newest(tmp_path / "run") == 24


@pytest.mark.parametrize("file, what", [("checkpoints", "checkpoints"), ("metrics.jsonl/x", "metrics.jsonl")])
def test_a_workdir_that_cannot_be_written_is_one_line(config, tmp_path, file, what):
  """A file stands where a folder must be, or a folder where a file must be."""
  (tmp_path / file).parent.mkdir(exist_ok=True)
  (tmp_path / file).write_text("in the way")
  with pytest.raises(checkpoint.SaveError, match=f"cannot be written; there is no checkpoint before it: .*{what}"):
    loop.train(config, tmp_path)


WATCHED = """
import sys, time
from diffusion_jax.training import faults
watchdog = faults.Watchdog({timeout})
for i in range(10):
  time.sleep({step})
  watchdog.beat(f"step {{i}}")
{end}
time.sleep(3)
"""


@pytest.mark.parametrize("timeout, step, end, code", [
  (1.0, 0.2, "", faults.HANG_CODE), (1.0, 0.2, "watchdog.close()", 0), (0.0, 0.01, "", 0),
])  # fmt: skip
def test_the_watchdog_ends_a_process_that_stands_still(timeout, step, end, code):
  """Not while it is beaten, nor once it is closed; 0 watches nothing."""
  program = WATCHED.format(timeout=timeout, step=step, end=end)
  begin = time.monotonic()
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == code, done.stderr
  if code:
    assert "nothing ended in 1 seconds after step 9" in done.stderr and 'File "<string>", line 9' in done.stderr
    assert time.monotonic() - begin > 3


def test_a_trace_of_the_steps_asked_for(config, tmp_path):
  loop.train(config, tmp_path, profile=range(3, 6))
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_dry_run_says_what_a_run_needs_and_writes_nothing(tmp_path):
  """Its numbers are those of the network: parameters, and 16 bytes of state for each, split by fsdp."""
  argv = [sys.executable, "experiments/train.py", "--config=tests/training/tiny.py", f"--workdir={tmp_path}/run"]
  argv += ["--dry_run", "--config.train.batch_size=16", "--config.network.channels=32"]
  argv += ["--config.train.parallel=fsdp", "--config.train.accumulation=2", f"--compilation_cache={tmp_path}/cache"]
  flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags})
  assert done.returncode == 0, done.stderr
  for part in (
    "8 × cpu (cpu), 8 on each of 1 hosts", "fsdp over {'batch': 8}", "digits train: 1,500 images (8, 8, 1)",
    "16 = 8 devices × 2, in 2 parts of 1", "memory  ", "MB a device",
  ):  # fmt: skip
    assert part in done.stdout, done.stdout
  count = int(done.stdout.split("net: ")[1].split()[0].replace(",", ""))
  one, two = f"{4 * count / 1e6:,.1f}", f"{8 * count / 1e6:,.1f}"
  assert f"parameters {one}, averages {one}, optimizer {two}, split" in done.stdout
  share = float(done.stdout.split("state ")[1].split()[0])
  assert count > 100_000 and 16e-6 * count / 8 < share < 16e-6 * count / 4  # small arrays lie whole on each
  assert not (tmp_path / "run").exists()
  assert any((tmp_path / "cache").iterdir())  # what was compiled is kept for the run itself


def test_data_on_the_devices_give_the_run_of_data_on_the_host(config, tmp_path):
  """To the bit; the host then sends numbers alone."""
  loop.train(config, tmp_path / "host")
  config.data.cache = "device"
  loop.train(config, tmp_path / "device")
  host, device = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("host", "device"))
  assert host == device


def troubled(trouble, workdir, *overrides):
  argv = [sys.executable, "experiments/train.py", "--config=tests/training/trouble.py", f"--workdir={workdir}"]
  return subprocess.Popen(
    [*argv, *overrides], cwd=ROOT, env={**os.environ, "TROUBLE": trouble}, stdout=subprocess.PIPE, text=True
  )


def test_a_notice_before_the_first_step_saves_and_ends_well(tmp_path):
  process = troubled("early", tmp_path / "run")
  assert process.wait(timeout=200) == 0
  assert checkpoint.steps_of(tmp_path / "run" / "checkpoints") == [1]


def test_a_second_notice_does_not_stop_the_writing(tmp_path):
  """Schedulers often send more than one."""
  process = troubled("slow", tmp_path / "run", "--config.train.num_steps=4")
  assert any(line == "writing\n" for line in process.stdout)  # the last checkpoint's, in the background
  for _ in range(2):
    process.terminate()
    time.sleep(0.5)
  assert process.wait(timeout=200) == 0
  assert checkpoint.steps_of(tmp_path / "run" / "checkpoints") == [4]


@pytest.mark.parametrize("layout", ["pmap", "jit", "fsdp"])
def test_nothing_compiles_anew_at_a_log_line(config, tmp_path, layout):
  """As much is compiled for twelve log lines as for one."""
  config.train.update(parallel=layout, num_steps=12, checkpoint_every=12)
  counts = []
  for every in (12, 1):
    config.train.log_every, compiled = every, []
    listen = lambda name, seconds, compiled=compiled, **_: compiled.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    loop.train(config, tmp_path / str(every))
    jax.monitoring.clear_event_listeners()
    counts.append(len(compiled))
  assert 0 < counts[1] <= counts[0]


def test_too_many_in_a_row_inside_one_call_stop_the_run(config, tmp_path, monkeypatch):
  """Three bad updates at steps 1 to 3 of a call of eight."""
  source, gather = sources.load("digits", "train"), sources.Arrays.gather
  bad = np.concatenate([batching.indices(config.seed, k, 8, len(source)) for k in range(1, 4)])

  def spoilt(self, indices):
    batch = gather(self, indices)
    return {**batch, "image": np.where(np.isin(indices, bad)[:, None, None, None], np.nan, batch["image"])}

  monkeypatch.setattr(sources.Arrays, "gather", spoilt)
  config.train.update(max_skipped=3, num_steps=16, updates_per_call=8)
  config.train.update(log_every=8, checkpoint_every=8, sample_every=16)
  with pytest.raises(faults.Diverged, match="the last 3 updates before step 4 "):
    loop.train(config, tmp_path)
  record = json.loads((tmp_path / "repro_00000004.json").read_text())
  assert [update["step"] for update in record["updates"]] == [1, 2, 3]


def test_a_longer_run_has_the_lines_of_one_that_was_never_short(config, tmp_path):
  """log_every 4: a run of 10 steps logs 4, 8, 10; made longer it logs 4, 8, 12, ..., as from the start."""
  config.train.update(log_every=4, checkpoint_every=5, score_every=10, score_images=20, num_steps=10)
  loop.train(config, tmp_path / "longer")
  config.train.num_steps = 20
  loop.train(config, tmp_path / "longer")
  loop.train(config, tmp_path / "once")
  for name in ("metrics.jsonl", "scores.jsonl"):
    assert (tmp_path / "longer" / name).read_text() == (tmp_path / "once" / name).read_text()


def test_a_score_that_a_kill_left_out_is_made_up_for(config, tmp_path):
  """Killed between a checkpoint and its score: the run that goes on scores it first."""
  config.train.update(num_steps=8, score_every=4, score_images=20)
  loop.train(config, tmp_path / "once")
  config.train.num_steps = 4
  loop.train(config, tmp_path / "killed")
  (tmp_path / "killed" / "scores.jsonl").unlink()
  (tmp_path / "killed" / "samples" / "step_00000004.png").unlink()
  config.train.num_steps = 8
  loop.train(config, tmp_path / "killed")
  assert (tmp_path / "killed" / "scores.jsonl").read_text() == (tmp_path / "once" / "scores.jsonl").read_text()


def test_several_hosts_never_ask_with_the_same_number_twice(monkeypatch):
  """JAX's sync point is one number that all hosts meet at: a second run of a process goes on where the first ended."""
  asked = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(faults.multihost_utils, "reached_preemption_sync_point", lambda n: asked.append(n) or False)
  for _ in range(2):
    with faults.preemption() as stop:
      assert not any([stop(0), stop(1), stop(2)])
  assert asked == list(range(asked[0], asked[0] + 6))
