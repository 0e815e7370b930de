"""A multistep solver of the probability-flow ODE: second order with one evaluation a step.

    dx/dt = ∂m/∂t(ĉ, t) + σ'(t)·ε̂,  (ĉ, ε̂) = denoise(x, t)                              (1)
    y = x/r,  r = √(α² + σ²),  θ = arctan(σ/α):  dy/dθ = (dx/dt·dt/dθ − dr/dθ·y)/r       (2)
    y_s = y_t + h·[w + h/(2h')·(w − w')],  w = dy/dθ,  h = θ_s − θ_t                     (3)

of which (3) is Adams' and Bashforth's second-order rule, w' and h' those of the step before; the first step is Euler's
and the last, to t = 0, is the transition to x_0. For the pair of a Gaussian process that agrees (2) is cos θ·ε̂ −
sin θ·x̂_0: bounded at both ends, where (1) has an infinite σ' (decoupled processes at 0) or x̂_0 a changing share of
the motion. The decoupled process's own time is a bad one for any solver: √t moves half of its way in a quarter of it.
"""

import jax
import jax.numpy as jnp

from diffusion_jax.process import Process
from diffusion_jax.samplers import loop
from diffusion_jax.samplers.ancestral import transition
from diffusion_jax.types import Array, Denoise, Key


def multistep(
  denoise: Denoise, process: Process, x: Array, grid: Array, keys: Key | None = None, *, trajectory: bool = False
):
  """The two-step rule of equation (3): N evaluations for a grid of N steps, second order.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0; for decoupled ones `times.decoupled_grid(N, power)` with power
      2 or 3 is better than uniform steps by far.
    keys: unused: nothing is drawn.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, or the grid does not decrease to 0.
  """
  x, grid = loop.prepare(x, grid, keys)
  process.check_times(grid)

  def step(state, index, t, s):
    x, (before, theta_before) = state
    (r, theta), (dr, dtheta) = jax.jvp(process.polar, (t,), (jnp.ones_like(t),))
    rate = (process.velocity(denoise(x, t), t) - dr / r * x) / (r * dtheta)
    end, theta_end = process.polar(s)
    h, first = theta_end - theta, index == 0
    bend = jnp.where(first, 0, 0.5 * h / jnp.where(first, 1, theta - theta_before))
    return end * (x / r + h * (rate + bend * (rate - before))), (rate, theta)

  def last(state, index, t, s):
    x, _ = state
    return process.image(transition(process, denoise(x, t), x, t, s, process.sigma(s)))

  return loop.run(step, last, x, grid, trajectory, memory=(jnp.zeros_like(x), jnp.zeros((), x.dtype)))
