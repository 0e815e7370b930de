"""The figures' programs on a network that compiles in a second: their CSVs against what is known exactly."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import sklearn.datasets
from training import tiny, toy

from diffusion_jax import methods
from diffusion_jax.data import sources
from diffusion_jax.evaluation import digits
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, start

ROOT = Path(__file__).parents[1]
# Runs each argv in a fork of one process whose network is the toy one.
FORKS = """
import json, os, runpy, sys
sys.path.insert(0, "tests")
import diffusion_jax.cli, matplotlib.pyplot
from training import toy
toy.get_config()
for argv in json.load(sys.stdin):
  child = os.fork()
  if not child:
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(argv[0]))
    runpy.run_path(argv[0], run_name="__main__")
  assert os.waitpid(child, 0)[1] == 0, argv
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
  """{figure: rows of its CSV}."""
  folder, config = tmp_path_factory.mktemp("figures"), tiny.get_config()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
    state = start.create_state(methods.from_config(config), config)
  checkpoint.write_config(folder / "run", config)
  checkpoints = checkpoint.Checkpoints(folder / "run", config)
  checkpoints.save(state.replace(ema=jax.tree.map(np.zeros_like, state.ema), step=np.int32(24)), 24)
  checkpoints.close()
  run = f"--workdir={folder}/run"
  calls = {
    "figure1": [],
    "figure3": [],
    "churn_ideal": ["--num_images=200"],
    "figure5": [run, "--num_images=200"],
    "truncation": [run, "--num_images=4", "--steps=6"],
  }
  argvs = [[f"experiments/figures/{name}.py", f"--out={folder}/{name}", *flags] for name, flags in calls.items()]
  done = subprocess.run(
    [sys.executable, "-c", FORKS],
    input=json.dumps(argvs),
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert all((folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in calls)
  return {name: list(csv.DictReader((folder / f"{name}.csv").open())) for name in calls}


def test_the_ideal_denoiser_knows_the_image_at_low_noise_and_the_mean_at_high(tables):
  rows = {float(row["sigma"]): (float(row["images_sharing"]), float(row["rms_error"])) for row in tables["figure1"]}
  np.testing.assert_allclose(rows[0.0], (1, 0), atol=1e-3)
  sharing = [rows[sigma][0] for sigma in sorted(rows)]
  assert all(np.diff(sharing) > -0.01) and 0.9 * 1500 < rows[50.0][0] <= 1500
  images = sklearn.datasets.load_digits().images / 8 - 1
  spread = np.sqrt(np.mean((images - images.mean(axis=0)) ** 2))
  assert abs(rows[50.0][1] / spread - 1) < 0.05


def test_images_of_the_ideal_denoiser_score_as_training_digits(tables):
  """Its deterministic samples are training digits, up to the spread of 200 of them; churn leaves them near."""
  rows = {float(row["s_churn"]): float(row["frechet_mean"]) for row in tables["churn_ideal"]}
  assert list(rows) == [0, 2, 5, 40]
  train = sources.load("digits", "train")
  draws = [np.random.default_rng(i).integers(len(train), size=200) for i in range(10)]
  known = [digits.score(train.gather(indices)["image"])["frechet"] for indices in draws]
  assert abs(rows[0] - np.mean(known)) < 4 * np.std(known) + 0.1
  assert all(value < 3 * rows[0] for value in rows.values())


def test_trajectories_end_at_the_two_peaks_and_are_straight_in_edm_alone(tables):
  by_process = {}
  for row in tables["figure3"]:
    by_process.setdefault(row["process"], {}).setdefault(int(row["trajectory"]), []).append(row)
  bent = {}
  for name, runs in by_process.items():
    assert len(runs) == 16
    for i, rows in runs.items():
      end = min(rows, key=lambda row: float(row["t"]))
      assert abs(float(end["x"]) - (1 if i >= 8 else -1)) < 0.02, (name, i)
    bent[name] = np.mean([float(rows[0]["length_over_straight"]) for rows in runs.values()]) - 1
  edm = next(name for name in bent if "EDM" in name)
  assert all(bent[edm] < 0.1 * bent[name] for name in bent if name != edm), bent


def test_a_network_that_says_zero_has_its_known_loss(tables):
  """F = 0: λ(σ)·(c_skip(y + σε) − y)² a pixel, whose mean is λ((1 − c_skip)²·E y² + c_skip²σ²)."""
  images = sklearn.datasets.load_digits().images / 8 - 1
  after = [row for row in tables["figure5"] if row["model"].startswith("after")]
  assert len(after) == 25 and len(tables["figure5"]) == 50
  for row in after:
    sigma, mean = float(row["sigma"]), float(row["loss_mean"])
    c_skip = 0.25 / (sigma**2 + 0.25)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    expected = weight * ((1 - c_skip) ** 2 * np.mean(images**2) + c_skip**2 * sigma**2)
    assert abs(mean / expected - 1) < 0.04, row


def test_heun_errs_less_than_euler_where_steps_are_small(tables):
  """F = 0 has the flow of N(0, σ_data²) in closed form: x·√((σ_s² + σ_d²)/(σ_t² + σ_d²))."""
  steps = {
    solver: [row for row in tables["truncation"] if (row["kind"], row["solver"], row["rho"]) == ("step", solver, "7")]
    for solver in ("euler", "heun")
  }
  assert len(steps["euler"]) == len(steps["heun"]) == 5
  t = [float(row["sigma"]) for row in steps["heun"]]
  for i, (now, s) in enumerate(zip(t, t[1:])):
    before, after = np.hypot(now, 0.5), np.hypot(s, 0.5)
    slope = lambda x, sigma: x * sigma / (sigma**2 + 0.25)
    euler = before + (s - now) * slope(before, now)
    heun = before + (s - now) / 2 * (slope(before, now) + slope(euler, s))
    for solver, got in (("euler", euler), ("heun", heun)):
      expected = abs(got - after)  # the state's root mean square over √(σ² + σ_d²) is 1 at first, and the flow keeps it
      assert abs(float(steps[solver][i]["rms_error"]) - expected) < 0.15 * expected + 2e-3, (solver, i, expected)
  image = {(r["solver"], int(r["nfe"])): float(r["rms_error"]) for r in tables["truncation"] if r["kind"] == "image"}
  assert image["heun", 69] < 0.4 * image["euler", 70]
  assert image["heun", 139] < 0.4 * image["heun", 69] and image["euler", 140] < 0.7 * image["euler", 70]
