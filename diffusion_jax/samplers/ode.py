"""Solvers of the probability-flow ODE, one step a grid interval.

    dx/dt = ∂m/∂t(ĉ, t) + σ'(t)·ε̂,  (ĉ, ε̂) = denoise(x, t)                              (1)
    Euler:  x_s = x_t + (s − t)·d,  d = dx/dt at (x_t, t)                               (2)
    Heun family (Karras et al. 2022, Algorithms 1 and 3), h = s − t:
      d' = dx/dt at (x_t + αhd, t + αh),  x_s = x_t + h[(1 − 1/(2α))d + 1/(2α)·d']      (3)
      α = 1 Heun, ½ midpoint, ⅔ Ralston; the last step, to t = 0, is (2)
    DDM: σ' is infinite at 0, so that the last step is the transition x_0 = x_t + m(ĉ, 0) − m(ĉ, t) − σ_t·ε̂;
      (1) is the probability flow where m is linear in ĉ, not for exponential and sine attenuations
    Churn (Algorithm 2): before a step the noise level grows from n to n̂ = (1 + γ)n
      γ = min(S_churn/N, √2 − 1) if n ∈ [S_tmin, S_tmax], else 0                        (4)
      x̂ = α(t̂)/α(t)·x + α(t̂)·√(n̂² − n²)·S_noise·z,  t̂ = inverse(n̂)                    (5)
    Inversion: (3) upward; its first step, from 0 to the grid's smallest positive t, undoes (2)
      with the estimates at (α(t)·x_0, t), since those at (x_t, t) are not known yet     (6)
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.process import Gaussian, Process
from diffusion_jax.samplers import ancestral, loop
from diffusion_jax.types import Array, Denoise, Key, Prediction, normal


class Churn(NamedTuple):
  """Stochasticity of EDM's Algorithm 2; a range of noise levels σ(t)/α(t), ends included."""

  rate: float  # S_churn
  s_min: float = 0.0  # S_tmin
  s_max: float = math.inf  # S_tmax
  noise: float = 1.0  # S_noise
  levels: Array | None = None  # noise levels [M] of which n̂ is the nearest, for networks that know no others


def _churned(process: Process, x: Array, index, t, keys: Key, churn: Churn, count) -> tuple[Array, Array]:
  """Raises the noise level of x at t by equations (4) and (5); returns the new state and time."""
  n = process.noise_level(t)
  gamma = jnp.minimum(churn.rate / count, math.sqrt(2) - 1).astype(x.dtype)
  gamma = jnp.where((n >= churn.s_min) & (n <= churn.s_max), gamma, 0)
  if churn.levels is not None:
    levels = jnp.asarray(churn.levels, x.dtype)
    nearest = levels[jnp.argmin(jnp.abs(levels - (1 + gamma) * n))]
    gamma = jnp.where(gamma > 0, jnp.maximum(nearest / n - 1, 0), 0)
  t_hat = jnp.where(gamma > 0, process.inverse((1 + gamma) * n), t)
  alpha_hat = process.alpha(t_hat)
  scale = jnp.where(gamma > 0, alpha_hat / process.alpha(t), 1)
  added = alpha_hat * n * jnp.sqrt(gamma * (2 + gamma))  # n̂² − n² = n²γ(2 + γ)
  return scale * x + added * churn.noise * normal(keys, index, x.shape[1:], x.dtype), t_hat


def _two_stage(denoise: Denoise, process: Process, alpha):
  """The step of equation (3) between positive times, downward or upward: advance(x, t, s)."""

  def advance(x, t, s):
    h = s - t
    d = process.velocity(denoise(x, t), t)
    t_mid = t + alpha * h
    d_mid = process.velocity(denoise(x + alpha * h * d, t_mid), t_mid)
    return x + h * ((1 - 0.5 / alpha) * d + 0.5 / alpha * d_mid)

  return advance


def _at_zero(process: Process, pred: Prediction, x: Array, t, s) -> Array:
  """The step that starts or ends at 0, by the estimates at the positive one of t and s."""
  if process.jumps_to_zero:
    return ancestral.transition(process, pred, x, t, s, process.sigma(s))
  return x + (s - t) * process.velocity(pred, jnp.maximum(t, s))


def _solve(denoise, process, x, grid, keys, churn, trajectory, advance):
  x, grid = loop.prepare(x, grid, keys)
  process.check_times(grid)
  if churn is not None:
    loop.need_keys("churn", keys)
  count = loop.num_steps(grid)

  def begin(x, index, t):
    return (x, t) if churn is None else _churned(process, x, index, t, keys, churn, count)

  def step(x, index, t, s):
    x, t = begin(x, index, t)
    return advance(x, t, s)

  def last(x, index, t, s):
    x, t = begin(x, index, t)
    return process.image(_at_zero(process, denoise(x, t), x, t, s))

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
  return _solve(denoise, process, x, grid, keys, churn, trajectory, _two_stage(denoise, process, alpha))


def invert(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  alpha: float = 1.0,
  trajectory: bool = False,
):
  """From images to the latents that `heun` leads back from, equations (3) and (6): 2N − 1 evaluations.

  The probability flow run up the sampler's own grid: second order in the step. On the way back by `heun` the leading
  errors of the two directions cancel, which leaves the third. The first step, (6), is explicit where undoing `heun`'s
  last one exactly would be implicit: x comes back to O(σ_min) at worst, to O(σ_min⁴) where the data have a density
  that is smooth at the scale σ_min = noise_level(grid[-2]); the step itself is then right to O(σ_min²).

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of the latents and t.
    x: images x_0, [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0, as for sampling.
    keys: unused: nothing is drawn.
    alpha: where the second evaluation of a step lies, as for `heun`.
    trajectory: also return the states at all grid values.

  Returns:
    The state at grid[0] [B, H, W, C]; with trajectory, (it, states [N+1, B, H, W, C] in the grid's order).

  Raises:
    ValueError: an argument has the wrong shape, or the grid does not decrease to 0.
  """
  x, grid = loop.prepare(x, grid, keys)
  advance = _two_stage(denoise, process, alpha)

  def first(x0, s):
    return _at_zero(process, denoise(process.alpha(s) * x0, s), x0, jnp.zeros_like(s), s)

  return loop.rise(lambda x, index, t, s: advance(x, t, s), first, x, grid, trajectory)
