"""Multistep solvers of the probability flow: high order with one evaluation a step, from the estimates of steps before.

A rule turns the flow into x_s = L(x_t) + w·∫f dμ over the step from t to s, f a polynomial in the rule's clock through
the last estimates (polynomial.py). With one of them (3) is DDIM, and (2) Euler's method in the angle.

    Angle   y = x/r,  r = √(α² + σ²),  θ = arctan(σ/α)                                    (1)
            y_s = y_t + ∫ w dθ,  w = dy/dθ = (dx/dt·dt/dθ − dr/dθ·y)/r                    (2)
    DEIS    x_s/α_s = x_t/α_t + ∫ ε̂ dn,  n = σ/α,  ε̂ a polynomial in t  ("tAB")           (3)
            ∫ r^k dn = −k·∫_0^1 r^{k−1}(n(t + r(s − t)) − n_s) dr,  by quadrature         (4)
    Corrector: once f_s is known at the predicted x_s, the step from t is done again with it, as one point more;
      f_s is kept, so that a step still takes one evaluation                              (5)

For the pair of a Gaussian process that agrees, (2) is cos θ·ε̂ − sin θ·x̂_0: bounded at both ends, where dx/dt has an
infinite σ' (decoupled processes at 0) or x̂_0 a changing share of the motion. The decoupled process's own time is a bad
one for any solver: √t moves half of its way in a quarter of it.

The first steps have less history, hence a lower order. The step to t = 0 is the transition to x_0.
Sources: Zhang & Chen 2023 (DEIS, (3) with its tAB-k of order k + 1); Zhao et al. 2023 (UniPC, (5)).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process import Gaussian, Process
from diffusion_jax.samplers import loop, polynomial
from diffusion_jax.samplers.ancestral import transition
from diffusion_jax.types import Array, Denoise, Key, Prediction, like, normal

MAX_ORDER = 4
_U, _W = np.polynomial.legendre.leggauss(16)
# Of an integral over r in [0, 1], by r = 1 − u²: n(t) may be as √t near t = 0, where a step may end.
_NODES, _WEIGHTS = 1 - ((_U + 1) / 2) ** 2, _W * (_U + 1) / 2


class Interval(NamedTuple):
  """The step from t to s, x_s = linear·x_t + weight·∫f dμ + spread·z; r is 0 at t and 1 at s, linear in the clock."""

  linear: Array
  weight: Array
  moments: list[Array]  # ∫ r^k dμ, k = 0, …
  slope: Array | None = None  # in place of moments[1] where but one estimate joins f_t; None: moments[1]
  spread: Array | None = None  # None: no noise


class Rule(NamedTuple):
  """How a solver sees the flow.

  Attributes:
    clock: t -> the variable in which the estimates are polynomials.
    estimate: (pred, x, t) -> f [B, ...].
    interval: (t, s, count) -> Interval with moments up to `count`.
    first: (pred, x, t, s) -> x_s for constant f, of a rule whose linear·x + weight·M_0·f has no limit at α = 0.
  """

  clock: Callable
  estimate: Callable
  interval: Callable
  first: Callable | None = None


class Past(NamedTuple):
  """What a step leaves to the next."""

  estimates: tuple[Array, ...]  # the newest first
  clocks: tuple[Array, ...]
  x: Array  # the state that the step was made from
  t: Array


def solve(
  denoise: Denoise,
  process: Process,
  x: Array,
  grid: Array,
  keys: Key | None,
  trajectory: bool,
  rule: Rule,
  order: int,
  corrector: int = 0,
  lower_final: bool = False,
):
  """Solves by a rule from grid[0] to 0.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0; N >= order.
    keys: [B] PRNG keys, one an image, of a rule that draws noise.
    trajectory: also return the states at all grid values, those that the network saw.
    rule: see there.
    order: estimates that a step uses, f_t the first of them; 1 to MAX_ORDER.
    corrector: estimates beside f_t with which (5) does a step again, f_s the first of them; 0 does not. A rule with
      `first` has none.
    lower_final: use no more estimates than there are steps left, the one to 0 included.

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, or the order is not one of it.
  """
  x, grid = loop.prepare(x, grid, keys)
  process.check_times(grid)
  check_order(order, grid)
  size, steps = max(order - 1, corrector), loop.num_steps(grid)

  def advance(pred, x, f, t, s, index, others, known):
    values, clocks = [value for value, _ in others], [clock for _, clock in others]
    interval = rule.interval(t, s, len(others))
    moments = list(interval.moments)
    if interval.slope is not None and others:
      moments[1] = jnp.where(known == 1, interval.slope, moments[1])
    start, length = rule.clock(t), rule.clock(s) - rule.clock(t)
    nodes = [(clock - start) / jnp.where(length == 0, 1, length) for clock in clocks]
    out = interval.linear * x + interval.weight * moments[0] * f if rule.first is None else rule.first(pred, x, t, s)
    out = out + interval.weight * polynomial.correction(moments, nodes, values, f, known)
    return out if interval.spread is None else out + interval.spread * normal(keys, index, x.shape[1:], x.dtype)

  def step(state, index, t, s):
    x, past = state
    pred, left = denoise(x, t), steps - index if lower_final else size + 1
    f, old = rule.estimate(pred, x, t), list(zip(past.estimates, past.clocks))
    if corrector:
      others = [(f, rule.clock(t)), *old[1:corrector]]
      known = jnp.minimum(jnp.minimum(corrector, index), left + 1)
      again = advance(None, past.x, past.estimates[0], past.t, t, jnp.maximum(index - 1, 0), others, known)
      x = jnp.where(index > 0, again, x)
    known = jnp.minimum(jnp.minimum(order - 1, index), left - 1)
    out = advance(pred, x, f, t, s, index, old[: order - 1], known)
    new = [(f, rule.clock(t)), *old][:size]
    return out, Past(tuple(value for value, _ in new), tuple(clock for _, clock in new), x, t)

  def last(state, index, t, s):
    x, _ = state
    return process.image(transition(process, denoise(x, t), x, t, s, process.sigma(s)))

  zero = jnp.zeros((), x.dtype)
  past = Past((jnp.zeros_like(x),) * size, (zero,) * size, jnp.zeros_like(x), jnp.asarray(grid[0]))
  return loop.run(step, last, x, grid, trajectory, memory=past)


def check_order(order: int, grid):
  """Raises ValueError unless the order is 1 to MAX_ORDER and the grid, where it is known, has so many steps."""
  if not 1 <= order <= MAX_ORDER:
    raise ValueError(f"order must be 1 to {MAX_ORDER}, got {order}")
  if not isinstance(grid, jax.core.Tracer) and order > (steps := int(np.sum(grid[1:] != grid[:-1]))):
    raise ValueError(f"order must be at most the number of steps ({steps}), got {order}")


def order_or(default: int, order: int | None, grid) -> int:
  """The order, or the default where it is None: as many as the steps of a shorter grid, where that is known."""
  if order is not None or isinstance(grid, jax.core.Tracer) or np.ndim(grid) != 1:
    return default if order is None else order
  return max(1, min(default, int(np.sum(np.diff(grid) != 0))))


def rotation(process: Process, pred: Prediction, x: Array, t) -> Array:
  """w = dy/dθ of equation (2) at x_t, [B, ...]; t is a scalar or [B]."""
  (r, _), (dr, dtheta) = jax.jvp(process.polar, (t,), (jnp.ones_like(t),))
  r, dr, dtheta = (like(value, x) for value in (r, dr, dtheta))
  return (process.velocity(pred, t) - dr / r * x) / (r * dtheta)


def multistep(
  denoise: Denoise,
  process: Process,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  order: int | None = None,
  trajectory: bool = False,
):
  """Adams' and Bashforth's rules in the angle, equations (1) and (2): N evaluations for a grid of N steps.

  Serves every process, of Gaussian ones too where the two estimates of a network do not agree, as DDM's.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0; for decoupled ones `times.decoupled_grid(N, power)` with power
      2 or 3 is better than uniform steps by far.
    keys: unused: nothing is drawn.
    order: 1 to 4, at most N; None is 2, or 1 for N = 1.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, or order is out of range.
  """

  def interval(t, s, count):
    (r, theta), (r_s, theta_s) = process.polar(t), process.polar(s)
    return Interval(r_s / r, r_s * (theta_s - theta), [1 / (k + 1) for k in range(count + 1)])

  rule = Rule(lambda t: process.polar(t)[1], lambda pred, x, t: rotation(process, pred, x, t), interval)
  return solve(denoise, process, x, grid, keys, trajectory, rule, order_or(2, order, grid))


def deis(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  order: int | None = None,
  trajectory: bool = False,
):
  """DEIS, equations (3) and (4): N evaluations for a grid of N steps.

  A polynomial in the process's own t, so that the process chooses it: in EDM's it is one in the noise level ("ρAB").

  Args:
    denoise: the pair of estimates at (x, t); the noise is used, and both in the first step.
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0.
    keys: unused: nothing is drawn.
    order: 1 to 4, at most N; None is 3, or N of a shorter grid. The paper's tAB-k has the order k + 1.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, order is out of range, or the process
      has no noise levels.
  """

  process.need_gaussian()

  def interval(t, s, count):
    n_s = process.noise_level(s)
    r = jnp.asarray(_NODES, n_s.dtype)
    risen = jnp.asarray(_WEIGHTS, n_s.dtype) * (process.noise_level(t + r * (s - t)) - n_s)
    moments = [n_s - process.noise_level(t), *(-k * jnp.sum(r ** (k - 1) * risen) for k in range(1, count + 1))]
    return Interval(jnp.ones_like(n_s), process.alpha(s), moments)

  first = lambda pred, x, t, s: transition(process, pred, x, t, s, process.sigma(s))
  rule = Rule(lambda t: t, lambda pred, x, t: pred.eps, interval, first)
  return solve(denoise, process, x, grid, keys, trajectory, rule, order_or(3, order, grid))
