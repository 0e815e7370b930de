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
from diffusion_jax.evaluation import digits, sigma_min
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, start

ROOT = Path(__file__).parents[1]
PUPIL = 0.5  # what the network of one of the runs says; the others' say 0
SEARCHED = {7: 0.05, 6: 0.07, 5: 0.11, 4: 0.13}  # σ_min by steps, in one run's file
# Runs each argv in a fork of one process, after the code that sys.argv has; prints [exit code, what it said] of each.
FORKS = """
import json, os, runpy, sys, tempfile
sys.path.insert(0, "tests")
import diffusion_jax.cli, matplotlib.pyplot, scipy.optimize, sklearn.datasets
exec(sys.argv[1])
done = []
for argv in json.load(sys.stdin):
  said = tempfile.TemporaryFile()
  child = os.fork()
  if not child:
    os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(argv[0]))
    runpy.run_path(argv[0], run_name="__main__")
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  said.seek(0)
  done.append([code, said.read().decode()])
print(json.dumps(done))
"""


def outcomes(argvs, setup="from training import toy; toy.get_config()") -> list[tuple[int, str]]:
  """Exit code and output of each figure's program, in a process whose network is put in place by `setup`."""
  done = subprocess.run(
    [sys.executable, "-c", FORKS, setup],
    input=json.dumps(argvs),
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def check_mistake(outcome: tuple[int, str], message: str, out: Path):
  """One of `outcomes` is exit code 2 and one line with the message; nothing is written into `out`."""
  code, said = outcome
  (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
  assert code == 2 and message in error and "Traceback" not in said, said
  assert not list(out.glob("*"))


def save_run(workdir, config, says=0.0):
  """A run whose network says one number."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
    state = start.create_state(methods.from_config(config), config)
  checkpoint.write_config(workdir, config)
  checkpoints = checkpoint.Checkpoints(workdir, config)
  ema = jax.tree.map(np.zeros_like, state.ema)
  ema["net"]["conv1"]["bias"] += says
  checkpoints.save(state.replace(ema=ema, step=np.int32(24)), 24)
  checkpoints.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Holds three runs of digits, one that ignores their classes, and one without checkpoints."""
  folder, classless = tmp_path_factory.mktemp("figures"), tiny.get_config()
  classless.data.num_classes = 0
  save_run(folder / "run", tiny.get_config())
  save_run(folder / "pupil", tiny.get_config(), says=PUPIL)
  searched = tiny.get_config()
  searched.sampling.update(sampler="dpdm", grid="dpdm", sigma_min_search=True)
  save_run(folder / "searched", searched)
  by = sigma_min.told_by(sigma_min.scorer_of(searched), sigma_min.NUM_IMAGES)
  for searched.sampling.num_steps, level in SEARCHED.items():
    sigma_min.save(folder / "searched", searched, 24, sigma_min.Found(level, {}, by))
  save_run(folder / "classless", classless)
  checkpoint.write_config(folder / "empty", classless)
  return folder


@pytest.fixture(scope="module")
def programs(folder):
  """{name or wrong flags: (exit code, what it said)} of every program that is run here."""
  run, pair = f"--workdir={folder}/run", f"--teacher={folder}/run --pupil={folder}/pupil"
  calls = {
    "figure1": [],
    "figure3": [],
    "churn_ideal": ["--num_images=200"],
    "figure5": [run, "--num_images=200"],
    "truncation": [run, "--num_images=4", "--steps=6"],
    "dpdm": [*pair.split(), "--num_images=100"],
    "again": ["--num_images=100", f"--teacher={folder}/pupil", f"--pupil={folder}/searched", "--figures=5,6,5"],
    "divergences": [],
  }
  program = lambda name: f"experiments/figures/{'dpdm' if name == 'again' else name}.py"
  argvs = {name: [program(name), f"--out={folder}/{name}", *flags] for name, flags in calls.items()}
  for flags in WRONG:
    words = flags.replace("FOLDER", str(folder)).split()
    argvs[flags] = ["experiments/figures/dpdm.py", f"--out={folder}/wrong", *words]
  return dict(zip(argvs, outcomes(list(argvs.values()))))


# Flags of figures/dpdm.py, and what it says of them.
WRONG = {
  "--teacher=FOLDER/run": "--pupil is missing: the folder of a run",
  "--teacher=FOLDER/nowhere --pupil=FOLDER/run": "nowhere: no run here, config.json is missing",
  "--teacher=FOLDER/nothing.pkl --pupil=FOLDER/run": "nothing.pkl",
  "--teacher=FOLDER/run --pupil=FOLDER/empty": "empty: no checkpoint here yet",
  "--teacher=FOLDER/run --pupil=FOLDER/classless": "0 classes; the teacher of digits, 8×8×1 images, 10 classes",
  "--teacher=FOLDER/run --pupil=FOLDER/run --figures=7": "--figures=7: expected some of 1, 2",
  "--teacher=FOLDER/run --pupil=FOLDER/run --figures=": "--figures=: expected some of 1, 2",
}


@pytest.fixture(scope="module")
def tables(folder, programs):
  """{figure: rows of its CSV}; each has a picture."""
  for name, (code, said) in programs.items():
    assert code == 0 or name in WRONG, (name, said)
    assert (name == "again") == ("σ_min for" in said), said
  paths = {str(path.relative_to(folder).with_suffix("")): path for path in folder.rglob("*.csv")}
  assert all(path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG" for path in paths.values())
  return {name: list(csv.DictReader(path.open())) for name, path in paths.items()}


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


def c_skip(sigma):
  return 0.25 / (sigma**2 + 0.25)


def test_dpdm_has_its_six_figures(tables, folder):
  assert {name for name in tables if name.startswith("dpdm/")} == {f"dpdm/figure{n}" for n in range(1, 7)}
  settings = lambda n: [(r["model"], r["sampler"], int(r["nfe"])) for r in tables[f"dpdm/figure{n}"]]
  assert settings(1) == [("teacher", "heun", 5), ("teacher", "heun", 15), ("pupil", "dpdm", 5)]
  assert settings(5) == [("pupil", "dpdm", nfe) for nfe in (7, 6, 5, 4)]
  samplers = [("heun", 7), ("dpdm", 7)]
  assert settings(6) == [(who, *by) for who in ("teacher", "pupil") for by in samplers]
  table7 = {7: 0.015, 6: 0.1, 5: 0.2, 4: 0.3}
  assert {int(r["nfe"]): float(r["sigma_min"]) for r in tables["dpdm/figure5"]} == table7


def test_images_of_figures_5_and_6_depend_on_sampler_and_model_alone(tables):
  """The other way round, with the pupil as the teacher, each panel has the score of its model and sampler."""

  def scores(name):
    return {(r["model"], r["sampler"], r["nfe"], r["sigma_min"]): float(r["frechet"]) for r in tables[name]}

  six, again = scores("dpdm/figure6"), scores("again/figure6")
  assert len({*six.values(), *again.values()}) == 5  # all differ, but the three of one model and sampler in both
  for mine, other in (("teacher", "pupil"), ("pupil", "teacher")):
    assert six[mine, "heun", "7", "0.002"] == again[other, "heun", "7", "0.002"]
  assert six["pupil", "dpdm", "7", "0.015"] == again["teacher", "dpdm", "7", "0.015"]
  assert scores("dpdm/figure5")["pupil", "dpdm", "7", "0.015"] == six["pupil", "dpdm", "7", "0.015"] > 1
  assert ("pupil", "dpdm", "7", "0.05") in again


def test_a_pupil_has_the_sigma_min_that_was_searched_for_it(tables, programs):
  assert {int(r["nfe"]): float(r["sigma_min"]) for r in tables["again/figure5"]} == SEARCHED
  assert "σ_min for 4 steps: 0.13 (found before, 500 images by digits against digits/all; " in programs["again"][1]


def test_dpdm_recovery_by_a_network_that_says_one_number_has_its_known_error(tables):
  """D − y = c_skip·(y + σε) − y + c_out·F errs by √(E((1 − c_skip)·y − c_out·F)² + c_skip²σ²)."""
  images = sklearn.datasets.load_digits().images / 8 - 1

  def known(sigma, says):
    out, rest = says * 0.5 * sigma / np.hypot(sigma, 0.5), 1 - c_skip(sigma)
    return np.sqrt(np.mean((rest * images - out) ** 2) + (1 - rest) ** 2 * sigma**2)

  for row in tables["dpdm/figure2"]:
    assert abs(float(row["rms_error"]) / known(float(row["sigma"]), 0) - 1) < 0.03, row
  for row in tables["dpdm/figure4"]:
    for who, says in (("teacher", 0), ("pupil", PUPIL)):
      assert abs(float(row[f"rms_error_{who}"]) / known(float(row["sigma"]), says) - 1) < 0.03, row


def test_states_of_figure_3_are_those_of_the_sampler(tables):
  """D = c_skip·x + c_out·F: a noisy state is the one before in it, plus σ·noise; mean and mean square follow."""
  before = mean = 0.0
  assert len(tables["dpdm/figure3"]) == 5
  for row in tables["dpdm/figure3"]:
    sigma, noisy = float(row["sigma"]), float(row["rms_noisy"])
    square = before + sigma**2
    assert abs(noisy / np.sqrt(square) - 1) < 0.15, row  # 256 draws, each 1 ± √2
    out = PUPIL * 0.5 * sigma / np.hypot(sigma, 0.5)
    before = c_skip(sigma) ** 2 * square + 2 * c_skip(sigma) * mean * out + out**2
    mean = c_skip(sigma) * mean + out


def test_the_smooth_divergence_is_the_papers_and_its_scores_give_its_slope(tables):
  """Appendix A.1: smooth KL θ²/(2t), whose gradient by Theorem 3.2 is θ/t."""
  rows = [row for row in tables["divergences/table5"] if row["t"]]
  assert {float(row["t"]) for row in rows} == {0.1, 0.25, 1.0}
  for row in rows:
    theta, t = float(row["theta"]), float(row["t"])
    np.testing.assert_allclose(float(row["value"]), theta**2 / (2 * t), rtol=1e-5, atol=1e-9)  # six digits in the CSV
    np.testing.assert_allclose(float(row["closed_form"]), theta**2 / (2 * t), rtol=1e-5)
    assert abs(float(row["difference"])) < 1e-9, row
    np.testing.assert_allclose(float(row["gradient_by_scores"]), theta / t, rtol=1e-5, atol=1e-9)


def test_the_other_divergences_are_those_of_disjoint_segments(tables, folder):
  known = {"KL": lambda d: np.inf if d else 0, "Wasserstein": abs, "Jensen-Shannon": lambda d: np.log(2) * (d != 0)}
  for name, divergence in known.items():
    rows = [row for row in tables["divergences/table5"] if row["divergence"] == name]
    assert len(rows) == 41
    for row in rows:
      np.testing.assert_allclose(float(row["value"]), divergence(float(row["theta"])), rtol=1e-5, atol=1e-12)
  lines = (folder / "divergences" / "table5.md").read_text().splitlines()[2:]
  smooth = {line.split("|")[1].strip().split(",")[0]: line.split("|")[-2].strip() for line in lines}
  assert smooth == {"smooth KL (ours)": "yes", "KL": "no", "Wasserstein": "no", "Jensen-Shannon": "no"}


@pytest.mark.parametrize("flags", WRONG)
def test_dpdm_says_in_a_line_what_is_wrong(programs, folder, flags):
  check_mistake(programs[flags], WRONG[flags], folder / "wrong")
  assert "--workdir" not in programs[flags][1]
