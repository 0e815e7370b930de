"""EDM's Appendix D: truncation error by step for Euler and Heun, and by ρ.

  python experiments/figures/truncation.py --workdir=runs/table1/edm_0 --out=experiments/results/edm_digits/truncation

The error of a step from σ_i to σ_{i+1} is the root mean square a pixel of its result against many small Heun steps over
the same interval, from the same state; states follow the fine solution, so that errors of earlier steps stay out. The
error of the image is that of whole trajectories against fine ones, by ρ and by network evaluations. A published
network is taken by --checkpoint=FILE.pkl.
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
EULER_STEPS, HEUN_STEPS = (5, 9, 17, 35, 70, 140), (3, 5, 9, 18, 35, 70)  # nearly equal evaluations


def rms(x) -> float:
  return float(jnp.sqrt(jnp.mean(x**2)))


def main():
  outputs()
  config, method, variables, _, title = model_flags.open()
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
  solvers = {"euler": euler, "heun": heun}
  rows, exact = [], None
  for rho in RHOS:
    grid = times.edm_grid(n, lo, hi, rho)
    x = start
    for i in range(n - 1):
      t, s = (jnp.float32(v) for v in grid[i : i + 2])
      after = fine(x, t, s)
      rows += [["step", name, rho, i, float(t), 1, rms(step(x, t, s) - after)] for name, step in solvers.items()]
      x = after
    if rho == 7:
      exact = denoise(x, jnp.float32(grid[-2])).clean
  runs = [(solver, rho, n) for solver in solvers for rho in RHOS]
  runs += [("euler", 7.0, steps) for steps in EULER_STEPS] + [("heun", 7.0, steps) for steps in HEUN_STEPS]
  for solver, rho, steps in runs:
    error = rms(whole[solver](times.edm_grid(steps, lo, hi, rho).astype(np.float32)) - exact)
    rows.append(["image", solver, rho, steps, "", 2 * steps - 1 if solver == "heun" else steps, error])

  figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4))
  chosen = lambda kind, solver, **fields: np.array([
    [row[4] or 0, row[5], row[6], row[2]]
    for row in rows
    if row[:2] == [kind, solver] and fields.get("rho", row[2]) == row[2] and fields.get("steps", row[3]) == row[3]
  ])  # fmt: skip
  for rho in RHOS:
    sigma, _, error, _ = chosen("step", "heun", rho=rho).T
    (line,) = left.plot(sigma, error, "o-", markersize=3, label=f"Heun, ρ = {rho:g}")
    if rho == 7:
      sigma, _, error, _ = chosen("step", "euler", rho=rho).T
      left.plot(sigma, error, "s--", markersize=3, color=line.get_color(), label="Euler, ρ = 7")
  for solver in solvers:
    _, _, error, rho = chosen("image", solver, steps=n)[: len(RHOS)].T
    middle.plot(rho, error, "o-", label=solver)
    points = chosen("image", solver, rho=7.0)
    points = points[np.argsort(points[:, 1])]
    right.plot(points[:, 1], points[:, 2], "o-", label=f"{solver}, ρ = 7")
  left.set(xscale="log", yscale="log", xlabel="σ at the start of the step", ylabel=f"error of a step, {n} steps")
  middle.set(xlabel="ρ", ylabel=f"error of the image, {n} steps", yscale="log")
  right.set(xlabel="network evaluations", ylabel="error of the image", xscale="log", yscale="log")
  left.set_title(title)
  for axes in (left, middle, right):
    axes.legend(fontsize=7)
  write(figure, ["kind", "solver", "rho", "step_or_steps", "sigma", "nfe", "rms_error"], rows)


if __name__ == "__main__":
  cli.run(main)
