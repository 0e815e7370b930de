"""Checkpoints of a small state, a run's config on disk, and its lines of metrics."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging
from training import tiny

from diffusion_jax import config as config_lib
from diffusion_jax.training import checkpoint, state, writers


def state_at(step):
  rng = np.random.default_rng(step)
  params = {"net": {"w": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}}
  made = state.create(params, {"net": (jnp.asarray(step), jnp.asarray(rng.normal(size=4), jnp.float32))})
  return made.replace(step=jnp.int32(step), window={"loss": jnp.float32(np.nan)})


def template():
  shapes = jax.eval_shape(lambda: state_at(0))
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def save(workdir, *steps, keep=None):
  checkpoints = checkpoint.Checkpoints(workdir, keep)
  for step in steps:
    checkpoints.save(state_at(step))
  checkpoints.close()


def damage(workdir, step):
  """Truncates the checkpoint's array files."""
  for path in (workdir / "checkpoints" / str(step)).rglob("*"):
    if path.is_file() and "d" in path.parts:
      os.truncate(path, path.stat().st_size // 2)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def warnings(monkeypatch):
  """The warnings logged, as they would be printed."""
  said = []
  monkeypatch.setattr(absl_logging, "warning", lambda text, *args: said.append(text % args))
  return said


def test_a_state_comes_back_bit_for_bit(tmp_path, warnings):
  save(tmp_path, 3, 7)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  assert checkpoints.latest_step() == 7
  assert_same(checkpoints.restore(template()), state_at(7))
  assert_same(checkpoints.restore(template(), 3), state_at(3))
  assert not warnings


def test_only_the_newest_are_kept(tmp_path):
  save(tmp_path, 1, 2, 3, 4, keep=2)
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_the_damaged_are_passed_over_one_warning_each(tmp_path, warnings):
  save(tmp_path, 1, 2, 3)
  damage(tmp_path, 2)
  damage(tmp_path, 3)
  assert_same(checkpoint.Checkpoints(tmp_path).restore(template()), state_at(1))
  assert [str(tmp_path / f"checkpoints/{n}") in said for n, said in zip((3, 2), warnings)] == [True, True]
  assert len(warnings) == 2


def test_a_damaged_checkpoint_is_replaced_when_the_run_comes_by_again(tmp_path, warnings):
  """Else a run resumed from before it would end without its last checkpoint."""
  save(tmp_path, 1, 2)
  damage(tmp_path, 2)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.restore(template())
  checkpoints.save(state_at(2))
  checkpoints.close()
  assert len(warnings) == 1
  assert_same(checkpoint.Checkpoints(tmp_path).restore(template()), state_at(2))
  assert len(warnings) == 1


def test_a_checkpoint_before_a_damaged_newest_is_saved_too(tmp_path, warnings):
  """A run resumed from step 1 with a damaged 4 must not wait for step 5 to save again."""
  save(tmp_path, 1, 4)
  damage(tmp_path, 4)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.restore(template())
  checkpoints.save(state_at(2))
  checkpoints.close()
  assert_same(checkpoint.Checkpoints(tmp_path).restore(template()), state_at(2))


def test_no_checkpoint_that_can_be_read_is_an_error(tmp_path, warnings):
  save(tmp_path, 1)
  damage(tmp_path, 1)
  with pytest.raises(checkpoint.WorkdirError, match="no checkpoint that can be read"):
    checkpoint.Checkpoints(tmp_path).restore(template())


def test_the_step_asked_for_is_the_one_given(tmp_path, warnings):
  """A step that is not there, or is damaged, is an error: no other is put in its place."""
  save(tmp_path, 1, 2)
  with pytest.raises(checkpoint.WorkdirError, match=r"no checkpoint of step 5, only \[1, 2\]"):
    checkpoint.Checkpoints(tmp_path).restore(template(), 5)
  damage(tmp_path, 2)
  with pytest.raises(checkpoint.WorkdirError):
    checkpoint.Checkpoints(tmp_path).restore(template(), 2)


# --- the config on disk -----------------------------------------------------------------------------------------------


def test_a_config_keeps_its_values_and_types_on_disk(tmp_path):
  """Tuples stay tuples, floats that are whole stay floats."""
  config = tiny.get_config()
  config.network.channel_mult = (1, 2, 3)
  config.sampling.guidance = 2.0
  checkpoint.write_config(tmp_path, config)
  old, new = config_lib.flatten(config), config_lib.flatten(checkpoint.read_config(tmp_path))
  assert old == new
  assert {k: type(v) for k, v in old.items()} == {k: type(v) for k, v in new.items()}
  config_lib.check(checkpoint.read_config(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("text", ["", '{"seed": ', "[1]", "3", '{"sede": 1}', '{"seed": "one"}', '{"data": 1}', "\xff"])
def test_a_config_that_cannot_be_read_is_one_line(tmp_path, text):
  """Whatever stands in config.json, the error is a WorkdirError of one line that names the file."""
  (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
  with pytest.raises(checkpoint.WorkdirError) as error:
    checkpoint.read_config(tmp_path)
  assert "\n" not in str(error.value) and "config.json" in str(error.value)


def test_a_workdir_of_another_config_is_refused(tmp_path):
  """The error names the field and both values; a longer run is no other config."""
  config = tiny.get_config()
  checkpoint.check_workdir(tmp_path, config)
  checkpoint.write_config(tmp_path, config)
  assert not checkpoint.has_checkpoint(tmp_path)
  config.train.num_steps, config.sampling.rho, config.data.path = 48, 3.0, "elsewhere"  # no update depends on these
  checkpoint.check_workdir(tmp_path, config)
  config.network.channels = 16
  with pytest.raises(checkpoint.WorkdirError, match=r"config.network.channels = 8, not 16"):
    checkpoint.check_workdir(tmp_path, config)


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------


def lines(*steps):
  return "".join(json.dumps({"step": step, "loss": step / 7}) + "\n" for step in steps)


@pytest.mark.parametrize("end", ["", '{"step": 3, "lo', '{"step": 3}', "\n", "null\n", '{"loss": 1}\n', "\x00\x00"])
def test_lines_are_cut_back_to_the_step_resumed_from(tmp_path, end):
  """What a killed run logged past its checkpoint goes, and so does a last line that was cut off."""
  path = tmp_path / "metrics.jsonl"
  path.write_text(lines(1, 2, 3, 4) + end)
  file = writers.JsonLines(path, 2)
  assert path.read_text() == lines(1, 2)
  file.write({"step": 3, "loss": 3 / 7})
  assert path.read_text() == lines(1, 2, 3)


@pytest.mark.parametrize("end", ['{"step": 3, "lo', "\n", "null\n", '{"loss": 1}\n', "\x00\x00"])
def test_a_cut_off_last_line_goes_even_before_the_step(tmp_path, end):
  path = tmp_path / "metrics.jsonl"
  path.write_text(lines(1, 2) + end)
  writers.JsonLines(path, 5).write({"step": 6, "loss": 6 / 7})
  assert path.read_text() == lines(1, 2, 6)


def test_a_fresh_run_starts_with_an_empty_file(tmp_path):
  writers.JsonLines(tmp_path / "metrics.jsonl", 0)
  assert (tmp_path / "metrics.jsonl").read_text() == ""
