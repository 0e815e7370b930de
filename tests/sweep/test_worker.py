"""What one process does with a group: a training, then scores, of which one that fails leaves the others alone."""

import os
import signal

import pytest
from sweep import sweeps
from training import toy

from diffusion_jax.evaluation import bench
from diffusion_jax.methods import base
from diffusion_jax.sweep import Sweep, folder, plan, values, worker
from diffusion_jax.training import checkpoint, loop


@pytest.fixture
def group(tmp_path, monkeypatch):
  """(workdir, ids) of three members that share a training."""
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
  members = values("sampling.num_steps", (1, 2, 3))
  sweep = Sweep(sweeps.TINY, members, metrics=("frechet",), num_images=16)
  planned = plan.members(sweep, sweeps.SHORT)
  plan.write(tmp_path, "three.py", sweep, planned)
  return tmp_path / planned[0].group, [member.id for member in planned]


@pytest.fixture
def calls(monkeypatch):
  """How often the group was trained and its network loaded, and what happens at a score with so many steps."""
  seen = {"trained": 0, "loaded": 0, "while": {}}
  train, load, generate = loop.train, checkpoint.load_for_inference, bench.sampling.generate

  def counted_train(*args):
    seen["trained"] += 1
    return train(*args)

  def counted_load(*args):
    seen["loaded"] += 1
    return load(*args)

  def disturbed(config, method, variables, seeds, *args, **kwargs):
    if len(seeds) != 100:  # not the grid of training
      seen["while"].get(config.sampling.num_steps, lambda: None)()
    return generate(config, method, variables, seeds, *args, **kwargs)

  monkeypatch.setattr(loop, "train", counted_train)
  monkeypatch.setattr(checkpoint, "load_for_inference", counted_load)
  monkeypatch.setattr(bench.sampling, "generate", disturbed)
  return seen


def states(workdir, ids):
  return [folder.written(workdir / "members" / id)["state"] for id in ids]


def out_of_memory():
  raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nwith a second line")


def test_a_score_that_fails_leaves_the_others_alone(group, calls, capsys):
  """They share one loaded network; again, the failed one alone is scored, and nothing is trained."""
  calls["while"][2] = out_of_memory
  worker.work(group[0], {}, group[1])
  assert states(*group) == ["done", "failed", "done"] and (calls["trained"], calls["loaded"]) == (1, 1)
  failed = folder.written(group[0] / "members" / group[1][1])
  assert failed["reason"] == "RuntimeError: RESOURCE_EXHAUSTED: out of memory"
  assert "Traceback" in capsys.readouterr().err
  done = [(group[0] / "members" / id / "status.json") for id in (group[1][0], group[1][2])]
  before = [path.stat().st_mtime_ns for path in done]
  calls["while"].clear()
  worker.work(group[0], {}, group[1])
  assert states(*group) == ["done"] * 3 and (calls["trained"], calls["loaded"]) == (1, 2)
  assert [path.stat().st_mtime_ns for path in done] == before


def test_a_training_that_fails_fails_its_members(group, calls, monkeypatch):
  monkeypatch.setattr(loop, "train", lambda *_: out_of_memory())
  worker.work(group[0], {}, group[1])
  assert states(*group) == ["failed"] * 3 and calls["loaded"] == 0


def test_sigterm_while_scoring_leaves_the_rest_for_later(group, calls, monkeypatch):
  """A second one, while that is written down, changes nothing."""
  calls["while"][2] = lambda: os.kill(os.getpid(), signal.SIGTERM)
  set_status = folder.set_status

  def disturbed(member, state, *args, **kwargs):
    if state == folder.STOPPED:
      os.kill(os.getpid(), signal.SIGTERM)
    set_status(member, state, *args, **kwargs)

  monkeypatch.setattr(folder, "set_status", disturbed)
  old = signal.signal(signal.SIGTERM, worker._terminated)
  try:
    worker.work(group[0], {}, group[1])
  finally:
    signal.signal(signal.SIGTERM, old)
  assert states(*group) == ["done", "stopped", "stopped"]


def test_a_worker_that_finds_another_at_work_leaves(group, capsys):
  with folder.hold(group[0]):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
      assert worker.main([str(group[0]), "{}", *group[1]]) == worker.BUSY
    finally:
      for number, handler in handlers.items():
        signal.signal(number, handler)
  assert states(*group) == ["missing"] * 3 and "another process is at work there" in capsys.readouterr().out
