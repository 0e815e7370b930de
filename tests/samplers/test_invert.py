"""Inversion: the exact affine map, the closed form of the latents, the way back, evaluations, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from diffusion_jax import process, samplers, times

M, S2 = 0.3, 0.64
GRIDS = {
  "EDM": (process.EDM(), lambda n: times.edm_grid(n, 0.01, 20.0)),
  "VE": (process.VE(), lambda n: times.edm_grid(n, 0.01, 20.0) ** 2),
  "VP": (process.VP(), lambda n: np.append(np.linspace(1, 1e-3, n), 0)),
  "DDPM": (process.DDPM(), lambda n: times.respaced(1000, n)),
  "Decoupled": (process.Decoupled(), times.decoupled_grid),
}


@pytest.mark.parametrize("name", GRIDS)
def test_exact_affine_map_on_plain_and_padded_grids(name):
  """Ralston's method jitted for traced, padded grids in float64; Heun's in float32 on a grid as it is."""
  p, grid_of = GRIDS[name]
  x = np.linspace(-1, 1, 48).reshape(3, 4, 4, 1)
  run = lambda x, grid, **options: samplers.invert(oracle.gaussian_denoise(p, M, S2), p, x, grid, **options)
  with jax.enable_x64(True):
    jitted = jax.jit(lambda x, grid: run(x, grid, alpha=2 / 3))
    for n in (1, 2, 12):
      a, b = oracle.affine_inverse(oracle.SCHEDULES[name], M, S2, grid_of(n), p.jumps_to_zero, alpha=2 / 3)
      out = jitted(jnp.asarray(x), jnp.asarray(times.pad(grid_of(n), 16)))
      np.testing.assert_allclose(out, a * x + b, rtol=1e-9, atol=1e-12)
  a, b = oracle.affine_inverse(oracle.SCHEDULES[name], M, S2, grid_of(12), p.jumps_to_zero)
  single = run(jnp.asarray(x, jnp.float32), grid_of(12))
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, a * x + b, rtol=1e-3, atol=1e-4 * np.abs(a))


@pytest.mark.parametrize("name, alpha", [("EDM", 1.0), ("VP", 1.0), ("Decoupled", 2 / 3)])
def test_latents_and_the_way_back(name, alpha, x64):
  """Latents of data N(m, s²I) are αm + √V/s·(x_0 − m), V = α²s² + σ², to second order in the step.

  Of the mixture, whose flow is not known, the images come back by `heun` to third order: a step of size h errs by c·h³
  and a step back by c·(−h)³. The grids end so near 0 that the first and last steps do not show.
  """
  p, schedule = GRIDS[name][0], oracle.SCHEDULES[name]
  start, end = (float(p.inverse(jnp.float64(n))) for n in (8.0, 1e-5))
  x = np.linspace(-1.2, 1.5, 16).reshape(1, 4, 4, 1)

  def grid_of(n, rho=4.0):
    grid = np.linspace(start ** (1 / rho), end ** (1 / rho), n + 1) ** rho
    return jnp.asarray(times.pad(np.append(grid, 0), 161))

  invert = jax.jit(lambda g: samplers.invert(oracle.gaussian_denoise(p, M, S2), p, x, g, alpha=alpha))
  scale, sigma = schedule(start)[:2]
  latent = scale * M + np.sqrt((scale**2 * S2 + sigma**2) / S2) * (x - M)
  error = lambda n: np.abs(invert(grid_of(n)) - latent).max()
  assert error(160) < 1e-2 * np.abs(latent).max()
  np.testing.assert_allclose(np.log2(error(80) / error(160)), 2, atol=0.25)

  denoise = oracle.scalar_mixture_denoise(p, oracle.MIXTURE)
  back = jax.jit(
    lambda g: samplers.heun(denoise, p, samplers.invert(denoise, p, x, g, alpha=alpha), g, alpha=alpha)
  )
  error = lambda n: np.abs(back(grid_of(n)) - x).max()
  assert error(160) < 1e-3
  np.testing.assert_allclose(np.log2(error(80) / error(160)), 3, atol=0.35)


@pytest.mark.parametrize("name", ["EDM", "Decoupled"])
def test_the_step_from_zero_undoes_the_last_step_to_fourth_order(name, x64):
  """One step up and back for smooth data: halving the noise level divides the error by 16."""
  p = GRIDS[name][0]
  denoise = oracle.gaussian_denoise(p, M, S2)
  x = np.linspace(-1, 1, 16).reshape(1, 4, 4, 1)

  def error(n):
    grid = np.append(float(p.inverse(jnp.float64(n))), 0)
    return np.abs(samplers.heun(denoise, p, samplers.invert(denoise, p, x, grid), grid) - x).max()

  assert error(0.02) > 1e-9
  np.testing.assert_allclose(np.log2(error(0.02) / error(0.01)), 4, atol=0.1)


def test_trajectory_is_in_the_grids_order():
  p, grid = process.EDM(), times.edm_grid(4)
  x = jnp.linspace(-1, 1, 8).reshape(2, 2, 2, 1)
  run = lambda grid: samplers.invert(oracle.gaussian_denoise(p, M, S2), p, x, grid, trajectory=True)
  latent, states = run(grid)
  padded_latent, padded = run(times.pad(grid, 6))
  np.testing.assert_array_equal(states[0], latent)
  np.testing.assert_array_equal(states[-1], x)
  np.testing.assert_allclose(states[1], run(grid[1:])[0], rtol=1e-6)
  np.testing.assert_array_equal(padded_latent, latent)
  np.testing.assert_array_equal(padded[jnp.array([0, 1, 2, 3, 6])], states)


@pytest.mark.parametrize("n", [1, 6])
def test_number_of_network_evaluations_with_and_without_padding(n):
  calls, x = [], jnp.ones((2, 2, 2, 1))

  def denoise(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return oracle.gaussian_denoise(process.EDM(), M, S2)(x, t)

  run = lambda grid: samplers.invert(denoise, process.EDM(), x, grid)
  for sampler in (run, jax.jit(run)):
    for grid in (times.edm_grid(n), times.pad(times.edm_grid(n), 9)):
      calls.clear()
      sampler(jnp.asarray(grid, jnp.float32)).block_until_ready()
      jax.effects_barrier()
      assert len(calls) == 2 * n - 1


def test_bad_grids_are_named():
  x = jnp.ones((2, 2, 2, 1))
  with pytest.raises(ValueError, match="grid must decrease from a finite t to 0"):
    samplers.invert(oracle.gaussian_denoise(process.EDM(), M, S2), process.EDM(), x, times.edm_grid(4)[::-1])


@pytest.mark.parametrize("name", ["EDM", "VE", "VP", "Decoupled"])
def test_images_come_back_to_a_hundredth_in_50_steps(name):
  """Of a mixture whose components are distinct, as digits are, in float32 on the grid that samples them."""
  p, rng = GRIDS[name][0], np.random.default_rng(3)
  grid = np.asarray(p.inverse(times.edm_grid(50)))
  means = rng.uniform(-1, 1, (10, 4, 4, 1))
  denoise = oracle.mixture_denoise(p, means, np.full(10, 0.1), 0.1)
  x = jnp.asarray(means[np.arange(40) % 10] + 0.1 * rng.normal(size=(40, 4, 4, 1)), jnp.float32)
  back = jax.jit(lambda x: samplers.heun(denoise, p, samplers.invert(denoise, p, x, grid), grid))(x)
  rms = np.sqrt(np.mean(np.asarray(back - x) ** 2, axis=(1, 2, 3)))
  assert rms.max() < 1e-2 and np.median(rms) < 3e-3, rms
