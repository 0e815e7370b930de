"""Algorithm 2 and the ODE solvers on decoupled processes: by hand for given heads, exact heads, orders, refit."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from test_decoupled_process import RATES, integral, keys_of, scale_of, split

from diffusion_jax import process, samplers, times
from diffusion_jax.types import Prediction, normal

M, S2, SHAPE = 0.3, 0.64, (2, 3, 3, 1)


def random_grid(n, seed=0):
  t = np.sort(np.random.default_rng(seed).uniform(0.01, 0.98, n - 1))[::-1]
  return np.concatenate([[1.0], t, [0.0]])


def step(name, x, phi, eps, t, s, z):
  """Algorithm 2 as printed, with H by quadrature; phi are parameters [k, ...]."""
  size = t - s
  x = x + integral(name, phi, s) - integral(name, phi, t) - size / np.sqrt(t) * eps
  return x + np.sqrt(size * (t - size) / t) * z


def noise(i):
  return np.asarray(normal(keys_of(2), i, SHAPE[1:], jnp.float64))


@pytest.mark.parametrize("name", RATES)
def test_heads_that_disagree_give_algorithm_2(name, x64):
  p, grid = process.Decoupled(name), random_grid(5)
  x, eps = jax.random.normal(jax.random.key(1), (2, *SHAPE), float)
  clean = jax.random.normal(jax.random.key(2), (*SHAPE[:-1], p.parameters), float)
  out = samplers.decoupled(lambda x, t: Prediction(clean, eps), p, x, grid, keys_of(2))
  x, phi = np.asarray(x), split(p, clean)
  for i, (t, s) in enumerate(zip(grid[:-1], grid[1:])):
    x = step(name, x, phi, np.asarray(eps), t, s, noise(i))
  np.testing.assert_allclose(out, x / scale_of(p), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "sine"])
def test_refit_solves_the_image_from_both_heads(name, x64):
  """x̂_0 = clip(x_t − H_t(φ̂) − √t·ε̂) takes the place of the image in φ̂; free parameters stay."""
  p, grid, scale = process.Decoupled(name), random_grid(4), 0.72 if name == "sine" else 1.0
  x, eps = jax.random.normal(jax.random.key(1), (2, *SHAPE), float)
  clean = jax.random.normal(jax.random.key(2), (*SHAPE[:-1], p.parameters), float)
  out = samplers.decoupled(lambda x, t: Prediction(clean, eps), p, x, grid, keys_of(2), refit=0.8)
  x, eps, clipped = np.asarray(x), np.asarray(eps), 0
  for i, (t, s) in enumerate(zip(grid[:-1], grid[1:])):
    phi = split(p, clean)
    x0 = (x - integral(name, phi, t) - np.sqrt(t) * eps) / scale
    clipped += np.mean(np.abs(x0) > 0.8)
    x0 = np.clip(x0, -0.8, 0.8)
    phi = np.stack([phi[0], -x0 - phi[0] / 2]) if name == "linear" else split(p, p.encode(None, jnp.asarray(x0)))
    x = step(name, x, phi, eps, t, s, noise(i))
  np.testing.assert_allclose(out, x / scale, rtol=1e-8, atol=1e-8)
  assert 0 < clipped < 4


# --- exact heads for data N(m, s²) ------------------------------------------------------------------------------------


def shares(name, t):
  """m(φ, t) = (1 − t)·(x_0 + Σ share·free parameter)."""
  return {"constant": [], "linear": [-t / 2], "quadratic": [-t * (1 + t) / 3, -t / 2]}[name]


def moments(name, t):
  """Mean and variance of x_t."""
  return (1 - t) * M, (1 - t) ** 2 * (S2 + sum(share**2 for share in shares(name, t))) + t


def exact(name, x, t, xp=np):
  """E[φ | x_t] [k, ...] and E[ε | x_t]: the prior's φ and ε are normal, and x_t is linear in them."""
  mean, variance = moments(name, t)
  gain = (x - mean) / variance
  free = [(1 - t) * share * gain for share in shares(name, t)]
  x0 = M + (1 - t) * S2 * gain
  bend = {0: 0, 1: sum(free) / 2, 2: sum(f / k for f, k in zip(free, (3, 2)))}[len(free)]
  return xp.stack([*free, -x0 - bend]), xp.sqrt(t) * gain


def exact_denoise(name):
  def denoise(x, t):
    phi, eps = exact(name, x, t, jnp)
    return Prediction(jnp.concatenate(list(phi), -1), eps)

  return denoise


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("name", ["constant", "linear", "quadratic"])
def test_exact_heads_sample_the_exact_recursion(name, n, x64):
  """Path by path on a random grid; the recursion's moments go to the data's as steps shrink."""
  p, grid = process.Decoupled(name), random_grid(n, seed=n)
  x = jax.random.normal(jax.random.key(1), SHAPE, float)
  out = samplers.decoupled(exact_denoise(name), p, x, grid, keys_of(2))
  x = np.asarray(x)
  for i, (t, s) in enumerate(zip(grid[:-1], grid[1:])):
    x = step(name, x, *exact(name, x, t), t, s, noise(i))
  np.testing.assert_allclose(out, x, rtol=1e-9, atol=1e-9)
  if n == 1:
    np.testing.assert_allclose(out, M, atol=1e-9)  # at t = 1 nothing is known
    return
  mean, variance, grid = 0.0, 1.0, times.decoupled_grid(400)
  for t, s in zip(grid[:-1], grid[1:]):
    low, high = (step(name, np.float64(v), *exact(name, np.float64(v), t), t, s, 0.0) for v in (0.0, 1.0))
    mean, variance = (high - low) * mean + low, (high - low) ** 2 * variance + s * (t - s) / t
  assert abs(mean - M) < 1e-9 and abs(variance - S2) < 0.02  # first order in the step


def solved(solver, name, grid, x):
  p = process.Decoupled(name)
  _, states = getattr(samplers, solver)(exact_denoise(name), p, x, grid, trajectory=True)
  return np.asarray(states[-2])


@pytest.mark.parametrize("name", ["constant", "linear", "quadratic"])
@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2), ("ddim", 1), ("multistep", 2)])
def test_orders_of_the_flow_from_one_to_delta(solver, order, name, x64):
  """The flow of normal data keeps (x − mean)/std; its error at δ = .1, of grids of n and 2n steps from t = 1."""
  x, delta = jnp.linspace(-2, 2, 18).reshape(SHAPE), 0.1
  (mean1, v1), (mean, v) = moments(name, 1.0), moments(name, delta)
  expected = mean + np.sqrt(v / v1) * (np.asarray(x) - mean1)

  def error(n):
    grid = np.append(1 + np.arange(n + 1) / n * (delta - 1), 0.0)
    return np.abs(solved(solver, name, grid, x) - expected).max()

  assert abs(np.log2(error(24) / error(48)) - order) < 0.25


@pytest.mark.parametrize("n", [1, 6])
def test_multistep_is_adams_and_bashforths_rule_in_the_angle(n, x64):
  """In NumPy for constant h and exact heads: y = x/r, dy/dθ = cos θ·ε̂ − sin θ·x̂_0, θ = arctan(√t/(1 − t))."""
  x, grid = jax.random.normal(jax.random.key(1), SHAPE, float), times.decoupled_grid(n, power=3)
  out = samplers.multistep(exact_denoise("constant"), process.Decoupled(), x, grid)
  x, before = np.asarray(x), None
  for t, s in zip(grid[:-1], grid[1:]):
    (phi,), eps = exact("constant", x, t)
    theta, end = (np.arctan2(np.sqrt(v), 1 - v) for v in (t, s))
    if s == 0:
      x = -phi
      break
    rate = np.cos(theta) * eps + np.sin(theta) * phi
    h = end - theta
    bend = 0 if before is None else h / (2 * (theta - before[0])) * (rate - before[1])
    before = theta, rate
    x = np.hypot(1 - s, np.sqrt(s)) * (x / np.hypot(1 - t, np.sqrt(t)) + h * (rate + bend))
  np.testing.assert_allclose(out, x, rtol=1e-9, atol=1e-9)


def test_few_steps_of_the_multistep_rule_on_a_mixture(x64):
  """The flow of three modes to x_0 in 10 evaluations: a tenth of the error of Heun's and Euler's uniform steps."""
  p, x = process.Decoupled(), jnp.linspace(-2.5, 2.5, 64).reshape(1, 8, 8, 1)
  denoise = oracle.scalar_mixture_denoise(p, oracle.MIXTURE)
  expected = oracle.mixture_flow(oracle.decoupled, oracle.MIXTURE, np.asarray(x).ravel(), 1.0, 1e-6)

  def error(solver, grid):
    return np.mean(np.abs(np.asarray(getattr(samplers, solver)(denoise, p, x, grid)).ravel() - expected))

  best = error("multistep", times.decoupled_grid(10, power=3))
  assert best < 0.1 * error("heun", times.decoupled_grid(5)) and best < 0.1 * error("ddim", times.decoupled_grid(10))
  assert best < 0.3 * error("heun", times.decoupled_grid(5, power=3))


def test_the_solvers_end_with_a_transition(x64):
  """Where σ' is infinite: x_0 = x_t + m(φ̂, 0) − m(φ̂, t) − √t·ε̂, which leaves no noise; n evaluations for n steps."""
  p, x = process.Decoupled("linear"), jax.random.normal(jax.random.key(1), SHAPE, float)
  phi, eps = exact("linear", np.asarray(x), 0.3)
  expected = np.asarray(x) - integral("linear", phi, 0.3) - np.sqrt(0.3) * eps
  for solver in ("euler", "heun", "ddim"):
    out = getattr(samplers, solver)(exact_denoise("linear"), p, x, [0.3, 0.0])
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)
  calls = []
  counted = lambda x, t: (calls.append(float(t)), exact_denoise("linear")(x, t))[1]
  with jax.disable_jit():
    samplers.decoupled(counted, p, x, times.decoupled_grid(5), keys_of(2))
  np.testing.assert_allclose(calls, [1.0, 0.8, 0.6, 0.4, 0.2])


def test_bad_grids_and_samplers_are_named():
  p, x = process.Decoupled("linear"), jnp.zeros(SHAPE)
  denoise = exact_denoise("linear")
  for name in ("decoupled", "euler", "ddim", "dpdm"):
    with pytest.raises(ValueError, match=r"t of a decoupled process must be in \[0, 1\], got \[2"):
      getattr(samplers, name)(denoise, p, x, [2.0, 0.5, 0.0], keys_of(2))
  for name, options in (("ddpm", {}), ("ddim", {"eta": 1.0}), ("heun", {"churn": samplers.Churn(1.0)})):
    with pytest.raises(ValueError, match=r"Decoupled\('linear'\) is not a Gaussian process"):
      getattr(samplers, name)(denoise, p, x, [1.0, 0.5, 0.0], keys_of(2), **options)
