"""What every sampler keeps to: evaluations, compilations, padding, one key an image, memory, gradients, errors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax import guidance, process, samplers, times
from diffusion_jax.samplers import catalogue

P = process.EDM()
DENOISE = oracle.gaussian_denoise(P, 0.3, 0.64)
NFE = {"euler": lambda n: n, "heun": lambda n: 2 * n - 1, "ddim": lambda n: n, "ddpm": lambda n: n,
       "decoupled": lambda n: n, "dpdm": lambda n: n, "multistep": lambda n: n,
       "euler_maruyama": lambda n: n, "predictor_corrector": lambda n: 2 * n, "deis": lambda n: n,
       "dpm_solver_2": lambda n: 2 * n - 1, "dpm_solver_3": lambda n: 3 * n - 2, "dpmpp_2s": lambda n: 2 * n - 1,
       "dpmpp_2m": lambda n: n, "dpmpp_3m": lambda n: n, "dpmpp_2m_sde": lambda n: n, "unipc": lambda n: n,
       "sa_solver": lambda n: n, "rk45": None}  # fmt: skip
STEPS = {"dpmpp_2m": 2, "dpmpp_3m": 3, "dpmpp_2m_sde": 2}


def keys_of(n):
  return jax.vmap(jax.random.key)(jnp.arange(n))


def counted(calls):
  """A denoiser that counts how often it really runs."""

  def denoise(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return DENOISE(x, t)

  return denoise


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("name", NFE)
def test_number_of_network_evaluations_with_and_without_padding(name, n):
  assert set(NFE) == set(samplers.BY_NAME) - {"dddm"}  # whose denoiser takes more, and whose grid is no path
  if NFE[name] is None or n < STEPS.get(name, 1):
    pytest.skip("as many as its tolerance asks for, or fewer steps than it has estimates")
  assert catalogue.evaluations(name, n) == NFE[name](n)
  x, keys = jnp.ones((2, 2, 2, 1)), keys_of(2)
  for grid in (times.edm_grid(n), times.pad(times.edm_grid(n), 12)):
    for run in (lambda g: samplers.BY_NAME[name](counted(calls), P, x, grid, keys),
                jax.jit(lambda g: samplers.BY_NAME[name](counted(calls), P, x, g, keys))):  # fmt: skip
      calls = []
      run(jnp.asarray(grid, jnp.float32)).block_until_ready()
      jax.effects_barrier()
      assert len(calls) == NFE[name](n)


@pytest.mark.parametrize("name", NFE)
def test_one_compilation_serves_every_grid_and_churn(name):
  traces = []
  options = {"churn": samplers.Churn(0.0)} if name in ("euler", "heun") else {}

  @jax.jit
  def sample(x, grid, keys, options):
    traces.append(1)
    return samplers.BY_NAME[name](DENOISE, P, x, grid, keys, **options)

  keys = keys_of(3)
  for n, lo, hi, rho, rate in [(5, 0.002, 80.0, 7.0, 0.0), (3, 0.01, 50.0, 3.0, 2.0), (16, 0.1, 10.0, 5.0, 9.0)]:
    grid = times.edm_grid(n, lo, hi, rho)
    x = P.prior(keys, (4, 4, 1), grid[0])
    if options:
      options = {"churn": samplers.Churn(rate, 0.05, 50.0, 1.003)}
    padded = sample(x, jnp.asarray(times.pad(grid, 16), jnp.float32), keys, options)
    exact = samplers.BY_NAME[name](DENOISE, P, x, grid, keys, **options)
    np.testing.assert_allclose(padded, exact, rtol=1e-5, atol=1e-5)
  assert len(traces) == 1


@pytest.mark.parametrize("name", NFE)
def test_image_i_depends_on_key_i_alone(name):
  """Noise bit for bit and images to 1e-4, for batches of 1, 7, 64, on one device and on eight."""
  grid = jnp.asarray(times.edm_grid(6), jnp.float32)
  options = {"churn": samplers.Churn(3.0)} if name in ("euler", "heun") else {}

  @jax.jit
  def sample(keys):
    x = P.prior(keys, (4, 4, 1), grid[0])
    return x, samplers.BY_NAME[name](DENOISE, P, x, grid, keys, **options)

  keys = keys_of(64)
  noise, images = sample(keys)
  for batch in (1, 7):
    some_noise, some_images = sample(keys[:batch])
    np.testing.assert_array_equal(some_noise, noise[:batch])
    np.testing.assert_allclose(some_images, images[:batch], atol=1e-4)
  assert jax.device_count() == 8
  sharding = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch"))
  spread_noise, spread_images = sample(jax.device_put(keys, sharding))
  np.testing.assert_array_equal(spread_noise, noise)
  np.testing.assert_allclose(spread_images, images, atol=1e-4)
  pmapped = jax.pmap(sample)(keys.reshape(8, 8))
  np.testing.assert_array_equal(pmapped[0].reshape(noise.shape), noise)
  np.testing.assert_allclose(pmapped[1].reshape(images.shape), images, atol=1e-4)


@pytest.mark.parametrize("name", NFE)
def test_memory_does_not_grow_with_the_number_of_steps(name):
  def temporary_bytes(n):
    x, keys = jnp.ones((8, 16, 16, 1)), keys_of(8)
    run = jax.jit(lambda x: samplers.BY_NAME[name](DENOISE, P, x, times.edm_grid(n), keys))
    return run.lower(x).compile().memory_analysis().temp_size_in_bytes

  assert temporary_bytes(256) < temporary_bytes(8) + 8192  # the grid itself


@pytest.mark.parametrize("name", NFE)
def test_trajectory_has_every_state_once(name):
  grid, keys = times.edm_grid(5), keys_of(2)
  x = P.prior(keys, (3, 3, 1), grid[0])
  plain = samplers.BY_NAME[name](DENOISE, P, x, grid, keys)
  x0, states = samplers.BY_NAME[name](DENOISE, P, x, grid, keys, trajectory=True)
  assert states.shape == (6, 2, 3, 3, 1)
  np.testing.assert_array_equal(states[0], x)
  np.testing.assert_array_equal(states[-1], x0)
  np.testing.assert_allclose(x0, plain, rtol=1e-5)
  if catalogue.evaluations(name, 2) == 2 and "lower_final" not in inspect.signature(samplers.BY_NAME[name]).parameters:
    # a one-stage sampler of the first three steps passes through the same states
    _, three = samplers.BY_NAME[name](DENOISE, P, x, np.append(grid[:4], 0), keys, trajectory=True)
    np.testing.assert_allclose(three[:4], states[:4], rtol=1e-5)


def test_heun_can_be_differentiated(x64):
  """The gradient with respect to the start is the slope of the exact affine map."""
  grid = times.edm_grid(7)
  slope, _, _ = oracle.affine("heun", oracle.edm, 0.3, 0.64, grid)
  x = jnp.ones((1, 2, 2, 1)) * 80
  gradient = jax.grad(lambda x, g: samplers.heun(DENOISE, P, x, g).sum())
  np.testing.assert_allclose(gradient(x, grid), slope, rtol=1e-9)
  np.testing.assert_allclose(jax.jit(gradient)(x, jnp.asarray(times.pad(grid, 9))), slope, rtol=1e-9)


def test_low_precision_states_are_lifted_to_float32():
  assert samplers.heun(DENOISE, P, jnp.ones((1, 2, 2, 1), jnp.bfloat16), times.edm_grid(3)).dtype == jnp.float32


def test_nothing_swallows_a_nan():
  x = jnp.ones((1, 2, 2, 1))
  broken = lambda x, t: DENOISE(x * jnp.nan, t)
  assert np.isnan(samplers.heun(broken, P, x, times.edm_grid(3))).all()
  assert np.isnan(jax.jit(lambda g: samplers.euler(DENOISE, P, x, g))(jnp.array([80.0, jnp.nan, 0.0]))).all()


@pytest.mark.parametrize("call, message", [
  (lambda x, g: samplers.euler(DENOISE, P, x[0, 0, 0], g), r"x must be a batch of images .* got shape \[1\]"),
  (lambda x, g: samplers.euler(DENOISE, P, x, g[:1]), r"grid must be \[n\+1\] with n >= 1, got shape \[1\]"),
  (lambda x, g: samplers.heun(DENOISE, P, x, g[::-1]), "grid must decrease from a finite t to 0"),
  (lambda x, g: samplers.heun(DENOISE, P, x, g[:-1]), "grid must decrease from a finite t to 0"),
  (lambda x, g: samplers.ddpm(DENOISE, P, x, g, None), "ddpm draws noise: keys must hold one PRNG key an image"),
  (lambda x, g: samplers.dpdm(DENOISE, P, x, g, None), "dpdm draws noise: keys must hold one PRNG key an image"),
  (lambda x, g: samplers.dpdm(DENOISE, P, x, g[::-1], keys_of(2)), "grid must decrease from a finite t to 0"),
  (lambda x, g: samplers.euler_maruyama(DENOISE, P, x, g, None), "euler_maruyama draws noise: keys must hold"),
  (lambda x, g: samplers.predictor_corrector(DENOISE, P, x, g, None), "predictor_corrector draws noise: keys must"),
  (lambda x, g: samplers.ddim(DENOISE, P, x, g, eta=0.5), "ddim with eta > 0 draws noise"),
  (lambda x, g: samplers.heun(DENOISE, P, x, g, churn=samplers.Churn(1.0)), "churn draws noise"),
  (lambda x, g: samplers.ddpm(DENOISE, P, x, g, keys_of(5)), r"one key an image \[2\], got shape \[5\]"),
])  # fmt: skip
def test_bad_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(jnp.ones((2, 2, 2, 1)), times.edm_grid(4))


def test_classifier_free_guidance_is_linear_in_both_members():
  cond, uncond = (oracle.gaussian_denoise(P, m, 0.64) for m in (1.0, -1.0))
  x, t = jax.random.normal(jax.random.key(0), (2, 3, 3, 1)), 0.8
  for w in (0.0, 1.0, 2.5):
    pred = guidance.classifier_free(cond, uncond, w)(x, t)
    np.testing.assert_allclose(pred.clean, (1 - w) * uncond(x, t).clean + w * cond(x, t).clean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pred.clean + t * pred.eps, x, rtol=1e-5, atol=1e-6)


def test_samplers_are_functions_like_any_other():
  """vmap over grids, and export to an artifact that gives the same images."""
  x = jnp.ones((2, 2, 2, 1)) * 80
  grids = np.stack([times.pad(times.edm_grid(n, rho=rho), 6) for n, rho in [(6, 7.0), (3, 5.0)]])
  grids = jnp.asarray(grids, jnp.float32)
  run = lambda g, x: samplers.heun(DENOISE, P, x, g)
  one_by_one = jnp.stack([run(g, x) for g in grids])
  np.testing.assert_allclose(jax.vmap(run, (0, None))(grids, x), one_by_one, rtol=1e-5)
  exported = export.export(jax.jit(run))(jax.ShapeDtypeStruct((7,), jnp.float32), x)
  np.testing.assert_allclose(exported.call(grids[0], x), one_by_one[0], rtol=1e-5)
