"""EDM's Figures 4 and 5b on digits: stochastic sampling, with and without the training improvements.

  python experiments/figures/figure4.py --runs=runs/table1 --out=experiments/results/edm_digits/figure4

Left: the original stochastic samplers (Euler–Maruyama for VP, predictor–corrector for VE) beside deterministic Heun.
Middle: score against S_churn for the network trained as VP and for EDM's (Figure 5b). Right: the same for the analytic
denoiser, the best one of the training digits, for which the paper saw no degradation (Section 4). The runs are those of
figure2.py.
"""

import jax
import numpy as np
from absl import flags
from common import Scores, draw_lines, mean_and_spread, outputs, plt, seeds_of, write
from figure1 import ideal_denoiser

from diffusion_jax import cli, process, samplers, sampling, times
from diffusion_jax.data import sources
from diffusion_jax.evaluation import digits

_RUNS = flags.DEFINE_string("runs", "runs/table1", "Folder of the runs vp_0, ve_0, edm_0, edm_1, …")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 1000, "Images a score.")

EDM = dict(sampler="heun", grid="edm", process="edm")
CHURNS = (0.0, 40.0)
STEPS = 18
ORIGINAL = {
  "vp": [dict(sampler="euler_maruyama", grid="vp", process="vp", num_steps=n) for n in (20,)],
  "ve": [dict(sampler="predictor_corrector", grid="ve", process="ve", num_steps=n) for n in (10,)],
}


def analytic(churn: float, block: int) -> float:
  """Score of the ideal denoiser of the training digits with S_churn; block 0, 1, … takes other seeds."""
  data = sources.load("digits", "train")
  denoise = ideal_denoiser(data.gather(np.arange(len(data)))["image"])
  grid, edm = times.edm_grid(STEPS), process.EDM()
  keys = sampling.keys_of(np.arange(_NUM_IMAGES.value) + block * _NUM_IMAGES.value)
  option = {"churn": samplers.Churn(churn)} if churn else {}
  run = jax.jit(lambda keys: samplers.heun(denoise, edm, edm.prior(keys, (8, 8, 1), grid[0]), grid, keys, **option))
  return digits.score(run(keys))["frechet"]


def main():
  outputs()
  score, rows = Scores(_NUM_IMAGES.value), []
  left, middle, right = {}, {}, {}

  def add(panel, name, x, values, setting):
    mean, spread = mean_and_spread(values)
    panel.setdefault(name, []).append((x, mean, spread))
    rows.append([setting, name, x, mean, spread, len(values)])

  for column, original in ORIGINAL.items():
    workdirs = seeds_of(_RUNS.value, column)
    for name, settings in {
      f"{column}: {original[0]['sampler'].replace('_', '–')}": original,
      f"{column}: Heun, no churn": [dict(EDM, num_steps=n) for n in (5, 9, 18)],
    }.items():
      for fields in settings:
        got = [score(workdir, **fields) for workdir in workdirs]
        add(left, name, got[0][0], [frechet for _, frechet in got], "nfe")
  for column, name in (("vp", "trained as VP"), ("edm", "EDM's training")):
    workdirs = seeds_of(_RUNS.value, column)
    for churn in CHURNS:
      values = [score(workdir, **EDM, num_steps=STEPS, churn=churn)[1] for workdir in workdirs]
      add(middle, name, churn, values, "churn")
  for churn in CHURNS:
    add(right, "ideal denoiser", churn, [analytic(churn, block) for block in range(3)], "churn")

  figure, panels = plt.subplots(1, 3, figsize=(14, 4))
  for axes, lines in zip(panels, (left, middle, right)):
    draw_lines(axes, lines)
  panels[0].set(xlabel="network evaluations", ylabel=f"Fréchet distance, {_NUM_IMAGES.value} digits", yscale="log")
  panels[0].set_xscale("log")
  for axes in panels[1:]:
    axes.set(xlabel=f"S_churn, NFE {2 * STEPS - 1}")
    axes.set_ylim(bottom=0)
  write(figure, ["x", "line", "value", "frechet_mean", "frechet_std", "seeds"], rows)


if __name__ == "__main__":
  cli.run(main)
