"""Figure 3 of Decoupled Diffusion Models by networks that are formulas: its CSVs against the paper's equations."""

import csv

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_dual_figures import ALPHA_BARS
from test_dual_figures import drawn as data_of
from test_figures import check_mistake, outcomes
from training import tiny

from diffusion_jax import methods, process, sampling
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, start
from diffusion_jax.types import normal

PROGRAM = "experiments/figures/ddm_error.py"
NUM_IMAGES, STEPS, POINTS, SEEDS = 40, 5, 4, (3, 50)  # more images than a batch
RUNS = ("DDPM=FOLDER/eps", "DDPM + x_0=FOLDER/dual", "DDM=FOLDER/ddm", "linear=FOLDER/linear")
RATIOS = {"DDPM": 0.0, "DDPM + x_0, by x_θ": 1.0, "DDPM + x_0, mixed": None, "DDM": 0.0, "linear": 0.0}
# Flags after --out, and what the program says of them.
WRONG = {
  "": "--run is missing: NAME=WORKDIR of a run",
  "--run=FOLDER/ddm": "expected NAME=WORKDIR",
  "--run=a=FOLDER/nowhere": "nowhere: no run here",
  "--run=EDM=FOLDER/edm": "a run of method edm; expected one of dual_output, decoupled",
  "--run=task=FOLDER/task": "task: a run that makes images from others (superres)",
  "--run=a=FOLDER/ddm --run=a=FOLDER/eps": "two curves have one name: a, a",
  "--run=a=FOLDER/ddm --run=b=FOLDER/photos": "--run=b: of ('photos', '', 8); a is of ('digits', '', 8)",
  "--run=a=FOLDER/eps --steps=1001": "config.sampling.num_steps",
}


def formulas(xp, x, now, label):
  """ε_θ, x_θ, r_θ's logit and φ's free parameter at x [B, H, W, C]; what the network hears of t, and labels."""
  eps = xp.tanh(x) + 0.02 * label + 0.1 * xp.sin(now)
  return eps, 0.6 * xp.cos(x) - 0.03 * label, xp.sin(2 * x) + xp.cos(now), 0.3 * x - 0.2


class Formulas(nn.Module):
  """A network with the heads that a method asks for, by `formulas`."""

  heads: tuple = ()

  @nn.compact
  def __call__(self, x, now, labels=None, augment=None, dropout_keys=None):
    zero = self.param("zero", nn.initializers.zeros, ())
    label = jnp.zeros(len(x)) if labels is None else jnp.argmax(labels, axis=-1)
    eps, clean, logit, free = formulas(jnp, x + zero, now[:, None, None, None], label[:, None, None, None])
    said = {"eps": eps, "x": clean, "r": logit, "phi": jnp.concatenate([free, clean], -1), "out": eps}
    sizes = dict(self.heads)
    return {name: head[..., -sizes[name] :] for name, head in said.items() if name in sizes}


def patch():
  base.network_from_config = lambda config, heads, **options: Formulas(heads)


def config_of(name):
  config = tiny.get_config()
  config.method = {"edm": "edm", "eps": "dual_output", "dual": "dual_output"}.get(name, "decoupled")
  config.dual.heads = "eps" if name == "eps" else "dual"
  config.decoupled.attenuation = "linear" if name == "linear" else "constant"
  config.decoupled.preconditioned = False
  if name == "photos":
    config.data.update(name="photos", num_classes=0)
  if name == "task":
    config.task.name = "superres"
  if config.method == "decoupled":
    config.sampling.update(sampler="decoupled", grid="decoupled", refit=0.1)  # which the figure does not take
  elif name != "edm":
    config.sampling.update(sampler="ddim", grid="respaced")
  return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(folder, {name or wrong flags: (exit code, what the program said)})."""
  folder = tmp_path_factory.mktemp("ddm")
  with pytest.MonkeyPatch.context() as context:
    context.setattr(base, "network_from_config", lambda config, heads, **options: Formulas(heads))
    for name in ("eps", "dual", "ddm", "linear", "edm", "task", "photos"):
      config = config_of(name)
      checkpoint.write_config(folder / name, config)
      config.task.name = ""
      state = start.create_state(methods.from_config(config), config)
      checkpoints = checkpoint.Checkpoints(folder / name, config)
      checkpoints.save(state.replace(step=np.int32(24)), 24)
      checkpoints.close()
  flags = [f"--num_images={NUM_IMAGES}", f"--steps={STEPS}", f"--points={POINTS}", "--seeds=3,50"]
  argvs = {"all": [PROGRAM, f"--out={folder}/made", *flags, *(f"--run={run}" for run in RUNS)]}
  for words in WRONG:
    argvs[words] = [PROGRAM, f"--out={folder}/wrong", *words.split()]
  argvs = {name: [word.replace("FOLDER", str(folder)) for word in argv] for name, argv in argvs.items()}
  said = outcomes(list(argvs.values()), "import test_ddm_figures; test_ddm_figures.patch()")
  return folder, dict(zip(argvs, said))


@pytest.fixture(scope="module")
def tables(made):
  """Rows of both CSVs, each beside a picture."""
  folder, programs = made
  code, said = programs["all"]
  assert code == 0, said
  paths = [folder / "made" / f"{name}.csv" for name in ("figure3", "figure3_images")]
  assert all(path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG" for path in paths)
  return [list(csv.DictReader(path.open())) for path in paths]


def estimates(curve, x, t, label):
  """(what the sampler takes for the image's part, x̂_0, ε̂) at t, of T or in [0, 1]."""
  now = t - 1 if curve.startswith("DDPM") else np.log(np.maximum(t, 1e-4))
  eps, clean, logit, free = formulas(np, x, now, np.reshape(label, (-1, 1, 1, 1)))
  if curve == "DDM":
    return (clean,), -clean, eps
  if curve == "linear":
    return (free, clean), -clean - free / 2, eps
  r = 1 / (1 + np.exp(-logit)) if RATIOS[curve] is None else RATIOS[curve]
  alpha, sigma = np.sqrt(ALPHA_BARS[t]), np.sqrt(1 - ALPHA_BARS[t])
  x0 = r * clean + (1 - r) * (x - sigma * eps) / alpha
  return None, x0, (x - alpha * x0) / sigma


def walk(curve, seeds):
  """([t], [x̂_0 at each step and the image]): ancestral sampling by its posterior, or Algorithm 2."""
  seeds, chain = np.array(seeds), curve.startswith("DDPM")
  keys, top = sampling.keys_of(seeds), 1000 if chain else 1
  p = process.DDPM() if chain else process.Decoupled()
  x = np.asarray(p.prior(keys, (8, 8, 1), jnp.float32(top)), np.float64)
  grid = [top * (STEPS - i) / STEPS for i in range(STEPS + 1)]
  grid, found = [int(t) for t in grid] if chain else grid, []
  for i, (t, s) in enumerate(zip(grid, grid[1:])):
    phi, x0, eps = estimates(curve, x, t, seeds % 10)
    z = np.asarray(normal(keys, i, (8, 8, 1), jnp.float32), np.float64)
    if chain:
      now, before = ALPHA_BARS[t], ALPHA_BARS[s]
      beta = 1 - now / before  # eq. 6 and 7 of Ho et al. for a step from t to s
      mean = np.sqrt(before) * beta / (1 - now) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - now) * x
      x = mean + np.sqrt(beta * (1 - before) / (1 - now)) * z
    else:
      rise = lambda t: phi[0] * t if len(phi) == 1 else phi[0] * t**2 / 2 + phi[1] * t
      x = x + rise(s) - rise(t) - (t - s) / np.sqrt(t) * eps + np.sqrt((t - s) * s / t) * z
    found.append(x0)
  return grid, [*found, x]


def test_errors_along_walks_are_to_the_image_that_each_ends_with(tables):
  for curve in RATIOS:
    rows = [row for row in tables[0] if row["curve"] == curve and row["against"] == "walk"]
    grid, found = walk(curve, range(NUM_IMAGES))
    np.testing.assert_allclose([float(row["t"]) for row in rows], np.array(grid) / grid[0], rtol=1e-5)
    known = [np.mean((image - found[-1]) ** 2) for image in found]
    np.testing.assert_allclose([float(row["mse"]) for row in rows], known, rtol=2e-3, atol=1e-9, err_msg=curve)
    assert known[-1] == 0 < min(known[:3]) and rows[0]["images"] == str(NUM_IMAGES)


def test_errors_on_data_are_of_one_estimate_at_t_of_each_process(tables):
  x0, label, eps = data_of(NUM_IMAGES)
  for curve in RATIOS:
    rows = [row for row in tables[0] if row["curve"] == curve and row["against"] == "data"]
    assert [float(row["t"]) for row in rows] == [0.25, 0.5, 0.75, 1.0]
    for row in rows:
      share = float(row["t"])
      if curve.startswith("DDPM"):
        t = round(1000 * share)
        x, level = np.sqrt(ALPHA_BARS[t]) * x0 + np.sqrt(1 - ALPHA_BARS[t]) * eps, np.sqrt(1 / ALPHA_BARS[t] - 1)
      else:
        t, level = share, min(np.sqrt(share) / max(1 - share, 1e-9), 1e6)
        free = np.zeros_like(x0)
        if curve == "linear":
          phi = process.Decoupled("linear").encode(sampling.keys_of(np.arange(NUM_IMAGES)), jnp.float32(x0))
          free = np.asarray(phi[..., :1], np.float64)
        x = (1 - t) * x0 + free * (t**2 - t) / 2 + np.sqrt(t) * eps
      _, found, _ = estimates(curve, x, t, label)
      np.testing.assert_allclose(float(row["mse"]), np.mean((found - x0) ** 2), rtol=1e-3, err_msg=f"{curve} {t}")
      np.testing.assert_allclose(float(row["noise_level"]), level, rtol=1e-4)


def test_the_images_shown_are_of_the_step_next_to_the_time(tables):
  rows = iter(tables[1])
  for curve in RATIOS:
    _, found = walk(curve, SEEDS)
    for seed, error in zip(SEEDS, np.mean((found[3] - found[-1]) ** 2, axis=(1, 2, 3))):  # t = 1, .8, .6, .4
      row = next(rows)
      assert (row["curve"], row["seed"], float(row["t"])) == (curve, str(seed), pytest.approx(0.4))
      np.testing.assert_allclose(float(row["mse"]), error, rtol=2e-3)
  assert not list(rows)


@pytest.mark.parametrize("flags", WRONG)
def test_a_wrong_flag_is_said_in_a_line(made, flags):
  folder, programs = made
  check_mistake(programs[flags], WRONG[flags], folder / "wrong")


def test_the_network_of_this_file_is_what_its_equations_say():
  x, now = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([0.0, 10.0, -2.0])
  network = Formulas((("phi", 2), ("eps", 1)))
  variables = network.init(jax.random.key(1), x, now)
  out = network.apply(variables, x, now, jax.nn.one_hot(jnp.array([0, 4, 9]), 10))
  column = lambda values: np.reshape(values, (-1, 1, 1, 1))
  eps, clean, _, free = formulas(np, np.asarray(x, np.float64), column(now), column([0.0, 4.0, 9.0]))
  np.testing.assert_allclose(out["eps"], eps, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(out["phi"], np.concatenate([free, clean], -1), rtol=1e-4, atol=1e-5)
