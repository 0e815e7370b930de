"""EDM's Appendix D: truncation error by step for Euler and Heun, and by ρ.

  python experiments/figures/truncation.py --workdir=runs/table1/edm_0 --out=experiments/results/edm_digits/truncation

The error of a step from σ_i to σ_{i+1} is the root mean square a pixel of its result against many small Heun steps over
the same interval, from the same state; states follow the fine solution, so that errors of earlier steps stay out. The
total error is that of whole trajectories against fine ones. --checkpoint=FILE.pkl takes a published network.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import outputs, plt, write

from diffusion_jax import cli, process, samplers, sampling, times

_NUM_STEPS = flags.DEFINE_integer("steps", 18, "Steps of a grid.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 64, "Trajectories.")
model_flags = cli.ModelFlags()

RHOS = (1.0, 3.0, 5.0, 7.0, 10.0)
SUBSTEPS = 16  # Heun steps of the reference in each interval


def rms(x) -> float:
  return float(jnp.sqrt(jnp.mean(x**2)))


def main():
  outputs()
  config, method, variables, _, name = model_flags.open()
  setting, edm, n = config.sampling, process.EDM(), _NUM_STEPS.value
  lo, hi = setting.sigma_min or 0.002, setting.sigma_max or 80.0
  shape = (config.data.resolution, config.data.resolution, config.data.channels)
  seeds = np.arange(_NUM_IMAGES.value)
  labels = sampling.default_labels(config, seeds)
  cond = None if labels is None else {"label": jnp.asarray(labels)}
  denoise = lambda x, sigma: method.denoise(variables, x, sigma, cond)
  start = edm.prior(sampling.keys_of(seeds), shape, hi)

  def field(x, sigma):
    return edm.velocity(denoise(x, sigma), sigma)

  @jax.jit
  def heun(x, t, s):
    d = field(x, t)
    return x + (s - t) / 2 * (d + field(x + (s - t) * d, s))

  @jax.jit
  def fine(x, t, s):
    """SUBSTEPS Heun steps from t to s, even in σ^(1/7)."""
    knots = (t ** (1 / 7) + jnp.arange(SUBSTEPS + 1) / SUBSTEPS * (s ** (1 / 7) - t ** (1 / 7))) ** 7
    return jax.lax.scan(lambda x, ts: (heun(x, *ts), None), x, (knots[:-1], knots[1:]))[0]

  euler = jax.jit(lambda x, t, s: x + (s - t) * field(x, t))
  whole = {
    "euler": jax.jit(lambda grid: samplers.euler(denoise, edm, start, grid)),
    "heun": jax.jit(lambda grid: samplers.heun(denoise, edm, start, grid)),
  }
  rows, totals = [], []
  exact = None
  for rho in RHOS:
    grid = times.edm_grid(n, lo, hi, rho)
    x = start
    for i in range(n - 1):
      t, s = (jnp.float32(v) for v in grid[i : i + 2])
      after = fine(x, t, s)
      rows.append(["step", rho, i, float(t), rms(euler(x, t, s) - after), rms(heun(x, t, s) - after)])
      x = after
    exact = denoise(x, jnp.float32(grid[-2])).clean if rho == 7.0 else exact
    totals.append((rho, {solver: run(grid.astype(np.float32)) for solver, run in whole.items()}))
  rows += [["total", rho, "", "", *(rms(got[s] - exact) for s in ("euler", "heun"))] for rho, got in totals]

  figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4))
  for rho in RHOS:
    points = np.array([row[3:] for row in rows if row[0] == "step" and row[1] == rho])
    (line,) = left.plot(points[:, 0], points[:, 2], "o-", markersize=3, label=f"Heun, ρ = {rho:g}")
    if rho == 7:
      left.plot(points[:, 0], points[:, 1], "s--", markersize=3, color=line.get_color(), label="Euler, ρ = 7")
  left.set(xscale="log", yscale="log", xlabel="σ at the start of the step", ylabel=f"error of a step, {n} steps")
  left.set_title(name)
  left.legend(fontsize=7)
  final = [row for row in rows if row[0] == "total"]
  for column, solver in ((4, "Euler"), (5, "Heun")):
    right.plot([row[1] for row in final], [row[column] for row in final], "o-", label=solver)
  right.set(xlabel="ρ", ylabel="error of the image", yscale="log")
  right.legend()
  write(figure, ["kind", "rho", "step", "sigma", "euler_rms", "heun_rms"], rows)


if __name__ == "__main__":
  cli.run(main)
