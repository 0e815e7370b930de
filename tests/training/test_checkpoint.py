"""Checkpoints of a small state, a run's config on disk, and its lines of metrics."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging
from training import tiny, toy

from diffusion_jax import config as config_lib
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, loop, parallel, state, writers


def state_at(step):
  rng = np.random.default_rng(step)
  params = {"net": {"w": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}}
  made = state.create(params, {"net": (jnp.asarray(step), jnp.asarray(rng.normal(size=4), jnp.float32))})
  return made.replace(step=jnp.int32(step), window={"loss": jnp.float32(np.nan)})


def template():
  return parallel.template(parallel.from_config("pmap"), jax.eval_shape(lambda: state_at(0)))


def opened(workdir, **train):
  config = tiny.get_config()
  config.train.update({"keep_checkpoints": 100, **train})
  return checkpoint.Checkpoints(workdir, config)


def save(workdir, *steps, scores=None, **train):
  """Saves steps one after another, each scored after it was saved, as the loop does."""
  checkpoints = opened(workdir, **train)
  checkpoints.scored(checkpoint.scores_of(workdir))
  for step in steps:
    checkpoints.save(state_at(step), step)
    if scores and step in scores:
      checkpoints.scored({step: scores[step]})
      with (workdir / "scores.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "frechet": scores[step]}) + "\n")
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
  checkpoints = opened(tmp_path)
  assert checkpoints.latest_step() == 7
  assert_same(checkpoints.restore(template()), state_at(7))
  assert not warnings


def test_only_the_newest_are_kept(tmp_path):
  save(tmp_path, 1, 2, 3, 4, keep_checkpoints=2)
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_those_of_an_interval_and_the_best_are_kept_too(tmp_path):
  """Over a restart, which must know the scores from before; of equal scores the first counts."""
  kept = dict(keep_checkpoints=1, keep_every=4, keep_best=2, score_every=1)
  scores = {2: 1.0, 3: 5.0, 5: 3.0, 6: 3.0, 9: 7.0}
  (tmp_path / "scores.jsonl").write_text("")
  save(tmp_path, 1, 2, 3, 4, scores=scores, **kept)
  assert checkpoint.steps_of(tmp_path / "checkpoints") == [2, 3, 4]
  save(tmp_path, 5, 6, 7, 8, 9, scores=scores, **kept)
  assert checkpoint.steps_of(tmp_path / "checkpoints") == [2, 4, 5, 8, 9]
  assert checkpoint.best(tmp_path) == 2 and checkpoint.newest(tmp_path) == 9


def test_a_run_without_scores_has_no_best(tmp_path):
  save(tmp_path, 1)
  with pytest.raises(checkpoint.WorkdirError, match="no checkpoint here has a score"):
    checkpoint.best(tmp_path)


def test_the_damaged_are_passed_over_one_warning_each(tmp_path, warnings):
  save(tmp_path, 1, 2, 3)
  damage(tmp_path, 2)
  damage(tmp_path, 3)
  assert_same(opened(tmp_path).restore(template()), state_at(1))
  assert [str(tmp_path / f"checkpoints/{n}") in said for n, said in zip((3, 2), warnings)] == [True, True]
  assert len(warnings) == 2


def test_a_damaged_checkpoint_is_replaced_when_the_run_comes_by_again(tmp_path, warnings):
  """Else a run resumed from before it would end without its last checkpoint."""
  save(tmp_path, 1, 2)
  damage(tmp_path, 2)
  checkpoints = opened(tmp_path)
  checkpoints.restore(template())
  checkpoints.save(state_at(2), 2)
  checkpoints.close()
  assert len(warnings) == 1
  assert_same(opened(tmp_path).restore(template()), state_at(2))
  assert len(warnings) == 1


def test_a_checkpoint_before_a_damaged_newest_is_saved_too(tmp_path, warnings):
  """A run resumed from step 1 with a damaged 4 must not wait for step 5 to save again."""
  save(tmp_path, 1, 4)
  damage(tmp_path, 4)
  checkpoints = opened(tmp_path)
  checkpoints.restore(template())
  checkpoints.save(state_at(2), 2)
  checkpoints.close()
  assert_same(opened(tmp_path).restore(template()), state_at(2))


def test_no_checkpoint_that_can_be_read_is_an_error(tmp_path, warnings):
  save(tmp_path, 1)
  damage(tmp_path, 1)
  with pytest.raises(checkpoint.WorkdirError, match="no checkpoint that can be read"):
    opened(tmp_path).restore(template())


PARTS = ("state/d/*", "state/manifest.ocdbt", "state/_METADATA", "meta/metadata", "digests.json")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_whatever_file_is_altered_the_checkpoint_is_passed_over(tmp_path, warnings, part, how):
  """One bit, the last byte, or all of it: one warning that names the checkpoint, and nearly always the file."""
  save(tmp_path, 1, 2)
  path = sorted((tmp_path / "checkpoints" / "2").glob(part))[0]
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  if how == "remove":
    path.unlink()
  else:
    path.write_bytes(data if how == "flip" else data[:-1])
  if part == "digests.json" and how == "remove":  # by another program: what can be read is believed
    assert_same(opened(tmp_path).restore(template()), state_at(2))
    return
  assert_same(opened(tmp_path).restore(template()), state_at(1))
  assert len(warnings) == 1 and str(tmp_path / "checkpoints/2") in warnings[0]
  assert part == "digests.json" or str(path.relative_to(tmp_path / "checkpoints/2")) in warnings[0]


@pytest.mark.parametrize("error", [OSError(116, "Stale"), MemoryError(), RuntimeError("RESOURCE_EXHAUSTED")], ids=str)
def test_what_may_pass_is_no_damage(tmp_path, monkeypatch, error):
  """A file system or a device that fails for a moment: an error, and the whole checkpoint stays."""
  save(tmp_path, 1, 2)

  def fail(*args, **kwargs):
    raise error

  monkeypatch.setattr(checkpoint, "_read_state", fail)
  checkpoints = opened(tmp_path)
  with pytest.raises(checkpoint.WorkdirError, match="checkpoints/2 cannot be read now: "):
    checkpoints.restore(template())
  checkpoints.save(state_at(3), 3)
  checkpoints.close()
  assert checkpoint.steps_of(tmp_path / "checkpoints") == [1, 2, 3]


def test_the_last_good_checkpoint_is_none_that_was_passed_over(tmp_path, warnings, monkeypatch):
  save(tmp_path, 1, 2)
  damage(tmp_path, 2)
  checkpoints = opened(tmp_path)
  checkpoints.restore(template())
  monkeypatch.setattr(checkpoints._manager, "delete", lambda step: (_ for _ in ()).throw(OSError("no way")))
  with pytest.raises(checkpoint.SaveError, match="/3 cannot be written; the last good .*checkpoints/1: no way"):
    checkpoints.save(state_at(3), 3)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path, monkeypatch):
  """It is not damaged, and must not be passed over for an older one."""
  save(tmp_path, 1)
  monkeypatch.setattr(checkpoint, "FORMAT", 99)
  save(tmp_path, 2)
  monkeypatch.undo()
  with pytest.raises(checkpoint.WorkdirError, match="checkpoints/2 is of format 99, by diffusion-jax .*too old"):
    opened(tmp_path).restore(template())


def test_what_cannot_be_written_is_one_line_with_the_last_good_step(tmp_path, monkeypatch):
  """Whatever the writer raises, at once or in the background."""
  save(tmp_path, 3)
  checkpoints = opened(tmp_path)
  full = lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "No space left on device"))
  monkeypatch.setattr(checkpoints._manager, "save", full)
  with pytest.raises(checkpoint.SaveError, match="/4 cannot be written; the last good .*checkpoints/3: .*No space"):
    checkpoints.save(state_at(4), 4)


# --- inference --------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy_run(tmp_path, monkeypatch):
  """A workdir with the toy network's checkpoints of steps 4 and 8."""
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
  config = tiny.get_config()
  config.train.num_steps = 8
  loop.train(config, tmp_path / "run")
  return tmp_path / "run"


def test_one_line_gives_a_method_and_its_averages(toy_run, tmp_path, warnings):
  """From a workdir, a step of it, or the folder of a checkpoint that was copied elsewhere."""
  method, newest = checkpoint.load_for_inference(toy_run)
  assert {leaf.devices() == {jax.local_devices()[0]} for leaf in jax.tree.leaves(newest)} == {True}
  shutil.copytree(toy_run / "checkpoints" / "8", tmp_path / "elsewhere")
  assert_same(checkpoint.load_for_inference(tmp_path / "elsewhere")[1], newest)
  assert_same(checkpoint.load_for_inference(toy_run, 8)[1], newest)
  assert_same(checkpoint.load_for_inference(toy_run / "checkpoints")[1], newest)
  with pytest.raises(checkpoint.WorkdirError, match="is one checkpoint: it goes without a step"):
    checkpoint.load_for_inference(toy_run / "checkpoints" / "8", 8)
  _, older = checkpoint.load_for_inference(toy_run, 4)
  assert any(np.any(np.asarray(a) != b) for a, b in zip(jax.tree.leaves(older), jax.tree.leaves(newest)))
  x = jnp.zeros((2, 8, 8, 1))
  assert method.denoise(newest, x, jnp.ones(2), None).clean.shape == x.shape
  damage(toy_run, 8)
  assert_same(checkpoint.load_for_inference(toy_run)[1], older)
  assert len(warnings) == 1


def test_the_step_asked_for_is_the_one_given(toy_run, warnings):
  """A step that is not there, or is damaged, is an error: no other is put in its place."""
  with pytest.raises(checkpoint.WorkdirError, match=r"no checkpoint of step 5, only \[4, 8\]"):
    checkpoint.load_for_inference(toy_run, 5)
  damage(toy_run, 8)
  with pytest.raises(checkpoint.WorkdirError, match="no checkpoint that can be read"):
    checkpoint.load_for_inference(toy_run, 8)


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


def test_a_longer_run_keeps_how_its_rate_falls(tmp_path):
  """The rate falls over the whole run: more steps would change past updates, unless its images are given."""
  config = tiny.get_config()
  config.optimizer.decay_power = 0.96
  images = config.train.num_steps * config.train.batch_size
  checkpoint.write_config(tmp_path, config)
  config.train.num_steps *= 2
  checkpoint.check_workdir(tmp_path, config)  # it has not started
  with pytest.raises(checkpoint.WorkdirError, match=rf"over {images:,} images, not {2 * images:,}: --config.optimizer"):
    checkpoint.check_workdir(tmp_path, config, started=True)
  config.optimizer.decay_images = images
  checkpoint.check_workdir(tmp_path, config, started=True)


def test_partners_may_be_moved_but_not_left_out(tmp_path):
  """Whether conditions are made from the images or read is another run; where they are read from is not."""
  config = tiny.get_config()
  config.task.update(name="superres", path="here")
  checkpoint.write_config(tmp_path, config)
  config.task.path = "there"
  checkpoint.check_workdir(tmp_path, config)
  config.task.path = ""
  with pytest.raises(checkpoint.WorkdirError, match=r"config.task.path = 'here', not ''"):
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
