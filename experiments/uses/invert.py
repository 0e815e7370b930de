"""Real images to latents and back: what is lost, by the number of steps.

  python experiments/uses/invert.py --workdir=runs/edm_digits --out=results/invert
  python experiments/uses/invert.py --workdir=RUN --out=OUT --steps=5,50 --split=test --num_images=200

OUT.png has the first ten images, their latents (in units of σ_max) and what comes back. OUT.csv has the root mean
square a pixel of the difference, over --num_images and of the worst of them; the mean and standard deviation of the
latents' pixels, which are 0 and 1 for noise; and the correlation between neighbouring pixels, 0 for noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import draw, model_flags, numbers, opened, real, rms, table  # noqa: F401  the flags

from diffusion_jax import cli, samplers, times

_STEPS = flags.DEFINE_list("steps", ["5", "10", "18", "50", "100"], "Numbers of steps of the grid.")
_SPLIT = flags.DEFINE_string("split", "test", "Of the run's data.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 200, "The first images of the split.", lower_bound=1)
SHOWN = 10


def main():
  steps = numbers(_STEPS, int, 1, 10_000)
  run = opened()
  images, labels = real(run.config, _SPLIT.value, _NUM_IMAGES.value)

  @jax.jit
  def there_and_back(variables, x, labels, grid):
    denoise = run.bind(variables, labels)
    latents = samplers.invert(denoise, run.process, x, grid)
    return latents / run.process.sigma(grid[0]), samplers.heun(denoise, run.process, latents, grid)

  rows, pictures, left = [], [images[:SHOWN]], ["images"]
  for count in steps:
    grid = jnp.asarray(times.pad(run.in_steps(count), max(steps) + 1), jnp.float32)  # of one length: compiled once
    latents, back = map(np.asarray, there_and_back(run.variables, images, labels, grid))
    error = rms(back - images)
    beside = np.corrcoef(latents[:, :, 1:].ravel(), latents[:, :, :-1].ravel())[0, 1]
    spread = (np.mean(latents), np.std(latents), beside)
    rows.append([count, 2 * count - 1, len(images), np.sqrt(np.mean(error**2)), error.max(), *spread])
    pictures += [latents[:SHOWN] / 3, back[:SHOWN]]
    left += [f"latents, {count} steps", f"back, {count} steps"]
  draw(pictures, left)
  header = ["steps", "NFE_each_way", "images", "rms", "worst_rms", "latent_mean", "latent_std", "latent_correlation"]
  table(header, rows)


if __name__ == "__main__":
  cli.run(main)
