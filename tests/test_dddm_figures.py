"""DDDM's figures by a network whose estimate is a formula: their CSVs against the iteration in NumPy."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from test_figures import check_mistake, outcomes
from training import tiny

from diffusion_jax import methods, process, sampling
from diffusion_jax.data import sources
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, start
from diffusion_jax.training import state as state_lib
from diffusion_jax.types import Prediction, normal

PROGRAM, ESTIMATES = "experiments/figures/dddm.py", "experiments/figures/dddm_estimates.py"
CHAIN = process.DDPM(1000, 1e-4, 0.02)
# Flags after --out, and what the program says of them.
WRONG = {
  "": "--workdir is missing: the folder of a trained run",
  "--workdir=FOLDER/edm": "edm: a run of method edm; these are figures of dddm",
  "--workdir=FOLDER/run --iterations=1,0": "--iterations=1,0: expected positive whole numbers",
  "--workdir=FOLDER/run --iterations=": "--iterations=: expected positive whole numbers",
}


def formula(previous, x, label):
  return -0.7 * previous + 0.4 * x + 0.05 * label


def from_config(config, axis_name=None):
  """A method whose network is the formula."""

  def denoise(variables, x, t, cond):
    label = jnp.reshape(cond["label"], (-1, 1, 1, 1))
    return Prediction(formula(cond["previous"], x, label) + variables["params"]["zero"], x)

  init = lambda key, batch: state_lib.create({"net": {"zero": jnp.zeros(())}}, {"net": ()})
  return base.Method(init, lambda state, batch, key: (state, {}), denoise, CHAIN, ("dddm",))


def patch():
  methods.BY_NAME["dddm"] = from_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(folder, {name or wrong flags: (exit code, what the program said)})."""
  folder = tmp_path_factory.mktemp("dddm")
  with pytest.MonkeyPatch.context() as context:
    context.setitem(methods.BY_NAME, "dddm", from_config)
    edm, config = tiny.get_config(), tiny.get_config()
    config.method = "dddm"
    config.sampling.update(sampler="dddm", grid="dddm", clip=0.6)
    state = start.create_state(methods.from_config(config), config)
    for name, written in (("edm", edm), ("run", config)):
      checkpoint.write_config(folder / name, written)
      checkpoints = checkpoint.Checkpoints(folder / name, written)
      checkpoints.save(state.replace(step=np.int32(24)), 24)
      checkpoints.close()
  argvs = {"own": [PROGRAM, f"--out={folder}/own", f"--workdir={folder}/run", "--iterations=1,3,9", "--trace=4"]}
  lines = [{"step": step, "previous_error": 1 / step, "estimate_error": 0.5 / step} for step in (15, 150)]
  (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  argvs["estimates"] = [ESTIMATES, f"--out={folder}/estimates", f"--workdirs={folder}/run"]
  argvs["of edm"] = [ESTIMATES, f"--out={folder}/wrong", f"--workdirs={folder}/edm"]
  for flags in WRONG:
    argvs[flags] = [PROGRAM, f"--out={folder}/wrong", *flags.replace("FOLDER", str(folder)).split()]
  said = outcomes(list(argvs.values()), "import test_dddm_figures; test_dddm_figures.patch()")
  return folder, dict(zip(argvs, said))


def table(made, name):
  folder, programs = made
  assert programs["own"][0] == 0, programs["own"][1]
  assert (folder / "own" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
  return list(csv.DictReader((folder / "own" / f"{name}.csv").open()))


def iterated(count, n):
  """[n+1, count, 8, 8, 1]: the estimates of seeds 0, 1, … in float64."""
  keys = sampling.keys_of(np.arange(count))
  x, image = (np.asarray(a, float) for a in (CHAIN.prior(keys, (8, 8, 1), 1000), normal(keys, 0, (8, 8, 1))))
  out, label = [image], np.reshape(np.arange(count) % 10, (-1, 1, 1, 1))
  for _ in range(n):
    out.append(np.clip(formula(out[-1], x, label), -0.6, 0.6))
  return np.stack(out)


def rms(x):
  return np.sqrt(np.mean(x**2))


def test_samples_are_compared_with_the_last(made):
  rows, found = table(made, "samples"), iterated(50, 9)
  assert [(row["iterations"], row["images"]) for row in rows] == [("1", "50"), ("3", "50"), ("9", "50")]
  known = [rms(found[n] - found[9]) for n in (1, 3, 9)]
  np.testing.assert_allclose([float(row["rms_to_last"]) for row in rows], known, rtol=1e-4)
  assert known[0] > known[1] > 0.01


def test_the_trace_begins_with_noise_and_has_every_change(made):
  rows, found = table(made, "trace"), iterated(100, 4)
  assert [row["iteration"] for row in rows] == ["0", "1", "2", "3", "4"] and rows[0]["images"] == "100"
  np.testing.assert_allclose([float(row["rms"]) for row in rows], [rms(image) for image in found], rtol=1e-4)
  assert rows[0]["rms_change"] == ""
  changes = [rms(after - before) for before, after in zip(found, found[1:])]
  np.testing.assert_allclose([float(row["rms_change"]) for row in rows[1:]], changes, rtol=1e-4)


def test_estimates_by_epoch_and_what_becomes_of_a_noisy_one(made):
  folder, programs = made
  assert programs["estimates"][0] == 0, programs["estimates"][1]
  rows = list(csv.reader((folder / "estimates" / "epochs.csv").open()))[1:]
  assert rows == [["run", "0.08", "0.0666667", "0.0333333"], ["run", "0.8", "0.00666667", "0.00333333"]]
  found = sources.load("digits", "train").gather(np.arange(256) * 1500 // 256)
  x0, label = found["image"].astype(float), found["label"].reshape(-1, 1, 1, 1)
  keys = sampling.keys_of(np.arange(256))
  x = np.asarray(CHAIN.perturb(x0, normal(keys, 0, (8, 8, 1)), 1000.0))
  noise, rows = np.asarray(normal(keys, 1, (8, 8, 1))), list(csv.reader((folder / "estimates" / "last.csv").open()))[1:]
  assert [row[1] for row in rows] == ["0", "0.05", "0.1", "0.2", "0.4", "0.8", "1.6", "noise"]
  for _, level, before, after in rows:
    previous = noise if level == "noise" else x0 + float(level) * noise
    known = rms(previous - x0), rms(formula(previous, x, label) - x0)
    np.testing.assert_allclose((float(before), float(after)), known, rtol=1e-4, atol=1e-6)
  check_mistake(programs["of edm"], "a run of method edm, not of dddm", folder / "wrong")


@pytest.mark.parametrize("flags", WRONG)
def test_a_wrong_flag_is_said_in_a_line(made, flags):
  folder, programs = made
  check_mistake(programs[flags], WRONG[flags], folder / "wrong")
