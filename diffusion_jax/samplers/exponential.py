"""Multistep solvers on log-SNR: exact in the linear part, the image estimate a polynomial in λ.

    λ = log(α/σ),  h = λ_s − λ_t > 0;  x̂_0 over the step is p(r), r = (λ − λ_t)/h         (1)
    x_s = (σ_s/σ_t)·e^{−τ²h}·x_t + α_s·(1 + τ²)h·∫_0^1 e^{−(1+τ²)h(1−r)}·p(r) dr
          + σ_s·√(1 − e^{−2τ²h})·z                                                        (2)

τ = 0 is the probability flow, τ = 1 the reverse SDE; every τ has the same marginals (Xue et al. 2023). Of polynomial.py
the moments at z = −(1 + τ²)h serve, but for the weight of the difference in a step that has two estimates alone:

    "bh1"  M_1 → ½        "bh2"  M_1 → ½·M_0        None  as it is                        (3)

"bh2" makes the second order that of DPM-Solver++(2M). UniPC's B(h) cancels out of all but (3); UniPC-p is the predictor
with p estimates and the corrector with p + 1.

Sources: Lu et al. 2022 (DPM-Solver++), Zhao et al. 2023 (UniPC), Xue et al. 2023 (SA-Solver).
"""

import jax.numpy as jnp

from diffusion_jax.process import Gaussian
from diffusion_jax.samplers import loop, polynomial
from diffusion_jax.samplers.multistep import Interval, Rule, order_or, solve
from diffusion_jax.types import Array, Denoise, Key

VARIANTS = ("bh1", "bh2")


def log_snr(process: Gaussian, t) -> Array:
  """λ = log(α/σ), half of the logarithm of the signal-to-noise ratio; at α = 0 that of MAX_NOISE_LEVEL."""
  return -jnp.log(process.noise_level(t))


def _rule(process: Gaussian, variant: str | None = None, tau=None) -> Rule:
  """Equations (2) and (3); `tau` is a function of t, or None for no noise."""

  process.need_gaussian()

  def interval(t, s, count):
    h = log_snr(process, s) - log_snr(process, t)
    square = 0.0 if tau is None else tau(t) ** 2
    moments = polynomial.exponential_moments(-(1 + square) * h, max(count, 1))
    slope = {"bh1": 0.5, "bh2": 0.5 * moments[0], None: moments[1]}[variant]
    linear = process.sigma(s) / process.sigma(t) * jnp.exp(-square * h)
    spread = None if tau is None else process.sigma(s) * jnp.sqrt(-jnp.expm1(-2 * square * h))
    return Interval(linear, process.alpha(s) * (1 + square) * h, moments, slope, spread)

  return Rule(lambda t: log_snr(process, t), lambda pred, x, t: process.decode(pred.clean), interval)


def dpmpp_2m(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  lower_final: bool = True,
  trajectory: bool = False,
):
  """DPM-Solver++(2M), (2) with two estimates and "bh2": N evaluations for a grid of N steps, second order.

  Args:
    denoise: the pair of estimates at (x, t); the image is used.
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0; N >= 2.
    keys: unused: nothing is drawn.
    lower_final: use no more estimates than there are steps left, the one to 0 included.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0 or is too short, or the process has no
      noise levels.
  """
  return solve(denoise, process, x, grid, keys, trajectory, _rule(process, "bh2"), 2, lower_final=lower_final)


def dpmpp_3m(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  lower_final: bool = True,
  trajectory: bool = False,
):
  """DPM-Solver++(3M), (2) with three estimates: N evaluations for a grid of N >= 3 steps, third order.

  Its second step is that of `dpmpp_2m`, whose arguments and result it has.
  """
  return solve(denoise, process, x, grid, keys, trajectory, _rule(process, "bh2"), 3, lower_final=lower_final)


def dpmpp_2m_sde(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key,
  *,
  tau: float | Array = 1.0,
  lower_final: bool = True,
  trajectory: bool = False,
):
  """SDE-DPM-Solver++(2M), (2) with τ > 0, two estimates and "bh2": N evaluations for a grid of N steps.

  The drift is of second order, the result of weak order 1 in general, as its noise and its estimates meet in the step.

  Args:
    denoise: the pair of estimates at (x, t); the image is used.
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0; N >= 2.
    keys: [B] PRNG keys, one an image.
    tau: τ >= 0, 1 the reverse SDE, 0 `dpmpp_2m`. May be traced.
    lower_final: use no more estimates than there are steps left, the one to 0 included.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0 or is too short, keys are missing, or
      the process has no noise levels.
  """
  loop.need_keys("dpmpp_2m_sde", keys)
  rule = _rule(process, "bh2", lambda t: tau)
  return solve(denoise, process, x, grid, keys, trajectory, rule, 2, lower_final=lower_final)


def unipc(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  order: int | None = None,
  variant: str = "bh2",
  lower_final: bool = True,
  trajectory: bool = False,
):
  """UniPC-p on the image estimate, (2) with its corrector: N evaluations for a grid of N steps, order p + 1 in h.

  Args:
    denoise: the pair of estimates at (x, t); the image is used.
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0; N >= order.
    keys: unused: nothing is drawn.
    order: p, 1 to 3; None is 3, or N of a shorter grid. With "bh2" and without its corrector UniPC-2 is `dpmpp_2m`,
      UniPC-3 `dpmpp_3m`.
    variant: "bh1" or "bh2", equation (3); in steps that use two estimates alone.
    lower_final: use no more estimates than there are steps left, the one to 0 included.
    trajectory: also return the states at all grid values, as they were before their correction.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, order or variant is none of these, or
      the process has no noise levels.
  """
  if variant not in VARIANTS:
    raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
  order = order_or(3, order, grid)
  _check_order("unipc", order)
  rule = _rule(process, variant)
  return solve(denoise, process, x, grid, keys, trajectory, rule, order, corrector=order, lower_final=lower_final)


def sa_solver(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key,
  *,
  order: int | None = None,
  tau: float | Array = 1.0,
  s_min: float | Array = 0.05,
  s_max: float | Array = 1.0,
  lower_final: bool = True,
  trajectory: bool = False,
):
  """SA-Solver, (2) with exact weights and its corrector: N evaluations for a grid of N steps.

  Adams–Bashforth's predictor with `order` estimates and Adams–Moulton's corrector with one more; the corrector adds the
  noise that the predictor drew. τ is constant over a step, τ of its start.

  Args:
    denoise: the pair of estimates at (x, t); the image is used.
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0; N >= order.
    keys: [B] PRNG keys, one an image.
    order: 1 to 3; None is 3, or N of a shorter grid.
    tau: τ >= 0 at noise levels in [s_min, s_max], 0 elsewhere. May be traced.
    s_min: the smallest noise level with noise. May be traced.
    s_max: the largest. May be traced.
    lower_final: use no more estimates than there are steps left, the one to 0 included.
    trajectory: also return the states at all grid values, as they were before their correction.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, order is out of range, keys are
      missing, or the process has no noise levels.
  """
  loop.need_keys("sa_solver", keys)
  order = order_or(3, order, grid)
  _check_order("sa_solver", order)

  def tau_at(t):
    n = process.noise_level(t)
    return jnp.where((n >= s_min) & (n <= s_max), tau, 0)

  rule = _rule(process, None, tau_at)
  return solve(denoise, process, x, grid, keys, trajectory, rule, order, corrector=order, lower_final=lower_final)


def _check_order(name: str, order: int):
  if not 1 <= order <= 3:
    raise ValueError(f"order of {name} must be 1 to 3, got {order}")
