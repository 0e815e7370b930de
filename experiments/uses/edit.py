"""SDEdit: real images with noise of some level on them, denoised, as another class if one is given.

  python experiments/uses/edit.py --workdir=runs/edm_digits --out=results/edit
  python experiments/uses/edit.py --workdir=RUN --out=OUT --noise_levels=0.5,1,2 --label=8

OUT.png has ten images and what becomes of them, a row a strength (share of the grid's steps) or noise level. OUT.csv
has the noise level that each starts from, and the root mean square of the difference to the image, over --num_images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import draw, model_flags, numbers, opened, real, rms, table  # noqa: F401  the flags

from diffusion_jax import cli, editing, sampling, times
from diffusion_jax.samplers import BY_NAME

_STRENGTHS = flags.DEFINE_list("strengths", ["0.1", "0.3", "0.4", "0.5", "0.6", "0.7", "1"], "Shares of the grid.")
_LEVELS = flags.DEFINE_list("noise_levels", None, "Noise levels σ/α to start from, in place of --strengths.")
_LABEL = flags.DEFINE_integer("label", None, "Class to make of them; by default their own.")
_SPLIT = flags.DEFINE_string("split", "test", "Of the run's data.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 100, "The first images of the split.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Image i has the noise of seed SEED + i.")
SHOWN = 10


def main():
  by_level = _LEVELS.value is not None
  values = numbers(_LEVELS if by_level else _STRENGTHS, float, 0, float("inf") if by_level else 1)
  run = opened()
  images, labels = real(run.config, _SPLIT.value, _NUM_IMAGES.value)
  if _LABEL.value is not None:
    if not 0 <= _LABEL.value < run.config.data.num_classes:
      raise cli.UsageError(f"--label={_LABEL.value}: this model has {run.config.data.num_classes} classes")
    labels = np.full(len(images), _LABEL.value)
  setting, keys = run.config.sampling, sampling.keys_of(np.arange(len(images)) + _SEED.value)
  options = sampling.options_of(setting, run.method)

  @jax.jit
  def sample(variables, x, labels, grid, keys):
    return BY_NAME[setting.sampler](run.bind(variables, labels), run.process, x, grid, keys, **options)

  rows, pictures, left = [], [images[:SHOWN]], ["images"]
  for value in values:
    grid = cli.checked(editing.tail_at, run.grid, run.process, value) if by_level else editing.tail(run.grid, value)
    padded = lambda _, __, x, grid, keys: sample(  # of one length: compiled once
      run.variables, x, labels, jnp.asarray(times.pad(grid, len(run.grid)), x.dtype), keys
    )
    x = jnp.asarray(images)
    made = x if len(grid) == 1 else editing.sdedit(None, run.process, x, grid, keys, strength=1, sampler=padded)
    pictures.append(np.asarray(made[:SHOWN]))
    left.append(f"{'σ' if by_level else 'strength'} {value:g}")
    level = float(run.process.noise_level(grid[0])) if hasattr(run.process, "noise_level") else float("nan")
    rows.append([value, len(grid) - 1, level, len(images), np.sqrt(np.mean(rms(made - images) ** 2))])
  draw(pictures, left)
  table(["noise_level" if by_level else "strength", "steps", "starts_from", "images", "rms"], rows)


if __name__ == "__main__":
  cli.run(main)
