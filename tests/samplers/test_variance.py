"""DDPM's variance: the posterior's, the upper bound's, and the network's between them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from diffusion_jax import methods, process, samplers, sampling, times

P, GRID = process.DDPM(), times.respaced(1000, 4)
X = 1.5 * np.random.default_rng(0).standard_normal((3, 4, 4, 1))


def run(variance, v=None, trajectory=False):
  exact = oracle.gaussian_denoise(P, 0.3, 0.64)
  keys = jax.vmap(jax.random.key)(jnp.arange(3))
  denoise = lambda x, t: exact(x, t)._replace(log_variance=None if v is None else jnp.broadcast_to(v, x.shape))
  return samplers.ddpm(denoise, P, X, GRID, keys, variance=variance, trajectory=trajectory)


def test_the_ends_of_the_learned_range_are_the_posterior_and_the_upper_bound(x64):
  np.testing.assert_allclose(run("learned", -1.0), run("posterior"), rtol=1e-9)
  np.testing.assert_allclose(run("learned", 1.0), run("upper"), rtol=1e-9)
  assert np.abs(run("posterior") - run("upper")).max() > 1e-2


def test_the_learned_range_is_linear_in_the_logarithm(x64):
  """The first step of one seed with three variances: the same mean, the same draw, so differences are those of η."""
  v = np.linspace(-1.4, 1.3, X.size).reshape(X.shape)
  posterior, upper, learned = (run(*a, trajectory=True)[1][1] for a in [("posterior",), ("upper",), ("learned", v)])
  (a_t, s_t), (a_s, s_s) = oracle.ddpm(GRID[0])[:2], oracle.ddpm(GRID[1])[:2]
  beta = s_t**2 - (a_t / a_s) ** 2 * s_s**2
  eta = lambda w: (beta**w * (s_s**2 / s_t**2 * beta) ** (1 - w)) ** 0.5
  expected = (eta((v + 1) / 2) - eta(0)) / (eta(1) - eta(0))
  np.testing.assert_allclose((learned - posterior) / (upper - posterior), expected, rtol=1e-6)


def test_the_last_step_adds_no_learned_noise(x64):
  """Whatever the network says of it, and though its posterior variance is 0."""
  x0, states = run("learned", np.array(40.0), trajectory=True)
  mean, _ = oracle.posterior_step(oracle.ddpm, 0.3, 0.64, np.asarray(states[-2]), GRID[-2], 0.0, 0.0)
  np.testing.assert_allclose(x0, mean, rtol=1e-9)


def test_variance_is_an_option_of_sample():
  """A string is a static option there, as booleans are."""
  exact = oracle.gaussian_denoise(P, 0.3, 0.64)
  method = methods.Method(None, None, lambda variables, x, t, cond: exact(x, t), P, ("ddpm",))
  keys = sampling.keys_of(range(2))
  got = sampling.sample(method, {}, keys, (4, 4, 1), GRID, "ddpm", variance="upper")
  alone = samplers.ddpm(exact, P, P.prior(keys, (4, 4, 1), GRID[0]), GRID, keys, variance="upper")
  np.testing.assert_allclose(got, alone, atol=1e-5)


def test_bad_variances_are_named():
  with pytest.raises(ValueError, match="variance must be one of posterior, upper, learned, got 'large'"):
    run("large")
  with pytest.raises(ValueError, match="variance='learned' needs a Prediction with log_variance, got None"):
    run("learned")
