"""DPDM's Figures 1 to 6: a teacher and the pupil that it trained, side by side.

  python experiments/figures/dpdm.py --teacher=runs/edm_digits --pupil=runs/dpdm_digits --out=results/dpdm
  python experiments/figures/dpdm.py --teacher=FILE.pkl --pupil=RUN --out=FOLDER --figures=1,5 --num_images=5000

The figures, each OUT/figureN.png with OUT/figureN.csv:

  1  samples in few steps: the teacher by Heun, the pupil by the DPDM sampler
  2  images at rising noise levels, and what the teacher's denoiser makes of them
  3  the states of the DPDM sampler: noisy, denoised, noisy, denoised, … (the paper has a diagram)
  4  clean and noisy images, and what the teacher and the pupil make of them
  5  the pupil's samples in 7, 6, 5 and 4 steps
  6  7 network evaluations of the teacher and the pupil, each with either one's sampler

All samples of a figure have the same seeds, 0, 1, …; with classes, column i shows class i. Errors in the CSVs are the
root mean square a pixel over 256 training images. The teacher is trained to make it least; the pupil is not. A pupil
whose config asks for it has the σ_min that evaluate.py searches for it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import outputs, write

from diffusion_jax import cli, sampling
from diffusion_jax import config as config_lib
from diffusion_jax.data import sources
from diffusion_jax.evaluation import bench, recovery, report, sigma_min
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.evaluation.scoring import Scorer

_TEACHER = flags.DEFINE_string("teacher", None, "Folder of the teacher's run, or a published EDM pickle (.pkl).")
_PUPIL = flags.DEFINE_string("pupil", None, "Folder of the pupil's run.")
_FIGURES = flags.DEFINE_list("figures", ["1", "2", "3", "4", "5", "6"], "Which of the figures.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 0, "Images of a Fréchet distance over samples; 0 for none.")
_INCEPTION = flags.DEFINE_string("inception", "", "Weights of Inception, for FID: weights-inception-2015-12-05-….pth.")

COLUMNS, ROWS = 10, 5  # of a panel of samples
NUM_ERRORS = 256  # images of an error
NOISE_LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)  # Figure 2
RECOVERED = (0.2, 0.5, 1.0, 2.0, 5.0)  # Figure 4, of the levels of Table 1
CHAIN = 5  # steps of Figure 3


class Setting(NamedTuple):
  """A model and its sampler: Heun on EDM's grid, or the DPDM sampler on DPDM's, each of its own range."""

  who: str
  sampler: str
  steps: int


class Models(NamedTuple):
  """What the figures compare."""

  teacher: cli.Model
  pupil: cli.Model


FLAGS = Models(_TEACHER, _PUPIL)


def open_models() -> Models:
  """The models of --teacher and --pupil; a UsageError if one is missing, or their data differ."""
  for flag, what in zip(FLAGS, ("the folder of a run, or a published pickle", "the folder of a run")):
    if not flag.value:
      raise cli.UsageError(f"--{flag.name} is missing: {what}")
  models = Models(*(cli.open_model(flag.value, f"--{flag.name}") for flag in FLAGS))
  teacher, pupil = (model.config.data for model in models)
  shape = lambda data: f"{data.resolution}×{data.resolution}×{data.channels} images, {data.num_classes} classes"
  named = lambda data: f"{data.name}, {shape(data)}"
  if shape(teacher) != shape(pupil) or len({teacher.name, pupil.name} - {"none"}) > 1:
    raise cli.UsageError(f"--pupil={_PUPIL.value} is of {named(pupil)}; the teacher of {named(teacher)}")
  return models


def of_setting(setting: Setting, model: cli.Model, scorer: Scorer | None = None):
  """The config that samples so; the σ_min of the model's own sampler is that of evaluate.py, searched if need be."""
  config_lib.choose("sampling.sampler", setting.sampler, model.method.samplers)
  config = model.config.copy_and_resolve_references()
  own = config.sampling.copy_and_resolve_references()
  config.sampling.update(config_lib.default().sampling)
  config.sampling.update(sampler=setting.sampler, num_steps=setting.steps)
  config.sampling.grid = "dpdm" if setting.sampler == "dpdm" else "edm"
  if own.sampler == setting.sampler:
    config.sampling.update(sigma_min=own.sigma_min, sigma_min_search=own.sigma_min_search)
  folder = None if model.step is None else getattr(FLAGS, setting.who).value
  take = lambda: (model.method, model.variables)
  return cli.checked(sigma_min.resolve, config, folder, model.step, take, scorer and [scorer])


def training_images(models: Models) -> sources.Source:
  """The training images of one of the runs."""
  config = next((model.config for model in models[::-1] if model.config.data.name != "none"), None)
  if config is None:
    raise cli.UsageError("--teacher and --pupil are published pickles: figures 2 and 4 need the data of a run")
  return sources.from_config(config)


def drawn(source: sources.Source) -> np.ndarray:
  """NUM_ERRORS images of a source at random: their numbers, which are the seeds of their noise too."""
  return np.random.default_rng(0).permutation(len(source))[:NUM_ERRORS]


def recovered(model: cli.Model, source: sources.Source, seeds, sigma: float) -> np.ndarray:
  """What the model makes of the noisy images of `recovery.noisy`."""
  return recovery.generate(model.config, model.method, model.variables, source, seeds, sigma)


def rms(x) -> float:
  return float(jnp.sqrt(jnp.mean(x**2)))


def one_contrast(x, sigma):
  """Noisy images, scaled so that images of unit variance keep it."""
  return x / np.sqrt(1 + sigma**2)


def samples(models: Models, settings: list[Setting], columns: int):
  """A panel of samples for each setting, with its Fréchet distance where --num_images asks for it."""
  scorer = None
  if _NUM_IMAGES.value:
    config = next((model.config for model in models if model.config.data.name != "none"), models.teacher.config)
    (scorer,) = cli.checked(bench.scorers_for, config, ["frechet"], files={"inception": _INCEPTION.value})
  resolution = models.teacher.config.data.resolution
  figure, axes = images_lib.figure(-(-len(settings) // columns), columns, (ROWS, COLUMNS), resolution)
  rows = []
  for panel, setting in zip(axes.flat, settings):
    model = getattr(models, setting.who)
    config = of_setting(setting, model, scorer)
    seeds = np.arange(max(ROWS * COLUMNS, _NUM_IMAGES.value))
    images = sampling.generate(config, model.method, model.variables, seeds)
    nfe = sampling.evaluations(config.sampling, model.method)
    name = "Heun" if setting.sampler == "heun" else "DPDM sampler"
    title = f"{setting.who}, {name}, {setting.steps} step{'s' * (setting.steps > 1)}, NFE {nfe}"
    distance = None
    if scorer is not None:
      block = scorer.fresh()
      block.add(block.extract(images_lib.to_uint8(images[: _NUM_IMAGES.value])))
      distance = block.scores()["frechet"]
      name = report.title("frechet", scorer.extractor.name)
      title += f"\n{name} {report.number(distance)}, {_NUM_IMAGES.value} images"
    images_lib.draw(panel, np.split(images[: ROWS * COLUMNS], ROWS), title)
    levels = sampling.schedule_of(config.sampling, model.method)[1]
    rows.append([*setting, nfe, levels[0], levels[-2], _NUM_IMAGES.value, distance])
  return figure, ["model", "sampler", "steps", "nfe", "sigma_max", "sigma_min", "images", "frechet"], rows


def figure1(models: Models):
  return samples(models, [Setting("teacher", "heun", 3), Setting("teacher", "heun", 8), Setting("pupil", "dpdm", 5)], 3)


def figure2(models: Models):
  source = training_images(models)
  seeds, teacher = drawn(source), models.teacher
  noisy, clean, rows = [], [], []
  for sigma in NOISE_LEVELS:
    images, x = recovery.noisy(teacher.method, source, seeds, sigma)
    noisy.append(one_contrast(x, sigma))
    clean.append(recovered(teacher, source, seeds, sigma))
    rows.append([sigma, len(images), rms(clean[-1] - images)])
  count = 3
  figure, axes = images_lib.figure(2, 1, (count, len(NOISE_LEVELS) + 1), images.shape[1], above=0.4)
  stacks = [("noisy images x = y + σn, at one contrast", noisy), ("the teacher's denoiser D(x; σ)", clean)]
  for panel, (title, stack) in zip(axes.flat, stacks):
    errors = [f"\nerror {error:.2f}" if stack is clean else "" for _, _, error in rows]
    names = [f"σ = {sigma:g}{error}" for sigma, error in zip(NOISE_LEVELS, errors)]
    tiles = [[images[i], *(level[i] for level in stack)] for i in range(count)]
    images_lib.draw(panel, tiles, title, below=["y, clean", *names])
  return figure, ["sigma", "images", "rms_error"], rows


def figure3(models: Models):
  count, model = 4, models.pupil
  config, seeds = of_setting(Setting("pupil", "dpdm", CHAIN), model), np.arange(count)
  labels, keys = sampling.default_labels(config, seeds), sampling.keys_of(seeds)
  chain, grid = sampling.schedule_of(config.sampling, model.method)
  shape = (config.data.resolution, config.data.resolution, config.data.channels)
  _, states = sampling.sample(
    model.method, model.variables, keys, shape, grid, "dpdm", labels=labels, trajectory=True, process=chain
  )
  cond = None if labels is None else {"label": labels}
  denoise = jax.jit(lambda x, t: model.method.denoise(model.variables, x, t, cond))
  columns, names, rows = [], [], []
  before = 0.0
  for step, (x, t) in enumerate(zip(states, grid[:-1]), 1):
    clean, sigma = denoise(x, jnp.float32(t)).clean, float(chain.noise_level(t))
    x = x / chain.alpha(t)
    columns += [one_contrast(x, sigma), clean]
    names += [f"noisy\nσ = {sigma:.3g}", f"denoised\n{step}"]
    rows.append([step, sigma, rms(x), rms(clean - before)])
    before = clean
  figure, axes = images_lib.figure(1, 1, (count, len(columns)), shape[0])
  title = f"the pupil by the DPDM sampler, {CHAIN} steps: add noise, denoise, from left to right"
  images_lib.draw(axes[0, 0], [[column[i] for column in columns] for i in range(count)], title, below=names)
  return figure, ["step", "sigma", "rms_noisy", "rms_change_of_denoised"], rows


def figure4(models: Models):
  source = training_images(models)
  seeds, count, rows = drawn(source), 4, []
  for i, sigma in enumerate(RECOVERED):
    images, x = recovery.noisy(models.teacher.method, source, seeds, sigma)
    if i == 0:
      figure, axes = images_lib.figure(1, len(RECOVERED), (4, count), images.shape[1])
    found = [recovered(model, source, seeds, sigma) for model in models]
    rows.append([sigma, len(images), *(rms(clean - images) for clean in found)])
    names = ["clean", "noisy", "teacher", "pupil"] if i == 0 else ()
    tiles = [y[:count] for y in (images, one_contrast(x, sigma), *found)]
    images_lib.draw(axes[0, i], tiles, f"σ = {sigma:g}", left=names)
  return figure, ["sigma", "images", "rms_error_teacher", "rms_error_pupil"], rows


def figure5(models: Models):
  return samples(models, [Setting("pupil", "dpdm", steps) for steps in (7, 6, 5, 4)], 2)


def figure6(models: Models):
  return samples(models, [Setting(who, *by) for who in Models._fields for by in (("heun", 4), ("dpdm", 7))], 2)


FIGURES = {"1": figure1, "2": figure2, "3": figure3, "4": figure4, "5": figure5, "6": figure6}


def main():
  numbers = list(dict.fromkeys(_FIGURES.value))
  if not numbers or not set(numbers) <= set(FIGURES):
    raise cli.UsageError(f"--figures={','.join(_FIGURES.value)}: expected some of {', '.join(FIGURES)}")
  for number in numbers:
    outputs(f"figure{number}")
  if _NUM_IMAGES.value < 0 or _NUM_IMAGES.value == 1:
    raise cli.UsageError(f"--num_images={_NUM_IMAGES.value}: expected 0 or at least 2")
  models = open_models()
  for number in numbers:
    write(*FIGURES[number](models), f"figure{number}")


if __name__ == "__main__":
  cli.run(main)
