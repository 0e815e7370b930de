"""What the solvers must give for data N(m, s²I), in float64 NumPy, each from its paper's formulas and by quadrature.

The best denoiser is affine in x, so that a state is a vector of coefficients [of 1, of the start, of each z], and a
whole run is a row of such vectors. Integrals are of Lagrange's polynomials, by scipy's quadrature.
"""

import numpy as np
from numpy.polynomial import Polynomial
from scipy.integrate import quad

LARGEST = 1e6  # the noise level that stands for the infinite one


def level(schedule, t):
  alpha, sigma = schedule(t)[:2]
  return min(sigma / alpha, LARGEST) if alpha > 0 else LARGEST


def lam(schedule, t):
  return -np.log(level(schedule, t))


def pair(schedule, m, s2, x, t):
  alpha, sigma = schedule(t)[:2]
  one = np.eye(len(x))[0]
  x0 = m * one + alpha * s2 / (alpha**2 * s2 + sigma**2) * (x - alpha * m * one)
  return x0, sigma * (x - alpha * m * one) / (alpha**2 * s2 + sigma**2)


def lagrange(nodes, j):
  out = Polynomial([1.0])
  for i, node in enumerate(nodes):
    if i != j:
      out = out * Polynomial([-node, 1.0]) / (nodes[j] - node)
  return out


def ddim(schedule, m, s2, x, t, s):
  x0, eps = pair(schedule, m, s2, x, t)
  return schedule(s)[0] * x0 + schedule(s)[1] * eps


def data_step(schedule, x, t, s, points, tau=0.0, variant=None, z=None):
  """points = [(λ, x̂_0)], that at t first: the exact integral of their polynomial, or UniPC's and 2M's rule for two."""
  (_, sigma_t), (alpha, sigma) = schedule(t)[:2], schedule(s)[:2]
  start, end = lam(schedule, t), lam(schedule, s)
  h, square = end - start, tau**2
  out = sigma / sigma_t * np.exp(-square * h) * x
  if z is not None:
    out = out + sigma * np.sqrt(1 - np.exp(-2 * square * h)) * z
  if len(points) == 2 and variant:
    (_, f), (clock, other) = points
    r = (clock - start) / h
    whole = alpha * (1 - np.exp(-(1 + square) * h))
    b = {"bh1": alpha * (1 + square) * h, "bh2": whole}[variant]
    return out + whole * f + b * 0.5 * (other - f) / r
  clocks = [clock for clock, _ in points]
  for j, (_, f) in enumerate(points):
    p = lagrange(clocks, j)
    weight = lambda u: sigma * np.exp(u - square * (end - u)) * (1 + square) * p(u)
    out = out + quad(weight, start, end, epsabs=1e-13, epsrel=1e-12, limit=200)[0] * f
  return out


def exponential(schedule, m, s2, grid, order, corrector=0, variant=None, tau=None, lower_final=True):
  """[states at the grid's positive values], coefficients [N + 2]."""
  steps, size = len(grid) - 1, len(grid) + 1
  unit, x, states, past = np.eye(size), np.eye(size)[1], [], []
  tau = tau or (lambda t: 0.0)
  before = None
  for i, t in enumerate(grid[:-1]):
    states.append(x)
    f = pair(schedule, m, s2, x, t)[0]
    here = (lam(schedule, t), f)
    if corrector and i:
      count = min(corrector, i, *([steps - i + 1] if lower_final else []))
      x_before, t_before, z = before
      points = [past[0], here, *past[1:]][: count + 1]
      x = data_step(schedule, x_before, t_before, t, points, tau(t_before), variant, z)
    if i == steps - 1:
      break
    s, count = grid[i + 1], min(order, i + 1, *([steps - i] if lower_final else []))
    z = unit[i + 2] if tau(t) else None
    before, past = (x, t, z), [here, *past]
    x = data_step(schedule, x, t, s, past[:count], tau(t), variant, z)
  return states


def singlestep(schedule, m, s2, grid, name):
  x, states = np.eye(2)[1], []
  for t, s in zip(grid[:-1], grid[1:]):
    states.append(x)
    if s == 0:
      break
    if schedule(t)[0] == 0:
      x = ddim(schedule, m, s2, x, t, s)
      continue
    start, h = lam(schedule, t), lam(schedule, s) - lam(schedule, t)
    eps_at = lambda x, t: pair(schedule, m, s2, x, t)[1]
    inside = lambda r: _time(schedule, start + r * h, t, s)
    a, sig = (lambda u: schedule(u)[0]), (lambda u: schedule(u)[1])
    if name == "dpm_solver_2":  # Algorithm 1
      u = a(inside(0.5)) / a(t) * x - sig(inside(0.5)) * np.expm1(h / 2) * eps_at(x, t)
      x = a(s) / a(t) * x - sig(s) * np.expm1(h) * eps_at(u, inside(0.5))
    elif name == "dpm_solver_3":  # Algorithm 2
      t1, t2, e = inside(1 / 3), inside(2 / 3), eps_at(x, t)
      u1 = a(t1) / a(t) * x - sig(t1) * np.expm1(h / 3) * e
      d1 = eps_at(u1, t1) - e
      u2 = a(t2) / a(t) * x - sig(t2) * np.expm1(2 * h / 3) * e
      u2 = u2 - sig(t2) * 2 * (np.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1
      d2 = eps_at(u2, t2) - e
      x = a(s) / a(t) * x - sig(s) * np.expm1(h) * e - sig(s) * 1.5 * (np.expm1(h) / h - 1) * d2
    else:  # DPM-Solver++, Algorithm 1, r = 1/2: D = x̂_0 of the middle
      f, middle = pair(schedule, m, s2, x, t)[0], inside(0.5)
      u = sig(middle) / sig(t) * x - a(middle) * np.expm1(-h / 2) * f
      x = sig(s) / sig(t) * x - a(s) * np.expm1(-h) * pair(schedule, m, s2, u, middle)[0]
  return states


def _time(schedule, target, t, s):
  """Bisection for the time with λ = target between t and s."""
  lo, hi = s, t
  for _ in range(200):
    mid = (lo + hi) / 2
    lo, hi = (mid, hi) if lam(schedule, mid) > target else (lo, mid)
  return (lo + hi) / 2


def in_angle(schedule, m, s2, grid, order):
  """Adams–Bashforth in θ = arctan(σ/α) for x/√(α² + σ²)."""
  angle = lambda t: np.arctan2(schedule(t)[1], schedule(t)[0])
  radius = lambda t: np.hypot(*schedule(t)[:2])
  x, states, past = np.eye(2)[1], [], []
  for t, s in zip(grid[:-1], grid[1:]):
    states.append(x)
    if s == 0:
      break
    x0, eps = pair(schedule, m, s2, x, t)
    past = [(angle(t), np.cos(angle(t)) * eps - np.sin(angle(t)) * x0), *past][:order]
    y = x / radius(t)
    for j, (_, w) in enumerate(past):
      whole = lagrange([clock for clock, _ in past], j).integ()
      y = y + (whole(angle(s)) - whole(angle(t))) * w
    x = y * radius(s)
  return states


def deis(schedule, m, s2, grid, order):
  """x_s/α_s = x_t/α_t + ∫ ε̂ dn with ε̂ a polynomial in t; DDIM from α = 0."""
  x, states, past = np.eye(2)[1], [], []

  def rate(t):
    alpha, sigma, d_alpha, d_sigma = schedule(t)
    return (d_sigma * alpha - sigma * d_alpha) / alpha**2

  for t, s in zip(grid[:-1], grid[1:]):
    states.append(x)
    if s == 0:
      break
    past = [(t, pair(schedule, m, s2, x, t)[1]), *past][:order]
    if len(past) == 1:
      x = ddim(schedule, m, s2, x, t, s)
      continue
    out = x / schedule(t)[0]
    for j, (_, eps) in enumerate(past):
      p = lagrange([clock for clock, _ in past], j)
      out = out + quad(lambda u: rate(u) * p(u), t, s, epsabs=1e-13, epsrel=1e-12, limit=200)[0] * eps
    x = schedule(s)[0] * out
  return states
