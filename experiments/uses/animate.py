"""A sampler's way from noise to images, as an animated GIF.

  python experiments/uses/animate.py --workdir=runs/edm_digits --out=results/animate --seeds=0-29 --num_steps=40

Each frame is a time of the grid. On the left the states, scaled to √(α² + σ²) = 1; on the right what the network takes
them for. OUT.csv has by frame the noise level and the root mean square of what the estimates still change to the end.
"""

import io

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import model_flags, opened, out, rms, table  # noqa: F401  the flags
from PIL import Image

from diffusion_jax import cli, sampling
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.samplers import BY_NAME

_SEEDS = flags.DEFINE_string("seeds", "0-29", "Of the images.")
_COLUMNS = flags.DEFINE_integer("columns", 10, "Images a row.", lower_bound=1)
_MILLISECONDS = flags.DEFINE_integer("milliseconds", 120, "A frame; the last stays 10 times as long.", lower_bound=20)


def main():
  seeds = np.array(cli.seeds(_SEEDS.value))
  run = opened()
  setting, process, grid = run.config.sampling, run.process, run.grid
  labels = sampling.default_labels(run.config, seeds)
  options = sampling.options_of(setting, run.method)

  @jax.jit
  def follow(variables, labels, keys):
    denoise = run.bind(variables, labels)
    x = process.prior(keys, run.shape, grid[0])
    images, states = BY_NAME[setting.sampler](denoise, process, x, grid, keys, trajectory=True, **options)
    estimate = lambda at: process.decode(denoise(*at).clean)
    estimates = jax.lax.map(estimate, (states[:-1], jnp.asarray(grid[:-1], x.dtype)))
    return states, jnp.concatenate([estimates, images[None]])

  states, estimates = map(np.asarray, follow(run.variables, labels, sampling.keys_of(seeds)))
  sizes = [float(process.polar(t)[0]) for t in grid]
  frames = [frame(state / size, estimate) for state, size, estimate in zip(states, sizes, estimates)]
  data = io.BytesIO()
  lasting = [_MILLISECONDS.value] * (len(frames) - 1) + [10 * _MILLISECONDS.value]
  frames[0].save(data, format="GIF", save_all=True, append_images=frames[1:], duration=lasting, loop=0)
  out(".gif").write_bytes(data.getvalue())
  levels = [np.tan(float(process.polar(t)[1])) for t in grid]
  left = [np.sqrt(np.mean(rms(estimate - estimates[-1]) ** 2)) for estimate in estimates]
  table(["frame", "noise_level", "estimate_changes_by"], [[k, *row] for k, row in enumerate(zip(levels, left))])


def frame(state: np.ndarray, estimate: np.ndarray) -> Image.Image:
  """States and estimates [B, H, W, C] beside each other."""
  scale = max(1, 32 // state.shape[1])
  halves = [images_lib.grid(images, _COLUMNS.value, scale) for images in (state, estimate)]
  gap = np.full((halves[0].shape[0], 8, halves[0].shape[2]), images_lib.GAP, np.uint8)
  return Image.fromarray(np.concatenate([halves[0], gap, halves[1]], 1).squeeze())


if __name__ == "__main__":
  cli.run(main)
