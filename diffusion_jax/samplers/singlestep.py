"""Singlestep solvers on log-SNR: further evaluations within a step, no memory of the steps before.

    λ = log(α/σ),  h = λ_s − λ_t,  λ_i = λ_t + r_i·h, t_i its time                       (1)
    DPM-Solver, noise:    x_s = (α_s/α_t)·x_t − σ_s·h·[M_0·ε̂_t + c·(ε̂_i − ε̂_t)/r_i],  z = h             (2)
    DPM-Solver++, image:  x_s = (σ_s/σ_t)·x_t + α_s·h·[M_0·x̂_t + c·(x̂_i − x̂_t)/r_i],  z = −h            (3)
    2, 2S: r_1 = ½, c = ½·M_0      3: r = ⅓, ⅔, c = M_1 in the step and (with r_2·h for h) in that to t_2  (4)

M are the moments of polynomial.py at z; M_0 alone is DDIM. A step from α = 0, whose h is not finite, is DDIM's.
Sources: Lu et al. 2022, "DPM-Solver", Algorithms 1 and 2 (with r_1 = ½; ⅓, ⅔); "DPM-Solver++", Algorithm 1.
"""

import jax.numpy as jnp

from diffusion_jax.process import MAX_NOISE_LEVEL, Gaussian, Process
from diffusion_jax.samplers import loop, polynomial
from diffusion_jax.samplers.ancestral import transition
from diffusion_jax.samplers.exponential import log_snr
from diffusion_jax.types import Array, Denoise, Key


def _ddim(process: Process, pred, x, t, s):
  return transition(process, pred, x, t, s, process.sigma(s))


def _solve(denoise, process, x, grid, keys, trajectory, advance):
  process.need_gaussian()
  x, grid = loop.prepare(x, grid, keys)
  process.check_times(grid)

  def step(x, index, t, s):
    del index
    known = process.noise_level(t) < MAX_NOISE_LEVEL
    pred, start = denoise(x, t), log_snr(process, t)
    h = jnp.where(known, log_snr(process, s) - start, 1)
    within = lambda r: process.inverse(jnp.exp(-(start + r * h)))
    return _ddim(process, pred, x, t, s) + jnp.where(known, advance(pred, x, t, s, h, within), 0)

  def last(x, index, t, s):
    return process.image(_ddim(process, denoise(x, t), x, t, s))

  return loop.run(step, last, x, grid, trajectory)


def dpm_solver_2(
  denoise: Denoise, process: Gaussian, x: Array, grid: Array, keys: Key | None = None, *, trajectory: bool = False
):
  """DPM-Solver-2, equations (2) and (4): 2N − 1 evaluations for a grid of N steps, second order.

  Args:
    denoise: the pair of estimates at (x, t); the noise is used, and both where DDIM's step is.
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0.
    keys: unused: nothing is drawn.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, or the process has no noise levels.
  """

  def advance(pred, x, t, s, h, within):
    middle = within(0.5)
    bend = denoise(_ddim(process, pred, x, t, middle), middle).eps - pred.eps
    return -process.sigma(s) * jnp.expm1(h) * bend  # h·½M_0/r_1 = e^h − 1

  return _solve(denoise, process, x, grid, keys, trajectory, advance)


def dpm_solver_3(
  denoise: Denoise, process: Gaussian, x: Array, grid: Array, keys: Key | None = None, *, trajectory: bool = False
):
  """DPM-Solver-3, equations (2) and (4): 3N − 2 evaluations for a grid of N steps, third order.

  Arguments, result and errors are those of `dpm_solver_2`.
  """

  def advance(pred, x, t, s, h, within):
    first, second = within(1 / 3), within(2 / 3)
    bend = lambda state, time: denoise(state, time).eps - pred.eps
    slope = lambda h: h * polynomial.exponential_moments(h, 1)[1]
    at_first = bend(_ddim(process, pred, x, t, first), first)
    state = _ddim(process, pred, x, t, second) - process.sigma(second) * slope(2 / 3 * h) * 2 * at_first
    return -process.sigma(s) * slope(h) * 1.5 * bend(state, second)

  return _solve(denoise, process, x, grid, keys, trajectory, advance)


def dpmpp_2s(
  denoise: Denoise, process: Gaussian, x: Array, grid: Array, keys: Key | None = None, *, trajectory: bool = False
):
  """DPM-Solver++(2S), equations (3) and (4): 2N − 1 evaluations for a grid of N steps, second order.

  Arguments, result and errors are those of `dpm_solver_2`; the image is used.
  """

  def advance(pred, x, t, s, h, within):
    middle = within(0.5)
    bend = process.decode(denoise(_ddim(process, pred, x, t, middle), middle).clean) - process.decode(pred.clean)
    return -process.alpha(s) * jnp.expm1(-h) * bend

  return _solve(denoise, process, x, grid, keys, trajectory, advance)
