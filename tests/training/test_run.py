"""Whole runs of experiments/train.py in processes of their own: device counts, kills, damaged checkpoints."""

import json
import os
import random
import time

import jax
import numpy as np
import pytest
from training import tiny, toy
from training.programs import STEPS, Runs

from diffusion_jax import methods
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, parallel, start


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """The runs of this module, two at a time; each test looks at what they left.

  unet1, unet8: the U-Net on one and on eight devices. The others have toy.py's network:
  one: 24 steps on one device, uninterrupted.
  killed: SIGKILL at a random step, resumed. written: SIGKILL in the middle of a checkpoint's writing, resumed.
  twice: SIGKILL at a random moment, and again after the resumption.
  stopped: SIGTERM at a random step. continued: stopped, resumed.
  damaged: stopped, its newest checkpoint damaged and the last line of its metrics cut, resumed.
  """
  seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
  rng = random.Random(seed)
  steps = rng.sample(range(9, 18), 2)  # step 8's save waits until step 4's is complete
  print(f"KILL_SEED={seed}: SIGKILL at step {steps[0]}, SIGTERM at step {steps[1]}")
  runs = Runs(tmp_path_factory.mktemp("runs"))
  runs.seed, runs.said = seed, {}

  pair = [runs.start(f"unet{n}", n, "--config.train.num_steps=20", config="tiny") for n in (1, 8)]
  for n, process in zip((1, 8), pair):
    runs.finish(f"unet{n}", process)

  one, killed = runs.start("one"), runs.start("killed")
  runs.wait_for_step("killed", killed, steps[0])
  runs.kill(killed)
  runs.finish("one", one)
  runs.steps_at_kill = runs.steps("killed")
  killed, written = runs.start("killed"), runs.start("written")
  runs.wait_for_write("written", written, after=rng.choice((4, 8, 12)))
  runs.kill(written)
  runs.said["killed"] = runs.finish("killed", killed)
  written, twice = runs.start("written"), runs.start("twice")
  for _ in range(2):
    time.sleep(rng.uniform(1, 6))
    if twice.poll() is None:  # else it had ended by then
      runs.kill(twice)
    twice = runs.start("twice")
  runs.finish("written", written)
  stopped = runs.start("stopped")
  runs.wait_for_step("stopped", stopped, steps[1])
  stopped.terminate()
  runs.said["stopped"] = runs.finish("stopped", stopped)
  runs.finish("twice", twice)
  runs.stop_step = runs.metrics("stopped")[-1]["step"]
  runs.steps_at_stop = runs.steps("stopped")

  runs.copy("stopped", "continued")
  runs.copy("stopped", "damaged")
  runs.damage("damaged", runs.steps_at_stop[-1])
  with (runs.folder / "damaged/metrics.jsonl").open("a") as file:
    file.write('{"step": 99, "lo')
  names = ("continued", "damaged")
  for name, process in zip(names, [runs.start(name) for name in names]):
    runs.said[name] = runs.finish(name, process)
  return runs


@pytest.fixture(scope="module")
def state_of(runs):
  """(name) -> the last state of a run, {path: array}."""
  config = tiny.get_config()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
    template = parallel.template(parallel.from_config("pmap"), start.shapes(methods.from_config(config), config))

  def read(name):
    checkpoints = checkpoint.Checkpoints(runs.folder / name, config)
    assert checkpoints.latest_step() == STEPS
    state = checkpoints.restore(template)
    checkpoints.close()
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

  return read


def test_eight_devices_give_the_losses_of_one(runs):
  """Over twenty steps of the U-Net, with dropout, label dropout and flips."""
  one, eight = runs.metrics("unet1"), runs.metrics("unet8")
  assert [m["step"] for m in one] == [m["step"] for m in eight] == list(range(1, 21))
  for name in ("loss", "grad_norm", "learning_rate", "skipped"):
    np.testing.assert_allclose([m[name] for m in eight], [m[name] for m in one], rtol=1e-5)
  assert len({m["loss"] for m in one}) == 20  # no two steps alike: noise and examples move on


def test_a_checkpoint_of_eight_devices_opens_on_one(runs):
  """With the averages that one device comes to, up to rounding."""
  variables = []
  for name in ("unet1", "unet8"):
    _, values = checkpoint.load_for_inference(runs.folder / name)
    assert checkpoint.newest(runs.folder / name) == 20
    assert {leaf.device for leaf in jax.tree.leaves(values)} == {jax.local_devices()[0]}
    variables.append(values)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *variables)


@pytest.mark.parametrize("name", ["killed", "written", "twice", "continued", "damaged"])
def test_interrupted_runs_end_bit_for_bit_as_the_uninterrupted(runs, state_of, name):
  """Parameters, averages, optimizer, counters and metrics.jsonl are those of the run that nothing interrupted."""
  wanted, got = state_of("one"), state_of(name)
  assert wanted.keys() == got.keys()
  for part in (".step", ".params", ".ema", ".opt_state", ".skipped", ".window"):
    assert any(key.startswith(part) for key in wanted)
  different = [key for key in wanted if wanted[key].tobytes() != got[key].tobytes()]
  assert not different, f"KILL_SEED={runs.seed}"
  for file in ("metrics.jsonl", f"samples/step_{STEPS:08d}.png", "config.json"):
    assert (runs.folder / name / file).read_bytes() == (runs.folder / "one" / file).read_bytes()


def test_a_killed_run_goes_on_from_its_newest_checkpoint(runs):
  """Not from the start: the resumed process says the step."""
  assert runs.steps_at_kill, "killed before its first checkpoint was complete"
  assert f"resumed from step {runs.steps_at_kill[-1]}\n" in runs.said["killed"]


def test_sigterm_saves_the_step_it_stops_at(runs):
  """And exits with code 0, which the fixture asserts; the next run goes on from there."""
  assert runs.stop_step < STEPS
  assert runs.steps_at_stop[-1] == runs.stop_step
  assert f"stopped by SIGTERM at step {runs.stop_step}; saved" in runs.said["stopped"]
  assert f"resumed from step {runs.stop_step}\n" in runs.said["continued"]


def test_a_damaged_newest_checkpoint_is_passed_over_with_one_warning(runs):
  text = runs.said["damaged"]
  assert text.count("is damaged and passed over") == 1
  assert f"checkpoints/{runs.stop_step} is damaged" in text
  assert f"resumed from step {runs.steps_at_stop[-2]}\n" in text


def test_as_many_checkpoints_are_kept_as_asked(runs):
  assert runs.steps("one") == [20, 24]


def test_throughput_has_a_line_for_every_line_of_metrics(runs):
  lines = [json.loads(line) for line in (runs.folder / "killed/throughput.jsonl").read_text().splitlines()]
  assert [m["step"] for m in lines] == list(range(1, STEPS + 1))
  assert all(m["images_per_second"] > 0 and np.isclose(m["step_seconds"] * m["images_per_second"], 8) for m in lines)
