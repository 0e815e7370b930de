"""Dual-Output's figures by a network whose heads are formulas: their CSVs against the paper's equations in NumPy."""

import csv
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_figures import check_mistake, outcomes
from training import tiny

from diffusion_jax import methods, process, sampling
from diffusion_jax.data import sources
from diffusion_jax.methods import base, batches
from diffusion_jax.training import checkpoint, start
from diffusion_jax.types import normal

PROGRAM = "experiments/figures/dual_output.py"
NUM_IMAGES = 70  # more than a batch
ALPHA_BARS = np.append(1, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))  # of t = 0, 1, …, 1000
RATIOS = {"only ε": 0.0, "only x": 1.0, "dual": None}
# Flags after --out, and what the program says of them.
WRONG = {
  "": "--workdir is missing: the folder of a trained run",
  "--workdir=FOLDER/edm": "edm: a run of method edm; these are figures of dual_output",
  "--workdir=FOLDER/linear --figures=9": "--figures=9: expected some of 1, 2, 3",
  "--workdir=FOLDER/linear --figures=4 --steps=5,10": "--steps=5,10: expected one positive whole number for Figure 4",
  "--workdir=FOLDER/linear --figures=7 --steps=0": "--steps=0: expected positive whole numbers for Figure 7",
  "--workdir=FOLDER/linear --figures=4 --steps=1001": "config.sampling.num_steps",
  "--workdir=FOLDER/linear --figures=7 --ddim=FOLDER/cosine": "--ddim=",
}


def formulas(xp, x, index, label):
  """ε_θ, x_θ and r_θ's logit at x [B, H, W, C]; index t − 1 and label [B, 1, 1, 1]."""
  eps = xp.tanh(x) + 0.02 * label
  return eps, 0.6 * xp.cos(x) - 0.03 * label, xp.sin(2 * x[..., :1]) + index / 500 - 1


class Formulas(nn.Module):
  """A network that says `formulas`."""

  @nn.compact
  def __call__(self, x, index, labels=None, augment=None, dropout_keys=None):
    zero = self.param("zero", nn.initializers.zeros, ())
    label = jnp.zeros(len(x)) if labels is None else jnp.argmax(labels, axis=-1)
    heads = formulas(jnp, x + zero, index[:, None, None, None], label[:, None, None, None])
    return {"out": heads[0], **dict(zip(("eps", "x", "r"), heads))}  # "out" is for EDM


def patch():
  base.network_from_config = lambda config, heads: Formulas()


def config_of(name):
  config = tiny.get_config()
  config.method = "edm" if name == "edm" else "dual_output"
  config.dual.process = "cosine" if name == "cosine" else "linear"
  if name != "edm":
    config.sampling.update(sampler="ddim", grid="respaced", ratio="0.5")  # not what the figures take
  return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(folder, {name or wrong flags: (exit code, what the program said)})."""
  folder = tmp_path_factory.mktemp("dual")
  with pytest.MonkeyPatch.context() as context:
    context.setattr(base, "network_from_config", lambda config, heads: Formulas())
    for name in ("linear", "cosine", "edm"):
      config = config_of(name)
      state = start.create_state(methods.from_config(config), config)
      checkpoint.write_config(folder / name, config)
      checkpoints = checkpoint.Checkpoints(folder / name, config)
      checkpoints.save(state.replace(step=np.int32(24)), 24)
      checkpoints.close()
  calls = {
    "all": [f"--workdir={folder}/linear", f"--num_images={NUM_IMAGES}", "--points=4"],
    "cosine": [f"--workdir={folder}/cosine", "--figures=1,4", "--num_images=5", "--points=3"],
    "other": [f"--workdir={folder}/linear", "--figures=6,7", "--steps=5", "--seeds=80,3", "--num_images=5"],
  }
  calls["other"].append(f"--ddim={folder}/linear")
  argvs = {name: [PROGRAM, f"--out={folder}/{name}_figures", *flags] for name, flags in calls.items()}
  for flags in WRONG:
    argvs[flags] = [PROGRAM, f"--out={folder}/wrong", *flags.replace("FOLDER", str(folder)).split()]
  said = outcomes(list(argvs.values()), "import test_dual_figures; test_dual_figures.patch()")
  return folder, dict(zip(argvs, said))


@pytest.fixture(scope="module")
def tables(made):
  """{name/figure: rows of its CSV}; each has a picture."""
  folder, programs = made
  for name, (code, said) in programs.items():
    assert code == 0 or name in WRONG, (name, said)
  paths = {str(path.relative_to(folder).with_suffix("")): path for path in folder.glob("*_figures/*.csv")}
  assert all(path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG" for path in paths.values())
  return {name.replace("_figures/figure", "/"): list(csv.DictReader(path.open())) for name, path in paths.items()}


def heads(x, t, label):
  """ε_θ, x_θ, r_θ of the network at t."""
  eps, image, logit = formulas(np, x, np.reshape(t, (-1, 1, 1, 1)) - 1, np.reshape(label, (-1, 1, 1, 1)))
  return eps, image, 1 / (1 + np.exp(-logit))


def clean_of(x, t, label, ratio):
  """x̂_0 by eq. 4 and 16, and r_θ; ratio None is r_θ."""
  alpha_bar = ALPHA_BARS[t].reshape(-1, 1, 1, 1)
  eps, image, r = heads(x, t, label)
  mixed = r if ratio is None else ratio
  return mixed * image + (1 - mixed) * (x - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar), r


@functools.cache
def walk(steps, ratios, seeds):
  """[(t, x̂_0, r_θ)] of DDIM, eq. 22 at σ = 0; ratios: one number or None for all steps, or of each step."""
  seeds = np.array(seeds)
  x = np.asarray(process.DDPM().prior(sampling.keys_of(seeds), (8, 8, 1), jnp.float32(1000)), np.float64)
  grid, out = [1000 * (steps - i) // steps for i in range(steps + 1)], []
  for i, (t, s) in enumerate(zip(grid, grid[1:])):
    clean, r = clean_of(x, np.array(t), seeds % 10, ratios[i] if isinstance(ratios, tuple) else ratios)
    eps = (x - np.sqrt(ALPHA_BARS[t]) * clean) / np.sqrt(1 - ALPHA_BARS[t])
    x = np.sqrt(ALPHA_BARS[s]) * clean + np.sqrt(1 - ALPHA_BARS[s]) * eps
    out.append((t, clean, r))
  return out


def drawn(count):
  """Images, labels and noise that figures 1 and 3 take."""
  source = sources.from_config(config_of("linear"))
  batch = source.gather(np.random.default_rng(0).permutation(len(source))[:count])
  x0 = np.asarray(batches.images_of({"image": jnp.asarray(batch["image"])}, None, False), np.float64)
  return x0, batch["label"], np.asarray(normal(sampling.keys_of(np.arange(count)), 0, (8, 8, 1)), np.float64)


def test_losses_of_figure_1_are_the_errors_of_eq_12_and_13(tables):
  x0, label, eps = drawn(NUM_IMAGES)
  assert [int(row["t"]) for row in tables["all/1"]] == [1, 334, 667, 1000]
  for row in tables["all/1"]:
    t = int(row["t"])
    now, before = ALPHA_BARS[t], ALPHA_BARS[t - 1]
    alpha = now / before
    x = np.sqrt(now) * x0 + np.sqrt(1 - now) * eps
    eps_head, x_head, r = heads(x, np.full(len(x), t), label)
    along_x = np.sqrt(alpha) * (1 - before) / (1 - now) * x
    mean, by_x = (np.sqrt(before) * (1 - alpha) / (1 - now) * clean + along_x for clean in (x0, x_head))  # eq. 8, 12
    by_eps = (x - (1 - alpha) / np.sqrt(1 - now) * eps_head) / np.sqrt(alpha)  # eq. 13
    by_both = r * by_x + (1 - r) * by_eps  # eq. 16
    known = {"mu_by_eps": by_eps - mean, "mu_by_x": by_x - mean, "mu_by_both": by_both - mean}
    for path, ratio in (("eps", 0.0), ("x", 1.0), ("both", None)):
      clean, _ = clean_of(x, np.full(len(x), t), label, ratio)
      known[f"x0_by_{path}"] = clean - x0
      known[f"eps_by_{path}"] = (x - np.sqrt(now) * clean) / np.sqrt(1 - now) - eps
    assert set(row) == {"t", "noise_level", "images", *known} and row["images"] == str(NUM_IMAGES)
    for name, error in known.items():
      np.testing.assert_allclose(float(row[name]), np.mean(error**2), rtol=1e-3, err_msg=f"{name} at {t}")


def test_figure_2_follows_each_path_by_ddim(tables):
  rows = tables["all/2"]
  for path, ratio in RATIOS.items():
    steps = walk(100, ratio, tuple(range(NUM_IMAGES)))
    own = [row for row in rows if row["path"] == path]
    assert [float(row["t"]) for row in own] == [t for t, _, _ in steps]
    found = np.array([[float(row["mean"]), float(row["variance"])] for row in own])
    known = np.array([[clean.mean(), clean.var()] for _, clean, _ in steps])
    np.testing.assert_allclose(found, known, rtol=2e-3, atol=1e-3)
  images = sources.from_config(config_of("linear")).gather(np.arange(1500))["image"]
  images = images / 127.5 - 1 if images.dtype == np.uint8 else images
  data = rows[-1]["path"], *(float(rows[-1][name]) for name in ("images", "mean", "variance"))
  assert data == ("data", 1500, pytest.approx(images.mean(), rel=1e-3), pytest.approx(images.var(), rel=1e-3))


def test_figure_3_has_the_errors_of_the_heads(tables):
  x0, label, eps = drawn(5)
  t = np.array([50, 250, 500, 750, 1000])
  now = ALPHA_BARS[t].reshape(-1, 1, 1, 1)
  x = np.sqrt(now) * x0 + np.sqrt(1 - now) * eps
  eps_head, x_head, r = heads(x, t, label)
  by_eps, by_both = (clean_of(x, t, label, ratio)[0] for ratio in (0.0, None))
  rms = lambda error: np.sqrt(np.mean(error**2, axis=(1, 2, 3)))
  known = {
    "t": t, "r": r.mean(axis=(1, 2, 3)), "rms_eps": rms(eps_head - eps), "rms_x0_by_eps": rms(by_eps - x0),
    "rms_x0_by_x": rms(x_head - x0), "rms_x0_by_both": rms(by_both - x0),
  }  # fmt: skip
  for name, values in known.items():
    np.testing.assert_allclose([float(row[name]) for row in tables["all/3"]], values, rtol=1e-3, err_msg=name)


def progress_is(rows, walks):
  """The CSV's rows are those of {path: steps of `walk`}, in this order."""
  known = [
    (path, i, t, clean.mean(), clean.var(), np.sqrt(np.mean((clean - steps[-1][1]) ** 2)))
    for path, steps in walks.items()
    for i, (t, clean, _) in enumerate(steps, 1)
  ]
  assert [row["path"] for row in rows] == [path for path, *_ in known]
  names = ("step", "t", "mean", "variance", "rms_to_last")
  found = [[float(row[name]) for name in names] for row in rows]
  np.testing.assert_allclose(found, [numbers for _, *numbers in known], rtol=2e-3, atol=1e-3)


def test_figure_4_is_the_three_paths_in_5_steps(tables):
  progress_is(tables["all/4"], {path: walk(5, ratio, (0, 1, 2, 3)) for path, ratio in RATIOS.items()})


def test_figure_5_takes_the_image_head_first_and_the_noise_head_from_a_step_on(tables):
  switched = {f"x, then ε from step {k + 1}": (1.0,) * k + (0.0,) * (10 - k) for k in (2, 4, 6, 8)}
  paths = {"only ε": 0.0, **switched, "only x": 1.0, "dual": None}
  progress_is(tables["all/5"], {name: walk(10, ratios, (0, 1)) for name, ratios in paths.items()})


@pytest.mark.parametrize("name, steps, others", [("all", 100, range(16)), ("other", 5, (80, 3))])
def test_figure_6_is_the_networks_r_along_dual_walks(tables, name, steps, others):
  seeds = tuple(range(NUM_IMAGES)) if name == "all" else (*range(5), 80)
  rows = tables[f"{name}/6"]
  known = walk(steps, None, seeds)
  assert len(rows) == len(known)
  for row, (t, _, r) in zip(rows, known):
    images = r.mean(axis=(1, 2, 3))
    expected = {"t": t, "images": len(seeds), "mean": images.mean(), "low": images.min(), "high": images.max()}
    expected |= {"low_of_pixels": r.min(), "high_of_pixels": r.max()}
    expected |= {f"seed{seed}": images[seeds.index(seed)] for seed in others}
    assert set(row) == {"step", *expected}
    for column, value in expected.items():
      np.testing.assert_allclose(float(row[column]), value, rtol=2e-3, err_msg=column)
    assert 0 <= float(row["low_of_pixels"]) <= float(row["low"]) <= float(row["mean"]) <= float(row["high"]) <= 1


@pytest.mark.parametrize("name, steps, seeds", [("all", (5, 10, 20), tuple(range(20))), ("other", (5,), (80, 3))])
def test_figure_7_compares_the_noise_head_with_both(tables, name, steps, seeds):
  known = []
  for n in steps:
    images = [walk(n, ratio, seeds)[-1][1] for ratio in (0.0, None)]
    known += [[n, seed, np.sqrt(np.mean((a - b) ** 2))] for seed, a, b in zip(seeds, *images)]
  found = [[float(row[column]) for column in ("steps", "seed", "rms_difference")] for row in tables[f"{name}/7"]]
  np.testing.assert_allclose(found, known, rtol=2e-3)


def test_figure_8_has_the_images_of_the_three_paths(tables):
  seeds = tuple(range(10))
  dual = walk(25, None, seeds)[-1][1]
  for path, ratio in RATIOS.items():
    rows = [row for row in tables["all/8"] if row["path"] == path]
    images = walk(25, ratio, seeds)[-1][1]
    rms = lambda error: np.sqrt(np.mean(error**2, axis=(1, 2, 3)))
    np.testing.assert_allclose([float(row["rms"]) for row in rows], rms(images), rtol=2e-3)
    np.testing.assert_allclose([float(row["rms_to_dual"]) for row in rows], rms(images - dual), rtol=2e-3, atol=1e-6)


def test_a_cosine_chains_enormous_estimates_are_in_the_csvs(tables):
  rows = [row for name in ("cosine/1", "cosine/4") for row in tables[name]]
  numbers = [float(value) for row in rows for key, value in row.items() if key != "path" and value]
  assert np.isfinite(numbers).all()
  variance = {row["path"]: float(row["variance"]) for row in tables["cosine/4"] if row["t"] == "4000"}
  assert variance["only ε"] > 1e4 and variance["only x"] < 1


@pytest.mark.parametrize("flags", WRONG)
def test_a_wrong_flag_is_said_in_a_line(made, flags):
  folder, programs = made
  check_mistake(programs[flags], WRONG[flags], folder / "wrong")


def test_the_network_of_this_file_is_what_its_equations_say():
  """`formulas` by JAX and by NumPy, with the labels as one-hot vectors."""
  x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
  network = Formulas()
  variables = network.init(jax.random.key(1), x, jnp.zeros(3))
  out = network.apply(variables, x, jnp.array([0.0, 10.0, 999.0]), jax.nn.one_hot(jnp.array([0, 4, 9]), 10))
  eps, image, r = heads(np.asarray(x, np.float64), np.array([1, 11, 1000]), np.array([0, 4, 9]))
  for found, known in ((out["eps"], eps), (out["x"], image), (jax.nn.sigmoid(out["r"]), r)):
    np.testing.assert_allclose(found, known, rtol=1e-4, atol=1e-5)
