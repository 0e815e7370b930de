"""Every process × sampler pair against the exact affine recursion of tests/oracle.py, and orders of convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from diffusion_jax import process, samplers, times

M, S2 = 0.3, 0.64
PROCESSES = {
  "EDM": process.EDM(),
  "VE": process.VE(),
  "VP": process.VP(),
  "DDPM": process.DDPM(),
  "Cosine": process.Cosine(),
  "Decoupled": process.Decoupled(),
}
DETERMINISTIC = {
  "euler": {},
  "heun": {},
  "midpoint": {"alpha": 0.5},
  "ralston": {"alpha": 2 / 3},
  "ddim": {},
}
STOCHASTIC = {
  "ddpm": {},
  "decoupled": {},
  "dpdm": {},
  "ddim": {"eta": 0.7},
  "euler_maruyama": {},
  "predictor_corrector": {"corrector_steps": 0},
}


def grid_of(name, n=12):
  """Each process's own kind of grid, as float64."""
  return {
    "EDM": lambda: times.edm_grid(n),
    "VE": lambda: times.ve_grid(n) ** 2,
    "VP": lambda: np.append(1 + np.arange(n) / (n - 1) * (1e-3 - 1), 0),
    "DDPM": lambda: times.respaced(1000, n),
    "Cosine": lambda: times.respaced(4000, n),
    "Decoupled": lambda: times.decoupled_grid(n),
  }[name]()


def sampler_of(name):
  return getattr(samplers, "heun" if name in ("midpoint", "ralston") else name)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("proc", PROCESSES)
@pytest.mark.parametrize("wide", [True, False], ids=["x64", "float32"])
def test_deterministic_samplers_give_the_exact_affine_map(proc, name, wide):
  with jax.enable_x64(wide):
    p, grid, options = PROCESSES[proc], grid_of(proc), DETERMINISTIC[name]
    base = "heun" if name in ("midpoint", "ralston") else name
    a, b, _ = oracle.affine(base, oracle.SCHEDULES[proc], M, S2, grid, jump=p.jumps_to_zero, **options)
    x = np.linspace(-2, 2, 48).reshape(3, 4, 4, 1) * float(p.sigma(grid[0]))
    run = jax.jit(lambda x: sampler_of(name)(oracle.gaussian_denoise(p, M, S2), p, x, grid, **options))
    out = np.asarray(run(jnp.asarray(x, float)))
    expected = a * x + b
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    assert error < (1e-10 if wide else 1e-3), error


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("proc", PROCESSES)
def test_stochastic_samplers_give_the_exact_mean_and_variance(proc, name):
  p, grid, options = PROCESSES[proc], grid_of(proc), STOCHASTIC[name]
  keys = jax.vmap(jax.random.key)(jnp.arange(2048))
  x = p.prior(keys, (8, 8, 1), grid[0])
  denoise = oracle.gaussian_denoise(p, M, S2)
  out = jax.jit(lambda x, keys: sampler_of(name)(denoise, p, x, grid, keys, **options))(x, keys)
  a, b, v = oracle.affine(name, oracle.SCHEDULES[proc], M, S2, grid, **options)
  v += a**2 * oracle.SCHEDULES[proc](grid[0])[1] ** 2
  out = np.asarray(out, np.float64).ravel()  # 131,072 independent numbers
  assert abs(out.mean() - b) < 4 * np.sqrt(v / out.size)
  assert abs(out.var() - v) < 4 * v * np.sqrt(2 / out.size)


def test_ddpm_upper_variance_adds_beta_but_not_in_the_last_step():
  p, grid = PROCESSES["DDPM"], grid_of("DDPM", 5)
  keys = jax.vmap(jax.random.key)(jnp.arange(2048))
  x = p.prior(keys, (8, 8, 1), grid[0])
  out = samplers.ddpm(oracle.gaussian_denoise(p, M, S2), p, x, grid, keys, variance="upper")
  v = oracle.ddpm(grid[0])[1] ** 2
  for t, s in zip(grid[:-1], grid[1:]):
    step = lambda x: oracle.posterior_step(oracle.ddpm, M, S2, x, t, s, oracle.eta2_ddpm(oracle.ddpm, t, s))[0]
    (a_t, s_t), (a_s, s_s) = oracle.ddpm(t)[:2], oracle.ddpm(s)[:2]
    beta = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    v = (step(1.0) - step(0.0)) ** 2 * v + (beta if s > 0 else 0)
  out = np.asarray(out, np.float64).ravel()
  assert abs(out.var() - v) < 4 * v * np.sqrt(2 / out.size)


def test_churn_gives_the_exact_mean_and_variance():
  """Algorithm 2 written out for EDM's process: raise the noise level, then one Heun step."""
  p, grid, rate, lo, hi, noise = process.EDM(), times.edm_grid(10), 4.0, 0.05, 50.0, 1.007
  keys = jax.vmap(jax.random.key)(jnp.arange(2048))
  x = p.prior(keys, (8, 8, 1), grid[0])
  churn = samplers.Churn(rate, lo, hi, noise)
  out = samplers.heun(oracle.gaussian_denoise(p, M, S2), p, x, grid, keys, churn=churn)
  mean, v = 0.0, grid[0] ** 2
  for t, s in zip(grid[:-1], grid[1:]):
    gamma = min(rate / 10, np.sqrt(2) - 1) if lo <= t <= hi else 0
    t_hat = (1 + gamma) * t
    v += (t_hat**2 - t**2) * noise**2
    step = lambda x: oracle.heun_step(oracle.edm, M, S2, x, t_hat, s, False)[0]
    slope = step(1.0) - step(0.0)
    mean, v = slope * mean + step(0.0), slope**2 * v
  out = np.asarray(out, np.float64).ravel()
  assert abs(out.mean() - mean) < 4 * np.sqrt(v / out.size)
  assert abs(out.var() - v) < 4 * v * np.sqrt(2 / out.size)


@pytest.mark.parametrize("proc", ["VP", "VE", "DDPM", "Decoupled"])
def test_churn_raises_the_noise_level_in_every_frame(proc, x64):
  """The same churn in another frame, drawn with the same noise, is EDM's result: only the scale of x differs."""
  p, level = PROCESSES[proc], 5.7
  keys = jax.vmap(jax.random.key)(jnp.arange(4))
  churn, x = samplers.Churn(2.0, 0.1, 30.0), jax.random.normal(jax.random.key(1), (4, 4, 4, 1))

  def first_step(p):  # the state just after churn, through a denoiser that records it
    seen = []
    grid = p.inverse(np.array([level, 1.0, 0.0]))
    denoise = lambda x, t: (seen.append((x, t)), oracle.gaussian_denoise(p, M, S2)(x, t))[1]
    with jax.disable_jit():
      samplers.euler(denoise, p, x * p.alpha(grid[0]) * level, grid, keys, churn=churn)
    x_hat, t_hat = seen[0]
    return x_hat / p.alpha(t_hat), p.noise_level(t_hat)

  (x_edm, n_edm), (x_other, n_other) = first_step(process.EDM()), first_step(p)
  np.testing.assert_allclose(n_other, n_edm, rtol=1e-9)
  np.testing.assert_allclose(x_other, x_edm, rtol=1e-8)


@pytest.mark.parametrize("proc", ["EDM", "VP", "VE", "Decoupled"])
@pytest.mark.parametrize("name, order, tolerance", [
  ("euler", 1, 0.15), ("heun", 2, 0.2), ("midpoint", 2, 0.2), ("ralston", 2, 0.2)
])  # fmt: skip
def test_order_of_convergence(proc, name, order, tolerance, x64):
  """Error at the last positive time of grids of N and 2N steps, for a mixture of two Gaussians.

  One Gaussian will not do: its flow is the root of a quadratic in t where α is constant or linear, for which the
  midpoint rule is of order 3.
  """
  p, schedule = PROCESSES[proc], oracle.SCHEDULES[proc]
  start, end = (float(p.inverse(jnp.float64(n))) for n in (8.0, 0.3))
  x = np.linspace(-2, 2, 16) * schedule(start)[1]
  exact = oracle.mixture_flow(schedule, oracle.MIXTURE, x, start, end)
  denoise = oracle.scalar_mixture_denoise(p, oracle.MIXTURE)

  def error(n, rho=2.0):
    grid = (start ** (1 / rho) + np.arange(n + 1) / n * (end ** (1 / rho) - start ** (1 / rho))) ** rho
    grid = np.append(grid, 0)
    _, states = sampler_of(name)(denoise, p, x.reshape(1, 4, 4, 1), grid, trajectory=True, **DETERMINISTIC[name])
    return np.abs(np.asarray(states[-2]).ravel() - exact).max()

  observed = np.log2(error(128) / error(256))
  assert abs(observed - order) < tolerance, observed


def test_ddpm_is_ddim_with_eta_one_and_decoupled_is_ddpm_where_alpha_is_one():
  keys = jax.vmap(jax.random.key)(jnp.arange(3))
  x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
  for p, other, options in [
    (process.DDPM(), samplers.ddim, {"eta": 1.0}),
    (process.EDM(), samplers.decoupled, {}),
  ]:
    grid = grid_of("DDPM" if p == process.DDPM() else "EDM")
    denoise = oracle.gaussian_denoise(p, M, S2)
    np.testing.assert_allclose(
      other(denoise, p, x, grid, keys, **options), samplers.ddpm(denoise, p, x, grid, keys), rtol=1e-4, atol=1e-5
    )


def test_decoupled_algorithm_2_with_heads_that_disagree(x64):
  """x_{t−s} = x_t + H_{t−s}(φ̂) − H_t(φ̂) − (s/√t)·ε̂ + √(s(t−s)/t)·z, for arbitrary constant heads."""
  from diffusion_jax.types import Prediction, normal

  p, grid = process.Decoupled(), times.decoupled_grid(4)
  keys = jax.vmap(jax.random.key)(jnp.arange(2))
  x = jax.random.normal(jax.random.key(1), (2, 3, 3, 1))
  phi, eps = jax.random.normal(jax.random.key(2), (2, 2, 3, 3, 1))
  out = samplers.decoupled(lambda x, t: Prediction(phi, eps), p, x, grid, keys)
  for i, (t, end) in enumerate(zip(grid[:-1], grid[1:])):
    s = t - end
    x = x + phi * end - phi * t - s / np.sqrt(t) * eps
    x += np.sqrt(s * (t - s) / t) * normal(keys, i, (3, 3, 1), jnp.float64)
  np.testing.assert_allclose(out, x, rtol=1e-12)
