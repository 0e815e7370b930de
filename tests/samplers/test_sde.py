"""The original samplers: a step of each written out, Langevin's fixed point, moments, and Euler–Maruyama's order."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from diffusion_jax import process, samplers, times
from diffusion_jax.types import Prediction, normal

M, S2 = 0.3, 0.64
PROCESSES = {"EDM": process.EDM(), "VE": process.VE(), "VP": process.VP(), "Decoupled": process.Decoupled()}


def keys_of(n):
  return jax.vmap(jax.random.key)(jnp.arange(n))


def check_moments(x, mean, variance, many=0.0):
  """Within 4 standard errors, and `many` of the variance for what holds in many dimensions only."""
  x = np.asarray(x, np.float64).ravel()
  assert abs(x.mean() - mean) < 4 * np.sqrt(variance / x.size) + many * np.sqrt(variance)
  assert abs(x.var() - variance) < (4 * np.sqrt(2 / x.size) + many) * variance


@pytest.mark.parametrize("name", ["VE", "VP"])
def test_predictor_corrector_as_the_paper_lists_it(name, x64):
  """Corrector and predictor in terms of the score, for an arbitrary network, with the norms of each image alone."""
  p, schedule, r, count = PROCESSES[name], oracle.SCHEDULES[name], 0.21, 2
  grid, keys = np.array([0.9, 0.5, 0.2, 0.0]), keys_of(3)
  network = lambda x, t: jnp.sin(3 * x) * jnp.arange(1, 4).reshape(3, 1, 1, 1) + t

  def denoise(x, t):
    eps = network(x, t)
    return Prediction((x - p.sigma(t) * eps) / p.alpha(t), eps)

  x = jax.random.normal(jax.random.key(1), (3, 3, 3, 1))
  out = samplers.predictor_corrector(denoise, p, x, grid, keys, snr=r, corrector_steps=count)
  norm = lambda x: np.linalg.norm(x.reshape(3, -1), axis=1).reshape(3, 1, 1, 1)
  for i, (t, s) in enumerate(zip(grid[:-1], grid[1:])):
    (alpha, sigma), (alpha_s, sigma_s) = schedule(t)[:2], schedule(s)[:2]
    score = lambda x: -np.asarray(network(x, t)) / sigma
    beta = 1 - (alpha / alpha_s) ** 2  # 0 in VE
    for j in range(count):
      z = np.asarray(normal(keys, i * (1 + count) + 1 + j, (3, 3, 1), jnp.float64))
      step = 2 * (1 - beta) * (r * norm(z) / norm(score(x))) ** 2
      x = x + step * score(x) + np.sqrt(2 * step) * z
    if s == 0:
      x = (x + sigma**2 * score(x)) / alpha
      break
    added = sigma**2 - sigma_s**2 if name == "VE" else beta
    z = np.asarray(normal(keys, i * (1 + count), (3, 3, 1), jnp.float64))
    x = (2 - np.sqrt(1 - beta)) * x + added * score(x) + np.sqrt(added) * z
  np.testing.assert_allclose(out, x, rtol=1e-10)


@pytest.mark.parametrize("name, snr", [("EDM", 0.4), ("VP", 0.8)])
def test_langevin_steps_settle_at_the_marginal_inflated_by_their_step(name, snr):
  """v = (1 − ε/V)²v + 2ε with ε = 2a²r²V²/v gives v = (1 + a²r²)·V; the start, of half V and another mean, is left.

  The grid has one time, so that the result is the estimate x̂_0, affine in x. The norms' relative spread √(2/D),
  D = 4096, moves v by some 1/D of itself; 4/D is allowed for.
  """
  p, t, steps = PROCESSES[name], 0.4, 80
  alpha, sigma = oracle.SCHEDULES[name](t)[:2]
  total = alpha**2 * S2 + sigma**2
  x = alpha * M + 1 + np.sqrt(total / 2) * jax.random.normal(jax.random.key(1), (16, 64, 64, 1))
  x0 = samplers.predictor_corrector(
    oracle.gaussian_denoise(p, M, S2), p, x, np.array([t, 0]), keys_of(16), snr=snr, corrector_steps=steps
  )
  x = alpha * M + (x0 - M) * total / (alpha * S2)
  mean, v = oracle.corrected_moments(oracle.SCHEDULES[name], M, S2, alpha * M + 1, total / 2, t, 0, snr, steps)
  fixed = (1 + alpha**2 * snr**2) * total
  np.testing.assert_allclose((mean, v), (alpha * M, fixed), rtol=1e-3)
  check_moments(x, alpha * M, fixed, many=1e-3)


@pytest.mark.parametrize("name", ["VE", "VP", "Decoupled"])
def test_predictor_corrector_gives_the_moments_of_many_dimensions(name):
  p, schedule, n = PROCESSES[name], oracle.SCHEDULES[name], 8
  grid = {"VE": times.ve_grid(n) ** 2, "VP": np.append(np.linspace(1, 1e-3, n), 0)}.get(name, times.decoupled_grid(n))
  keys = keys_of(16)
  x = p.prior(keys, (64, 64, 1), grid[0])
  out = samplers.predictor_corrector(
    oracle.gaussian_denoise(p, M, S2), p, x, grid, keys, snr=0.3, corrector_steps=2
  )
  moments = oracle.predictor_corrector_moments(schedule, M, S2, grid, 0.0, schedule(grid[0])[1] ** 2, 0.3, 2)
  check_moments(out, *moments, many=1e-3)


@pytest.mark.parametrize("name", ["EDM", "VP", "Decoupled"])
def test_weak_order_of_euler_maruyama(name, x64):
  """Mean and variance of the state at the last positive time, from the prior, are right to first order in the step.

  The state is affine in its start and in the draws, which are known: a least-squares fit gives the coefficients, and
  with them the moments over all draws, to rounding. The SDE itself multiplies deviations from the marginals
  N(αm, V) by k = (V/α)_end/(V/α)_start; in VE that is linear in t, which leaves the mean without an error.
  """
  p, schedule = PROCESSES[name], oracle.SCHEDULES[name]
  start, end = (float(p.inverse(jnp.float64(n))) for n in (8.0, 0.3))
  keys = keys_of(1)
  x = jax.random.normal(jax.random.key(7), (1, 20, 20, 1))
  draws = np.asarray(jax.vmap(lambda i: normal(keys, i, x.shape[1:], x.dtype))(jnp.arange(256))).reshape(256, -1)
  marginal = lambda t: (schedule(t)[0] * M, schedule(t)[0] ** 2 * S2 + schedule(t)[1] ** 2)
  sample = jax.jit(lambda grid: samplers.euler_maruyama(
    oracle.gaussian_denoise(p, M, S2), p, x, grid, keys, trajectory=True)[1][-2])  # fmt: skip

  def errors(n):
    grid = np.append((np.sqrt(start) + np.arange(n + 1) / n * (np.sqrt(end) - np.sqrt(start))) ** 2, 0)
    out = np.asarray(sample(jnp.asarray(times.pad(grid, 257)))).ravel()
    columns = np.stack([np.ones(x.size), np.ravel(x), *draws[:n]], axis=1)
    (b, a, *c), *_ = np.linalg.lstsq(columns, out)
    np.testing.assert_allclose(columns @ [b, a, *c], out, rtol=1e-9, atol=1e-12)
    (start_mean, start_v), (end_mean, end_v), start_sigma2 = marginal(start), marginal(end), schedule(start)[1] ** 2
    k = end_v / schedule(end)[0] * schedule(start)[0] / start_v
    exact = end_mean - k * start_mean, end_v + k**2 * (start_sigma2 - start_v)
    return np.subtract((b, a**2 * start_sigma2 + np.sum(np.square(c))), exact)

  observed = np.log2(errors(128) / errors(256))
  np.testing.assert_allclose(observed, 1, atol=0.15)


def test_euler_maruyama_starts_without_signal_as_the_flow_does():
  """At α = 0 the SDE's noise rate is infinite: the first step is Euler's of the ODE, and no number overflows."""
  p, keys, grid = process.Decoupled(), keys_of(2), np.array([1.0, 0.5, 0.0])
  x = p.prior(keys, (4, 4, 1), 1.0)
  run = lambda sampler: sampler(oracle.gaussian_denoise(p, M, S2), p, x, grid, keys, trajectory=True)[1]
  np.testing.assert_array_equal(run(samplers.euler_maruyama)[1], run(samplers.euler)[1])
  assert np.isfinite(run(samplers.euler_maruyama)).all()
