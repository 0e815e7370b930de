"""DDDM's samples by number of iterations (the paper's Figures 3, 4 and 6 to 17), and what an iteration does.

  python experiments/figures/dddm.py --workdir=runs/dddm_digits --out=results/dddm
  python experiments/figures/dddm.py --workdir=RUN --out=FOLDER --iterations=1,2,1000 --trace=20

OUT/samples.png has images of seeds 0, 1, … after each number of --iterations, from the same x_T and first estimate;
with classes, column i shows class i. OUT/samples.csv has the root mean square a pixel of their difference to those
after the last of these numbers. OUT/trace.png has the estimates of some seeds from the first, which is noise, to that
after --trace iterations; OUT/trace.csv has the root mean square of the estimates, and of what each iteration changes,
over 100 seeds. Estimates are clipped as the run's config.sampling.clip says.
"""

import jax.numpy as jnp
import numpy as np
from absl import flags
from common import outputs, write

from diffusion_jax import cli, sampling
from diffusion_jax.evaluation import images as images_lib

_ITERATIONS = flags.DEFINE_list("iterations", ["1", "2", "100"], "Numbers of iterations of the samples.")
_TRACE = flags.DEFINE_integer("trace", 10, "Iterations of the trace.", lower_bound=1)
model_flags = cli.ModelFlags(published=False, sampling=False)

ROWS, COLUMNS = 5, 10  # of a panel of samples
NUM_TRACED, NUM_SHOWN = 100, 4  # seeds of the trace: in the CSV, in the picture


def with_iterations(model: cli.Model, count: int):
  """The run's config, sampling in `count` iterations."""
  config = model.config.copy_and_resolve_references()
  config.sampling.num_steps = count
  return config


def rms(x) -> float:
  return float(jnp.sqrt(jnp.mean(x**2)))


def samples(model: cli.Model, counts: list[int]):
  seeds = np.arange(ROWS * COLUMNS)
  found = [sampling.generate(with_iterations(model, n), model.method, model.variables, seeds) for n in counts]
  figure, axes = images_lib.figure(1, len(counts), (ROWS, COLUMNS), model.config.data.resolution)
  for panel, n, images in zip(axes[0], counts, found):
    images_lib.draw(panel, np.split(images, ROWS), f"{n} iteration{'s' * (n > 1)}")
  rows = [[n, len(seeds), rms(images - found[-1])] for n, images in zip(counts, found)]
  return figure, ["iterations", "images", "rms_to_last"], rows


def trace(model: cli.Model, count: int):
  config, seeds = with_iterations(model, count), np.arange(NUM_TRACED)
  setting, data = config.sampling, config.data
  _, grid = sampling.schedule_of(setting, model.method)
  _, estimates = sampling.sample(
    model.method, model.variables, sampling.keys_of(seeds), (data.resolution, data.resolution, data.channels), grid,
    setting.sampler, sampling.default_labels(config, seeds), trajectory=True, clip=sampling.clip_of(setting),
    clip_percentile=setting.clip_percentile or None, **sampling.guidance_of(setting),
    **sampling.options_of(setting, model.method),
  )  # fmt: skip
  figure, axes = images_lib.figure(1, 1, (NUM_SHOWN, count + 1), data.resolution)
  tiles, left = jnp.swapaxes(estimates[:, :NUM_SHOWN], 0, 1), [f"seed {i}" for i in range(NUM_SHOWN)]
  images_lib.draw(axes[0, 0], tiles, "the estimate after each iteration", left, [f"{k}" for k in range(count + 1)])
  changes = [None, *(rms(after - before) for before, after in zip(estimates, estimates[1:]))]
  rows = [[k, NUM_TRACED, rms(image), change] for k, (image, change) in enumerate(zip(estimates, changes))]
  return figure, ["iteration", "images", "rms", "rms_change"], rows


def main():
  counts = _ITERATIONS.value
  if not counts or not all(text.isdigit() and int(text) for text in counts):
    raise cli.UsageError(f"--iterations={','.join(counts)}: expected positive whole numbers such as 1,2,100")
  for name in ("samples", "trace"):
    outputs(name)
  model = model_flags.open()
  if model.config.method != "dddm":
    expected = f"a run of method {model.config.method}; these are figures of dddm"
    raise cli.UsageError(f"--workdir={model_flags.path}: {expected}")
  write(*samples(model, [int(text) for text in counts]), "samples")
  write(*trace(model, _TRACE.value), "trace")


if __name__ == "__main__":
  cli.run(main)
