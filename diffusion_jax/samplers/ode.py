"""Solvers of the probability-flow ODE, one step a grid interval.

    dx/dt = ∂m/∂t(ĉ, t) + σ'(t)·ε̂,  (ĉ, ε̂) = denoise(x, t)                              (1)
    Euler:  x_s = x_t + (s − t)·d,  d = dx/dt at (x_t, t)                               (2)
    Heun family (Karras et al. 2022, Algorithms 1 and 3), h = s − t:
      d' = dx/dt at (x_t + αhd, t + αh),  x_s = x_t + h[(1 − 1/(2α))d + 1/(2α)·d']      (3)
      α = 1 Heun, ½ midpoint, ⅔ Ralston; the last step, to t = 0, is (2)
    Churn (Algorithm 2): before a step the noise level grows from n to n̂ = (1 + γ)n
      γ = min(S_churn/N, √2 − 1) if n ∈ [S_tmin, S_tmax], else 0                        (4)
      x̂ = α(t̂)/α(t)·x + α(t̂)·√(n̂² − n²)·S_noise·z,  t̂ = inverse(n̂)                    (5)
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.process import Process
from diffusion_jax.samplers import ancestral, loop
from diffusion_jax.types import Array, Denoise, Key, normal


class Churn(NamedTuple):
  """Stochasticity of EDM's Algorithm 2; a range of noise levels σ(t)/α(t), ends included."""

  rate: float  # S_churn
  s_min: float = 0.0  # S_tmin
  s_max: float = math.inf  # S_tmax
  noise: float = 1.0  # S_noise


def _churned(process: Process, x: Array, index, t, keys: Key, churn: Churn, count) -> tuple[Array, Array]:
  """Raises the noise level of x at t by equations (4) and (5); returns the new state and time."""
  n = process.noise_level(t)
  gamma = jnp.minimum(churn.rate / count, math.sqrt(2) - 1).astype(x.dtype)
  gamma = jnp.where((n >= churn.s_min) & (n <= churn.s_max), gamma, 0)
  t_hat = jnp.where(gamma > 0, process.inverse((1 + gamma) * n), t)
  alpha_hat = process.alpha(t_hat)
  scale = jnp.where(gamma > 0, alpha_hat / process.alpha(t), 1)
  added = alpha_hat * n * jnp.sqrt(gamma * (2 + gamma))  # n̂² − n² = n²γ(2 + γ)
  return scale * x + added * churn.noise * normal(keys, index, x.shape[1:], x.dtype), t_hat


def _solve(denoise, process, x, grid, keys, churn, trajectory, advance):
  x, grid = loop.prepare(x, grid, keys)
  if churn is not None and keys is None:
    raise ValueError("churn draws noise: keys must hold one PRNG key an image, got None")
  count = loop.num_steps(grid)

  def begin(x, index, t):
    return (x, t) if churn is None else _churned(process, x, index, t, keys, churn, count)

  def step(x, index, t, s):
    x, t = begin(x, index, t)
    return advance(x, t, s)

  def last(x, index, t, s):
    x, t = begin(x, index, t)
    pred = denoise(x, t)
    if process.jumps_to_zero:
      return ancestral.transition(process, pred, x, t, s, process.sigma(s))
    return x + (s - t) * process.velocity(pred, t)

  return loop.run(step, last, x, grid, trajectory)


def euler(
  denoise: Denoise,
  process: Process,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  churn: Churn | None = None,
  trajectory: bool = False,
):
  """Euler's method, equation (2): N evaluations for a grid of N steps, first order.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C], for instance `process.prior(keys, shape, grid[0])`.
    grid: [N+1] times of `process`, decreasing to 0.
    keys: [B] PRNG keys, one an image; needed for churn.
    churn: stochasticity, equations (4) and (5).
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, or keys are missing.
  """

  def advance(x, t, s):
    return x + (s - t) * process.velocity(denoise(x, t), t)

  return _solve(denoise, process, x, grid, keys, churn, trajectory, advance)


def heun(
  denoise: Denoise,
  process: Process,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  alpha: float = 1.0,
  churn: Churn | None = None,
  trajectory: bool = False,
):
  """Two-stage second-order method, equation (3): 2N − 1 evaluations for a grid of N steps.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0.
    keys: [B] PRNG keys, one an image; needed for churn.
    alpha: where the second evaluation lies, in (0, 1]: 1 Heun, 1/2 midpoint, 2/3 Ralston.
    churn: stochasticity, equations (4) and (5).
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, or keys are missing.
  """

  def advance(x, t, s):
    h = s - t
    d = process.velocity(denoise(x, t), t)
    t_mid = t + alpha * h
    d_mid = process.velocity(denoise(x + alpha * h * d, t_mid), t_mid)
    return x + h * ((1 - 0.5 / alpha) * d + 0.5 / alpha * d_mid)

  return _solve(denoise, process, x, grid, keys, churn, trajectory, advance)
