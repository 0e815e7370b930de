"""Solvers against the exact flow of smoothed digits: the fewest evaluations that bring their error below a bound.

  python experiments/figures/solver_error.py --out=experiments/results/solvers/error

The data are the train digits with noise of --std on them, whose best denoiser is known: no network takes part. For each
process and solver, on grids of 2 to 64 steps from the same noise, the error is the median over images of the RMS
difference a pixel to the flow by rk45 at a tolerance of 1e-5. OUT.csv has every error, OUT.png the curves, and OUT.md
the table of the fewest evaluations with an error below --bound.

Processes of noise levels have EDM's grid; the decoupled one its own from t = 1, with steps of t = (1 − i/n)².
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import outputs, plt, write
from etils import epath
from figure1 import ideal_denoiser

from diffusion_jax import cli, process, samplers, sampling, times
from diffusion_jax.data import sources
from diffusion_jax.evaluation import report
from diffusion_jax.samplers import catalogue
from diffusion_jax.types import Prediction, like

_STD = flags.DEFINE_float("std", 0.1, "Of the noise on the digits.", lower_bound=0.01)
_BOUND = flags.DEFINE_float("bound", 0.02, "On the error a pixel of images in [−1, 1].", lower_bound=0.0)
_NUM_IMAGES = flags.DEFINE_integer("num_images", 64, "Images of a median.", lower_bound=1)

PROCESSES = {"EDM": process.EDM(), "VP": process.VP(), "DDPM": process.DDPM(), "Decoupled": process.Decoupled()}
STEPS = (*range(2, 21), 24, 28, 32, 40, 48, 56, 64)
SOLVERS = {
  "Euler": ("euler", {}),
  "DDIM": ("ddim", {}),
  "Heun": ("heun", {}),
  "DPM-Solver-2": ("dpm_solver_2", {}),
  "DPM-Solver-3": ("dpm_solver_3", {}),
  "DPM-Solver++(2S)": ("dpmpp_2s", {}),
  "DPM-Solver++(2M)": ("dpmpp_2m", {}),
  "DPM-Solver++(3M)": ("dpmpp_3m", {}),
  "DEIS, order 2": ("deis", {"order": 2}),
  "DEIS, order 3": ("deis", {"order": 3}),
  "UniPC-2, bh1": ("unipc", {"order": 2, "variant": "bh1"}),
  "UniPC-2, bh2": ("unipc", {"order": 2}),
  "UniPC-3, bh2": ("unipc", {"order": 3}),
  "SA-Solver-3, τ = 0": ("sa_solver", {"order": 3, "tau": 0.0}),
  "angle, order 2": ("multistep", {"order": 2}),
  "angle, order 3": ("multistep", {"order": 3}),
}


def smoothed(data, std: float):
  """The best Denoise of the EDM process for images [N, H, W, C] with noise of a standard deviation on them."""
  ideal = ideal_denoiser(data)

  def denoise(x, sigma):
    level = jnp.hypot(sigma, std)
    mean = ideal(x, level).clean
    share = like((std / level) ** 2, x)
    clean = mean + share * (x - mean)
    return Prediction(clean, like(sigma / level**2, x) * (x - mean))

  return denoise


def grid_of(name: str, n: int) -> np.ndarray:
  if name == "Decoupled":
    return times.decoupled_grid(n, power=2.0)
  levels = times.edm_grid(n)
  return np.asarray(PROCESSES[name].inverse(levels), np.float64)


def errors(name: str, denoise) -> dict[str, list[tuple[int, float]]]:
  """{solver: [(evaluations, error)]} of a process."""
  p, keys = PROCESSES[name], sampling.keys_of(np.arange(_NUM_IMAGES.value))
  denoise = process.reframe(denoise, process.EDM(), p)
  largest = grid_of(name, 64)
  x = p.prior(keys, (8, 8, 1), largest[0])
  finest = np.array([largest[0], grid_of(name, 1000)[-2], 0.0])
  exact = jax.jit(lambda x: samplers.rk45(denoise, p, x, finest, rtol=1e-5, atol=1e-5))(x)
  found = {}
  for solver, (sampler, options) in SOLVERS.items():
    run = jax.jit(functools.partial(samplers.BY_NAME[sampler], denoise, p, x, keys=keys, **options))
    found[solver] = []
    for n in STEPS:
      if n < max(catalogue.KINDS[sampler].history, options.get("order", 1)):
        continue
      out = run(jnp.asarray(times.pad(grid_of(name, n), max(STEPS)), jnp.float32))
      error = np.median(np.sqrt(np.mean(np.square(out - exact), axis=(1, 2, 3))))
      found[solver].append((catalogue.evaluations(sampler, n), float(error)))
  return found


def draw(axes, found: dict[str, list[tuple[int, float]]]):
  for i, (solver, points) in enumerate(found.items()):
    axes.loglog(*zip(*points), label=solver, lw=1, color=f"C{i % 8}", ls="-" if i < 8 else "--")


def main():
  outputs()
  source = sources.load("digits", "train")
  denoise = smoothed(source.gather(np.arange(len(source)))["image"], _STD.value)
  figure, panels = plt.subplots(1, len(PROCESSES), figsize=(5 * len(PROCESSES), 4.5), sharey=True)
  rows, fewest = [], {solver: [] for solver in SOLVERS}
  for axes, name in zip(panels, PROCESSES):
    found = errors(name, denoise)
    for solver, points in found.items():
      rows += [[name, solver, nfe, error] for nfe, error in points]
      # from which on it stays below
      above = [nfe for nfe, error in points if not error < _BOUND.value]
      below = [nfe for nfe, _ in points if not above or nfe > max(above)]
      fewest[solver].append(min(below) if below else f"> {max(above)}")
    draw(axes, found)
    axes.axhline(_BOUND.value, color="0.6", lw=0.8)
    axes.set(title=name, xlabel="evaluations")
  panels[0].set_ylabel("error a pixel")
  panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
  write(figure, ["process", "solver", "nfe", "error"], rows)
  table = report.markdown(["solver", *PROCESSES], [[solver, *cells] for solver, cells in fewest.items()])
  note = (
    f"Fewest evaluations from which on the error stays below {_BOUND.value:g} a pixel, digits with noise of "
    f"{_STD.value:g}, {_NUM_IMAGES.value} images; grids of up to {max(STEPS)} steps."
  )
  epath.Path(flags.FLAGS.out + ".md").write_text(f"{table}\n\n{note}\n")
  print(f"{table}\n\n{note}")


if __name__ == "__main__":
  cli.run(main)
