"""A run that trains its predecessor: once, to the end, and not what cannot serve."""

import os
import signal
import types

import numpy as np
import pytest
from training import tiny, toy

from diffusion_jax.config import ConfigError
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, faults, loop, predecessor


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())


@pytest.fixture
def trained(monkeypatch):
  """(seed, step) of each training; `loop.train` makes folders alone. SIGTERM comes after the steps in trained.kill."""

  class Trained(list):
    kill = {}

  done = Trained()

  def train(config, workdir):
    with faults.preemption() as stop:
      step = done.kill.get(config.seed, config.train.num_steps)
      if config.seed in done.kill:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop(0)
      checkpoint.write_config(workdir, config)
      (checkpoint.folder_of(workdir) / str(step)).mkdir(parents=True, exist_ok=True)
      done.append((config.seed, step))
      return types.SimpleNamespace(step=np.int32(step))

  monkeypatch.setattr(loop, "train", train)
  return done


def configs(folder):
  """(config of the run, config of its predecessor)."""
  config, init_config = tiny.get_config(), tiny.get_config()
  config.init_from, init_config.seed = str(folder / "first"), 7
  for each in (config, init_config):
    each.train.num_steps = 4
  return config, init_config


def test_it_is_trained_where_it_is_missing_or_unfinished(tmp_path, trained):
  config, init_config = configs(tmp_path)
  half = init_config.copy_and_resolve_references()
  half.train.num_steps = 2
  assert predecessor.train(config, half, tmp_path / "second")  # a run at step 2 of 4 is unfinished
  assert predecessor.train(config, init_config, tmp_path / "second") and trained == [(7, 2), (7, 4)]
  assert predecessor.train(config, init_config, tmp_path / "second") and trained == [(7, 2), (7, 4)]
  loop.train(config, tmp_path / "second")
  for path in sorted((tmp_path / "first").rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  assert predecessor.train(config, init_config, tmp_path / "second") and len(trained) == 3  # it has its own checkpoint


@pytest.mark.parametrize("step", [1, 4])
def test_sigterm_stops_before_the_second_run(step, tmp_path, trained):
  """In the middle, and when nothing was left to do but to write the last pictures."""
  config, init_config = configs(tmp_path)
  trained.kill = {7: step}
  old = signal.getsignal(signal.SIGTERM)
  assert not predecessor.train(config, init_config, tmp_path / "second")
  assert signal.getsignal(signal.SIGTERM) == old and not (tmp_path / "second").exists()
  trained.kill = {}
  assert predecessor.train(config, init_config, tmp_path / "second")
  assert trained == ([(7, 1), (7, 4)] if step == 1 else [(7, 4)])


def test_a_notice_counts_for_those_who_wait_around():
  with faults.preemption() as outer:
    with faults.preemption() as inner:
      assert not inner(0)
      os.kill(os.getpid(), signal.SIGTERM)
      assert inner(0) and outer(0)
    assert outer(1)


@pytest.mark.parametrize("change, pattern", [
  (lambda c, i: setattr(c, "init_from", ""), "config.init_from = '': must be the workdir"),
  (lambda c, i: setattr(c, "init_from", "a.pkl"), "config.init_from = 'a.pkl': expected the workdir of a run"),
  (lambda c, i: setattr(c, "init_from", "runs/x/checkpoints/3"), "expected the workdir of a run"),
  (lambda c, i: setattr(c, "init_from", "runs/x/checkpoints"), "expected the workdir of a run"),
  (lambda c, i: setattr(c, "init_from", c.init_from[:-5] + "second"), "must be another folder"),
  (lambda c, i: i.train.update(batch_size=12), "^init_config.train.batch_size = 12: must be a multiple of 8"),
  (lambda c, i: i.data.update(name="zip", path="no.zip"), "^init_config.data.path = 'no.zip'"),
  (lambda c, i: c.data.update(name="zip", path="no.zip"), "^config.data.path = 'no.zip'"),
  (lambda c, i: i.edm.update(preconditioner="vp"), "config.edm.preconditioner = 'edm': init_from was trained with VP"),
])  # fmt: skip
def test_what_cannot_be_is_one_line_before_anything_is_trained(change, pattern, tmp_path):
  config, init_config = configs(tmp_path)
  change(config, init_config)
  with pytest.raises(ConfigError, match=pattern) as error:
    predecessor.train(config, init_config, tmp_path / "second")
  assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_folders_of_other_runs_are_refused(tmp_path):
  config, init_config = configs(tmp_path)
  other = init_config.copy_and_resolve_references()
  other.seed = 8
  wrong = {
    "first": f"^config.init_from = '{tmp_path}/first' holds a run with init_config.seed = 8, not 7$",
    "second": f"^--workdir={tmp_path}/second holds a run with config.init_from = ''",
  }
  for folder, pattern in wrong.items():
    checkpoint.write_config(tmp_path / folder, other)
    with pytest.raises(checkpoint.WorkdirError, match=pattern):
      predecessor.train(config, init_config, tmp_path / "second")
    checkpoint.write_config(tmp_path / folder, init_config)


def test_a_run_that_goes_on_does_not_ask_for_its_predecessor(tmp_path, trained):
  config, init_config = configs(tmp_path)
  predecessor.train(config, init_config, tmp_path / "second")
  loop.train(config, tmp_path / "second")
  init_config.seed, init_config.train.batch_size = 9, 12
  assert predecessor.train(config, init_config, tmp_path / "second") and len(trained) == 2


def test_a_folder_is_known_by_what_it_holds(tmp_path, trained):
  """Runs may lie in a folder called checkpoints, or have numbers for names; a checkpoint may lie anywhere."""
  config, init_config = configs(tmp_path)
  for name in ("checkpoints/teacher", "runs/3"):
    config.init_from = str(tmp_path / name)
    assert predecessor.train(config, init_config, tmp_path / "second")
  assert len(trained) == 2
  (tmp_path / "copied" / "state").mkdir(parents=True)
  (tmp_path / "copied" / "state" / "_METADATA").write_text("{}")
  config.init_from = str(tmp_path / "copied")
  with pytest.raises(ConfigError, match="expected the workdir of a run"):
    predecessor.train(config, init_config, tmp_path / "second")


def test_a_predecessor_with_one_of_its_own_goes_on(tmp_path, trained):
  """Its config.json has the Fourier frequencies that it started from, which its config file does not name."""
  config, init_config = configs(tmp_path)
  for each in (config, init_config):
    each.network.arch = "ncsnpp"
  init_config.init_from = "somewhere"
  begun = init_config.copy_and_resolve_references()
  begun.network.freqs = (1.0, 2.0)
  checkpoint.write_config(tmp_path / "first", begun)
  assert predecessor.train(config, init_config, tmp_path / "second") and trained == [(7, 4)]
  init_config.network.freqs = (3.0, 4.0)
  with pytest.raises(ConfigError, match=r"^init_config.network.freqs = .* must be \(\) or those of init_from"):
    predecessor.train(config, init_config, tmp_path / "second")
