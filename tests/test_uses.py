"""The programs of experiments/uses by a network that says 0, whose flow is that of N(0, σ_data²): exact tables."""

import csv

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from test_figures import check_mistake, outcomes, save_run
from training import tiny, toy

from diffusion_jax import likelihood, methods, process, samplers, sampling
from diffusion_jax.data import sources
from diffusion_jax.methods import base
from diffusion_jax.training import start

STD = 0.5  # edm.sigma_data
CALLS = {
  "invert": "invert.py --steps=10,30 --num_images=20",
  "likelihood": "likelihood.py --num_steps=30 --num_images=30 --batch_size=20 --levels=17",
  "interpolate": "interpolate.py --num_steps=9 --pairs=3 --columns=5",
  "seeds": "interpolate.py --num_steps=9 --seeds=0-3 --columns=3 --weight=linear",
  "edit": "edit.py --num_steps=30 --noise_levels=0.1,80 --num_images=10 --label=8",
  "strengths": "edit.py --num_steps=10 --strengths=0,0.5 --num_images=10",
  "inpaint": "inpaint.py --num_steps=8 --resample=1,3 --jump=2 --num_images=50 --hole=half --unlabelled",
  "animate": "animate.py --num_steps=6 --seeds=0-9",
}
# Flags, and what the programs say of them.
WRONG = {
  "invert.py": "--workdir is missing: the folder of a trained run",
  "invert.py --workdir=FOLDER/run --steps=5,0": "--steps=5,0: expected numbers in [1, 10000]",
  "edit.py --workdir=FOLDER/run --strengths=0.5,2": "--strengths=0.5,2: expected numbers in [0, 1]",
  "edit.py --workdir=FOLDER/run --noise_levels=200": "noise_level must be in (0, 80], the grid's range, got 200.0",
  "edit.py --workdir=FOLDER/run --label=10": "--label=10: this model has 10 classes",
  "interpolate.py --workdir=FOLDER/run --seeds=0-2": "--seeds=0-2: expected pairs, got 3 seeds",
  "inpaint.py --workdir=FOLDER/run --resample=x": "--resample=x: expected numbers in [1, 1000]",
  "likelihood.py --workdir=FOLDER/run --trace=full": "flag --trace=full",
  "animate.py --workdir=FOLDER/run --seeds=x": "--seeds=x: expected numbers and ranges",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(folder, {name or wrong flags: (exit code, what the program said)})."""
  folder = tmp_path_factory.mktemp("uses")
  save_run(folder / "run", tiny.get_config())
  program = lambda words: [f"experiments/uses/{words[0]}", *words[1:]]
  argvs = {
    name: [*program(words.split()), f"--workdir={folder}/run", f"--out={folder}/{name}"]
    for name, words in CALLS.items()
  }
  for flags in WRONG:
    argvs[flags] = [*program(flags.replace("FOLDER", str(folder)).split()), f"--out={folder}/wrong/out"]
  argvs["again"] = argvs["edit"]
  return folder, dict(zip(argvs, outcomes(list(argvs.values()))))


def table(made, name):
  folder, programs = made
  assert programs[name][0] == 0, programs[name][1]
  return [{key: float(v) if v[-1:].isdigit() else v for key, v in row.items()} for row in
          csv.DictReader((folder / f"{name}.csv").open())]  # fmt: skip


def digits(split, count):
  return sources.load("digits", split).gather(np.arange(count))["image"]


def test_latents_are_the_flows_and_images_come_back(made):
  few, many = table(made, "invert")
  images = digits("test", 20)
  np.testing.assert_allclose(many["latent_std"], images.std() * np.hypot(STD, 80) / STD / 80, rtol=0.02)
  np.testing.assert_allclose(many["latent_mean"], images.mean() * np.hypot(STD, 80) / STD / 80, rtol=0.02)
  assert many["rms"] < few["rms"] / 10 and many["rms"] < 3e-3 and many["NFE_each_way"] == 59


@pytest.mark.parametrize("row, split", [(0, "train"), (1, "test")])
def test_bits_of_a_gaussian_model(made, row, split):
  found = table(made, "likelihood")[row]
  x = likelihood.dequantise(sampling.keys_of(np.arange(30)), digits(split, 30), 17)
  log_p = scipy.stats.norm.logpdf(np.asarray(x), 0, STD).sum(axis=(1, 2, 3))
  bits = -log_p / (64 * np.log(2)) - np.log2(2 / 16)
  np.testing.assert_allclose(found["bits_per_dimension"], bits.mean(), atol=1e-3)
  np.testing.assert_allclose(found["standard_error"], bits.std(ddof=1) / np.sqrt(30), rtol=1e-2)
  assert found["split"] == split and found["images"] == 30


def test_interpolation_joins_both_ends(made):
  rows = table(made, "interpolate")
  sizes = [row["latent_rms"] for row in rows]
  np.testing.assert_allclose(sizes, np.linspace(sizes[0], sizes[-1], 5), rtol=1e-2)  # norms go linearly, pair by pair
  noise = process.EDM().prior(sampling.keys_of(np.arange(4)), (8, 8, 1), 1.0)
  linear = [row["latent_rms"] for row in table(made, "seeds")]
  expected = [np.sqrt(np.mean(((1 - w) * noise[::2] + w * noise[1::2]) ** 2)) for w in (0, 0.5, 1)]
  np.testing.assert_allclose(linear, expected, rtol=1e-4)


def test_sdedit_from_little_noise_and_from_all(made):
  little, all_noise = table(made, "edit")
  images = digits("test", 10)
  assert little["starts_from"] == pytest.approx(0.1) and little["rms"] < 0.15
  expected = np.sqrt(STD**2 + np.mean(images**2))  # a sample is independent of the image
  assert all_noise["steps"] == 30 and all_noise["rms"] == pytest.approx(expected, rel=0.1)
  untouched, half = table(made, "strengths")
  assert untouched["rms"] == 0 and untouched["steps"] == 0 and half["steps"] == 5 and half["rms"] > 0


def test_holes_are_filled_by_the_models_own_law(made):
  """This model's pixels are independent, so that neither known part nor passes change N(0, σ_data²)."""
  truth, once, thrice = table(made, "inpaint")
  assert truth["resample"] == "truth" and once["NFE"] == 8 and thrice["NFE"] > 8
  for row in (once, thrice):
    assert abs(row["mean_in_hole"]) < 0.05 and row["std_in_hole"] < STD * 1.05


def test_the_animation_has_a_frame_a_time(made):
  folder, _ = made
  rows = table(made, "animate")
  levels = [row["noise_level"] for row in rows]
  assert levels[0] == pytest.approx(80, rel=1e-4) and levels[-1] == 0 and rows[-1]["estimate_changes_by"] == 0
  with Image.open(folder / "animate.gif") as gif:
    assert len(rows) == 7 and 5 <= gif.n_frames <= 7  # those that look alike are one


def test_pictures_are_there(made):
  folder, _ = made
  for name in set(CALLS) - {"likelihood", "animate"}:
    assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("flags", WRONG)
def test_mistakes_are_one_line(made, flags):
  folder, programs = made
  code, said = programs[flags]
  if "trace" in flags:
    assert code == 2 and WRONG[flags] in said and "Traceback" not in said
  else:
    check_mistake((code, said), WRONG[flags], folder / "wrong")


def test_nothing_is_overwritten(made):
  code, said = made[1]["again"]
  assert code == 2 and "already there; pass --overwrite or another --out" in said


def test_the_bound_denoiser_is_that_of_sample(monkeypatch):
  """With guidance, another process and clipping, by the same solver: the images of `sampling.sample`."""
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
  config = tiny.get_config()
  config.sampling.update(guidance=2.0, process="vp", grid="vp", clip=0.5, num_steps=4)
  method = methods.from_config(config)
  variables = {"params": start.create_state(method, config).params["net"]}
  (p, grid), keys, labels = sampling.schedule_of(config.sampling, method), sampling.keys_of([3, 4]), np.array([1, -1])
  drawn = sampling.sample(
    method, variables, keys, (8, 8, 1), grid, "heun", labels, config.sampling.guidance, process=p, clip=0.5
  )
  denoise = sampling.denoiser_of(config.sampling, method)(variables, labels)
  found = samplers.heun(denoise, p, p.prior(keys, (8, 8, 1), grid[0]), grid)
  np.testing.assert_allclose(found, drawn, atol=1e-5)
  assert np.abs(drawn).max() > 0.05
