"""EDM's Figure 3: trajectories of the probability-flow ODE in one dimension, data at x = ±1.

  python experiments/figures/figure3.py --out=experiments/results/edm_digits/figure3

The best denoiser of two equal Dirac peaks is D(x; σ) = tanh(x/σ²). Each panel shows solutions of dx/dt in one process,
from σ = 25 down, by scipy's DOP853 to 1e-10 in the library's own velocity. The CSV holds the trajectories, and their
length over the straight line's in (t, x) as a measure of curvature.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from common import outputs, plt, write

from diffusion_jax import cli, process
from diffusion_jax.types import Prediction

SIGMA_MAX, SIGMA_MIN = 25.0, 2e-3
PROCESSES = {"VP": process.VP(), "VE": process.VE(), "σ(t) = t, s(t) = 1 (DDIM, EDM)": process.EDM()}


def two_peaks(p: process.Gaussian):
  """The best Denoise of data ±1 in the process p."""

  def denoise(x, t):
    alpha, sigma = p.alpha(t), p.sigma(t)
    clean = jnp.tanh(alpha * x / sigma**2)
    return Prediction(clean, (x - alpha * clean) / sigma)

  return denoise


def trajectories(p: process.Gaussian, starts: np.ndarray, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
  """Times [points] and states [points, len(starts)] from the noise level SIGMA_MAX to SIGMA_MIN."""
  with jax.enable_x64(True):
    top, bottom = float(p.inverse(np.float64(SIGMA_MAX))), float(p.inverse(np.float64(SIGMA_MIN)))
    denoise = two_peaks(p)
    field = jax.jit(lambda t, x: p.velocity(denoise(x, t), t))
    x = starts * float(p.sigma(np.float64(top)))
    times = np.linspace(top, bottom, points)
    solution = scipy.integrate.solve_ivp(
      lambda t, x: np.asarray(field(np.float64(t), x)), (top, bottom), x, "DOP853", times, rtol=1e-10, atol=1e-12
    )
  if not solution.success:
    raise RuntimeError(solution.message)
  return times, solution.y.T


def main():
  outputs()
  starts = np.linspace(-2, 2, 16)
  figure, panels = plt.subplots(1, 3, figsize=(15, 4))
  rows = []
  for axes, (name, p) in zip(panels, PROCESSES.items()):
    times, states = trajectories(p, starts)
    axes.plot(times, states, linewidth=0.8)
    axes.set(title=name, xlabel="t", ylabel="x")
    scaled = np.stack([np.broadcast_to(times[:, None] / times[0], states.shape), states / np.abs(states).max()])
    length = np.linalg.norm(np.diff(scaled, axis=1), axis=0).sum(axis=0)
    straight = np.linalg.norm(scaled[:, -1] - scaled[:, 0], axis=0)
    kept = np.append(np.arange(0, len(times) - 1, 10), len(times) - 1)
    for i in range(len(starts)):
      rows += [[name, i, times[k], states[k, i], length[i] / straight[i]] for k in kept]
  write(figure, ["process", "trajectory", "t", "x", "length_over_straight"], rows)


if __name__ == "__main__":
  cli.run(main)
