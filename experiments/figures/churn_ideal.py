"""Churn with the ideal denoiser of the training digits, for which EDM saw no degradation (Section 4), beside Figure 5b.

  python experiments/figures/churn_ideal.py --out=experiments/results/edm_digits/churn_ideal

Score against S_churn; the mean and standard deviation over three blocks of seeds.
"""

import jax
import numpy as np
from absl import flags
from common import outputs, plt, write
from figure1 import ideal_denoiser

from diffusion_jax import cli, process, samplers, sampling, times
from diffusion_jax.data import sources
from diffusion_jax.evaluation import digits, records, report

_NUM_IMAGES = flags.DEFINE_integer("num_images", 1000, "Images a score.")

CHURNS = (0.0, 2.0, 5.0, 40.0)  # from 7.5 on the clamp of γ makes them one
STEPS = 18
BLOCKS = 3


def score(churn: float, block: int) -> float:
  """Fréchet distance of one block of seeds, Heun with S_churn."""
  data = sources.load("digits", "train")
  denoise = ideal_denoiser(data.gather(np.arange(len(data)))["image"])
  grid, edm = times.edm_grid(STEPS), process.EDM()
  keys = sampling.keys_of(np.arange(_NUM_IMAGES.value) + block * _NUM_IMAGES.value)
  option = {"churn": samplers.Churn(churn)} if churn else {}
  run = jax.jit(lambda keys: samplers.heun(denoise, edm, edm.prior(keys, (8, 8, 1), grid[0]), grid, keys, **option))
  return digits.score(run(keys))["frechet"]


def main():
  outputs()
  points = []
  for churn in CHURNS:
    stats = records.over_blocks(score(churn, block) for block in range(BLOCKS))
    points.append((churn, stats["mean"], stats["std"]))
  figure, axes = plt.subplots(figsize=(5, 4))
  report.draw_lines(axes, {"ideal denoiser": points})
  axes.set(xlabel=f"S_churn, NFE {2 * STEPS - 1}", ylabel=f"Fréchet distance, {_NUM_IMAGES.value} digits")
  axes.set_ylim(bottom=0)
  write(figure, ["s_churn", "frechet_mean", "frechet_std", "blocks"], [[*point, BLOCKS] for point in points])


if __name__ == "__main__":
  cli.run(main)
