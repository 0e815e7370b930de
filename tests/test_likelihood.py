"""Log-likelihood against densities that are known: Gaussians and mixtures, both traces, the ends, keys, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import scipy.special
import scipy.stats

from diffusion_jax import likelihood, process, samplers, sampling, times
from diffusion_jax.types import Prediction

LEVELS = lambda n, sigma_max=80.0: times.edm_grid(n, 0.002, sigma_max)
GRIDS = {
  "EDM": (process.EDM(), LEVELS),
  "VE": (process.VE(), lambda n: LEVELS(n) ** 2),
  "VP": (process.VP(), lambda n: np.append(1.0, process.VP().inverse(LEVELS(n, 100.0)))),
  "DDPM": (process.DDPM(), lambda n: np.append(1000.0, process.DDPM().inverse(LEVELS(n, 100.0)))),
  "Cosine": (process.Cosine(), lambda n: process.Cosine().inverse(LEVELS(n, 200.0))),
  "Decoupled": (process.Decoupled(), lambda n: np.append(1.0, process.Decoupled().inverse(LEVELS(n)))),
}
SHAPE, STD = (2, 3, 1), 0.3
WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.random.default_rng(0).normal(0.1, 0.6, (3, *SHAPE))
DATA_MEAN = np.tensordot(WEIGHTS, MEANS, 1)
COVARIANCE = np.diag([0.5, 0.1, 0.3]) + 0.1 * np.ones((3, 3))  # of images [1, 3, 1], mean M
M = np.array([0.3, -0.2, 0.1])


def draws(count):
  rng = np.random.default_rng(1)
  return MEANS[rng.choice(3, count, p=WEIGHTS)] + STD * rng.normal(size=(count, *SHAPE))


def log_mixture(x):
  squares = np.sum((x[:, None] - MEANS) ** 2, axis=(2, 3, 4))
  log_p = np.log(WEIGHTS) - squares / (2 * STD**2)
  return scipy.special.logsumexp(log_p, axis=1) - np.prod(SHAPE) / 2 * np.log(2 * np.pi * STD**2)


@pytest.mark.parametrize("name", GRIDS)
def test_mixture_to_a_thousandth_of_a_bit(name):
  """Float32, exact trace: each image, with the data's mean; all of them on average, with the sampler's prior."""
  p, grid_of = GRIDS[name]
  x, denoise, grid = draws(256), oracle.mixture_denoise(p, MEANS, WEIGHTS, STD), np.asarray(grid_of(80))
  run = jax.jit(lambda x, **mean: likelihood.log_likelihood(denoise, p, x, grid, trace="exact", **mean))
  bits = lambda log_p: log_p / (np.prod(SHAPE) * np.log(2))
  error = bits(run(jnp.asarray(x, jnp.float32), mean=jnp.asarray(DATA_MEAN, jnp.float32)) - log_mixture(x))
  assert np.abs(error).max() < 1e-3
  by_prior = bits(run(jnp.asarray(x, jnp.float32)) - log_mixture(x))
  assert abs(np.mean(by_prior)) < 2e-4 and np.abs(by_prior).max() < 5e-3


@pytest.mark.parametrize("name", ["EDM", "VP", "VE", "Decoupled"])
def test_gaussian_in_closed_form(name, x64):
  """Of N(m, s²) even what is left at both ends is known: the density of x_0 + n·ε, and of the flow from the prior."""
  p, grid_of = GRIDS[name]
  m, s2, grid = 0.3, 0.64, np.asarray(grid_of(120), np.float64)
  x = np.random.default_rng(2).normal(m, np.sqrt(s2), (64, 4, 4, 1))
  found = jax.jit(lambda x: likelihood.log_likelihood(oracle.gaussian_denoise(p, m, s2), p, x, grid, trace="exact"))(x)
  schedule = oracle.SCHEDULES[name]
  (a_0, s_0), (a_1, s_1) = (schedule(t)[:2] for t in (grid[-2], grid[0]))
  scale = np.sqrt((a_1**2 * s2 + s_1**2) / (a_0**2 * s2 + s_0**2))  # of the flow between both ends
  end = a_1 * m + scale * a_0 * (x - m)
  exact = np.sum(scipy.stats.norm.logpdf(end, 0, s_1) + np.log(scale * a_0), axis=(1, 2, 3))
  np.testing.assert_allclose(found, exact, atol=2e-5)
  truth = np.sum(scipy.stats.norm.logpdf(x, m, np.sqrt(s2)), axis=(1, 2, 3))
  assert np.abs(found - truth).max() / (16 * np.log(2)) < 5e-3
  assert abs(np.mean(found - truth)) / (16 * np.log(2)) < 1e-3


def test_fourth_order_in_the_step(x64):
  p, x = process.VP(), draws(16)
  denoise = oracle.mixture_denoise(p, MEANS, WEIGHTS, STD)
  angles = lambda n: np.linspace(np.arctan(100.0), np.arctan(0.1), n + 1)
  grid_of = lambda n: np.append(p.inverse(np.tan(angles(n))), 0.0)
  run = jax.jit(lambda x, grid: likelihood.log_likelihood(denoise, p, x, grid, trace="exact"))
  fine = run(x, jnp.asarray(times.pad(grid_of(256), 257)))
  error = lambda n: np.abs(run(x, jnp.asarray(times.pad(grid_of(n), 257))) - fine).max()
  np.testing.assert_allclose(np.log2(error(32) / error(64)), 4, atol=0.5)


@pytest.mark.parametrize("noise, probes", [("gaussian", 1), ("gaussian", 3), ("rademacher", 2)])
def test_hutchinson_is_unbiased_with_its_own_variance(noise, probes, x64):
  """Of N(m, C) the Jacobian is symmetric and the same for all x: a step's error is that of zᵀAz, A its integral.

  The variance of zᵀAz is 2‖A‖² for Gaussian z, 2‖A‖² without the diagonal for Rademacher z.
  """
  p, count = process.EDM(), 4096
  grid = times.edm_grid(30)
  x = np.broadcast_to(np.array([0.5, -0.4, 0.2]).reshape(1, 3, 1), (count, 1, 3, 1))
  denoise = oracle.correlated_denoise(p, M, COVARIANCE)
  run = lambda x, keys, **options: likelihood.log_likelihood(denoise, p, x, grid, keys, **options)
  exact = run(x[:1], None, trace="exact")
  found = jax.jit(lambda x, keys: run(x, keys, noise=noise, probes=probes))(x, sampling.keys_of(np.arange(count)))
  values, vectors = np.linalg.eigh(COVARIANCE)
  variance = 0.0
  for t, s in zip(grid[1:-1], grid[:-2]):
    logs = [0.5 * np.log((values + u**2) / (1 + u**2)) for u in (t, s)]  # of the spread of y = x/√(1 + σ²)
    a = (vectors * (logs[1] - logs[0])) @ vectors.T
    variance += 2 * np.sum((a if noise == "gaussian" else a - np.diag(np.diag(a))) ** 2) / probes
  error = np.asarray(found - exact)
  assert abs(error.mean()) < 4 * np.sqrt(variance / count)
  np.testing.assert_allclose(error.var(), variance, rtol=0.12)


def test_hutchinson_needs_no_luck_where_the_jacobian_is_diagonal():
  """With Rademacher draws each one is exact."""
  p, grid, x = process.VP(), GRIDS["VP"][1](20), jnp.linspace(-1, 1, 32).reshape(2, 4, 4, 1)
  denoise = oracle.gaussian_denoise(p, 0.3, 0.64)
  by_probes = jax.jit(lambda x, keys: likelihood.log_likelihood(denoise, p, x, grid, keys))(x, sampling.keys_of([0, 1]))
  exact = jax.jit(lambda x: likelihood.log_likelihood(denoise, p, x, grid, trace="exact"))(x)
  np.testing.assert_allclose(by_probes, exact, rtol=1e-4)


def test_draws_are_those_of_the_image_alone_and_padding_does_not_show():
  p, grid, x = process.EDM(), times.edm_grid(6), jnp.asarray(draws(4), jnp.float32)
  denoise = oracle.mixture_denoise(p, MEANS, WEIGHTS, STD)
  run = jax.jit(lambda x, keys, grid: likelihood.log_likelihood(denoise, p, x, grid, keys))
  keys = sampling.keys_of([3, 1, 4, 15])
  whole = run(x, keys, jnp.asarray(grid, jnp.float32))
  np.testing.assert_allclose(run(x[2:], keys[2:], jnp.asarray(grid, jnp.float32)), whole[2:], rtol=1e-5)
  np.testing.assert_allclose(run(x, keys, jnp.asarray(times.pad(grid, 9), jnp.float32)), whole, rtol=1e-5)
  again = run(x, sampling.keys_of([5, 6, 7, 8]), jnp.asarray(grid, jnp.float32))
  assert np.abs(again - whole).min() > 1e-4


def test_flow_of_two_heads_that_disagree_is_the_samplers(x64):
  """Decoupled networks' heads need not agree: the density is that of what `heun` draws, by a change of variables."""
  p = process.Decoupled()

  def denoise(x, t):
    return Prediction(-(0.3 + 0.2 * x), 0.7 * x + 0.1)

  grid = np.append(np.asarray(p.inverse(np.geomspace(50.0, 0.05, 400))), 0.0)
  x = np.linspace(-1, 1, 5).reshape(5, 1, 1, 1)
  latents = jax.vmap(jax.value_and_grad(lambda x: _up(denoise, p, x, grid)))(x.reshape(5))
  expected = scipy.stats.norm.logpdf(latents[0], 0, float(p.sigma(grid[0]))) + np.log(np.abs(latents[1]))
  found = jax.jit(lambda x: likelihood.log_likelihood(denoise, p, x, grid, trace="exact"))(x)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def _up(denoise, p, x, grid):
  """From α·x at the grid's last positive time to its first, by the steps of `invert` but for the one from 0."""

  def step(x, times):
    t, s = times
    d = p.velocity(denoise(x, t), t)
    return x + (s - t) * 0.5 * (d + p.velocity(denoise(x + (s - t) * d, s), s)), None

  start = (float(p.alpha(grid[-2])) * x).reshape(1, 1, 1, 1)
  return jax.lax.scan(step, start, jnp.stack([grid[-2:0:-1], grid[-3::-1]], 1))[0][0, 0, 0, 0]


def test_bits_of_discrete_images_and_their_bound():
  """An even density over all levels takes log₂ L bits; of any law of bytes the mean bounds the entropy from above."""
  log_p = np.full(3, -12 * np.log(2 + 2 / 255))  # uniform in [−1 − 1/255, 1 + 1/255]
  np.testing.assert_allclose(likelihood.bits_per_dimension(log_p, 12), 8, rtol=1e-6)
  np.testing.assert_allclose(likelihood.bits_per_dimension(np.zeros(2), 5), np.log2(127.5), rtol=1e-6)
  keys = sampling.keys_of(np.arange(500))
  levels = np.arange(17)[np.random.default_rng(0).integers(0, 17, (500, 2, 2, 1))] / 8 - 1
  moved = likelihood.dequantise(keys, jnp.asarray(levels, jnp.float32), 17)
  assert np.array_equal(np.round((moved + 1) * 8), np.round((levels + 1) * 8))
  offsets = np.asarray(moved - levels).ravel()
  assert scipy.stats.kstest(offsets, scipy.stats.uniform(-1 / 16, 1 / 8).cdf).pvalue > 0.01
  np.testing.assert_array_equal(likelihood.dequantise(keys[7:9], jnp.asarray(levels[7:9], jnp.float32), 17), moved[7:9])


@pytest.mark.parametrize("options, message", [
  ({"trace": "full"}, "trace must be one of hutchinson, exact, got 'full'"),
  ({"noise": "uniform", "trace": "exact"}, "noise must be one of rademacher, gaussian, got 'uniform'"),
  ({"probes": 0}, "probes must be a positive whole number, got 0"),
  ({}, "log_likelihood with trace='hutchinson' draws noise: keys must hold one PRNG key an image, got None"),
  ({"process": process.Decoupled("linear"), "trace": "exact"}, r"Decoupled\('linear'\) is not a Gaussian process"),
  ({"x": jnp.zeros((2, 3)), "trace": "exact"}, r"x must be \[B, H, W, C\], got shape \[2, 3\]"),
  ({"grid": [1.0, 2.0, 0.0], "trace": "exact"}, "grid must decrease from a finite t to 0"),
])  # fmt: skip
def test_bad_input_is_named(options, message):
  given = {"process": process.EDM(), "x": jnp.zeros((2, 2, 2, 1)), "grid": [1.0, 0.5, 0.0], **options}
  if given["process"] != process.EDM():
    given["grid"] = [0.9, 0.5, 0.0]
  denoise = oracle.gaussian_denoise(process.EDM(), 0.3, 0.64)
  with pytest.raises(ValueError, match=message):
    likelihood.log_likelihood(denoise, given.pop("process"), given.pop("x"), given.pop("grid"), **given)
  with pytest.raises(ValueError, match="levels must be a whole number of at least 2, got 1"):
    likelihood.bits_per_dimension(np.zeros(2), 4, 1)


def test_samples_have_the_density_that_is_computed():
  """Of what the flow draws from its prior, mean −log p is its entropy: here that of N(m, s²)."""
  p, grid = process.EDM(), times.edm_grid(40)
  denoise, keys = oracle.gaussian_denoise(p, 0.3, 0.25), sampling.keys_of(np.arange(512))
  x = samplers.heun(denoise, p, p.prior(keys, (2, 2, 1), grid[0]), grid)
  log_p = likelihood.log_likelihood(denoise, p, x, grid, keys)
  entropy = 4 * 0.5 * np.log(2 * np.pi * np.e * 0.25)
  assert abs(np.mean(log_p) + entropy) < 4 * np.sqrt(2.0 / 512)  # Var[log p] of four normal numbers is 4/2
