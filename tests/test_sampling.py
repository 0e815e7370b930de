"""Sampling from seeds: one compilation, images that depend on their seed alone, guidance, trajectories, errors."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import tiny, toy

from diffusion_jax import cli, guidance, methods, process, samplers, sampling, times
from diffusion_jax import config as config_lib
from diffusion_jax import parameterization as par
from diffusion_jax.methods import base
from diffusion_jax.training import start, state
from diffusion_jax.types import Prediction, like, normal

S2 = 0.3  # variance of the exact Gaussian's data


class Exact:
  """The best denoiser of N(m, S2·I), m = label/10 and −0.2 without one; counts how often it is traced."""

  def __init__(self):
    self.traces = 0

  def method(self):
    return methods.Method(None, None, self.denoise, process.EDM(), methods.edm.SAMPLERS)

  def denoise(self, variables, x, t, cond=None):
    self.traces += 1
    label = -jnp.ones(len(x)) if cond is None else cond["label"]
    m = like(jnp.where(label < 0, variables["none"], label / 10), x)
    sigma = like(jnp.broadcast_to(t, len(x)), x)
    x0 = m + S2 / (S2 + sigma**2) * (x - m)
    return Prediction(x0, (x - x0) / sigma)


VARIABLES = {"none": jnp.float32(-0.2)}


@pytest.fixture
def exact():
  return Exact()


def config_of(**fields):
  config = tiny.get_config()
  for name, value in fields.items():
    config.sampling[name] = value
  return config


def generate(exact, seeds=range(5), **fields):
  return sampling.generate(config_of(**fields), exact.method(), VARIABLES, seeds)


# --- one compilation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["heun", "euler", "ddim", "ddpm"])
def test_what_a_user_varies_does_not_compile_again(exact, sampler):
  """Number of steps, range of noise levels, rho, churn or eta, guidance scale and labels are all traced."""
  churns, etas = sampler in ("heun", "euler"), sampler == "ddim"
  first = dict(sampler=sampler, guidance=1.5, churn=0.5 if churns else 0.0, eta=0.4 if etas else 0.0)
  base = generate(exact, **first)
  traces = exact.traces
  assert traces > 0
  changes = [
    {"num_steps": 40}, {"num_steps": 1}, {"sigma_min": 0.01}, {"sigma_max": 40.0}, {"rho": 3.0}, {"guidance": 0.5},
    *([{"churn": 1.0}, {"s_min": 0.1}, {"s_max": 20.0}, {"s_noise": 1.01}] if churns else []),
    *([{"eta": 0.9}] if etas else []),
  ]  # fmt: skip
  for change in changes:
    images = generate(exact, **{**first, **change})
    assert np.isfinite(images).all()
    assert exact.traces == traces, change
    if change not in ({"s_min": 0.1}, {"s_max": 20.0}):
      assert np.abs(images - base).max() > 1e-6, change
  generate(exact, range(50, 55), **first)
  assert exact.traces == traces


def test_more_steps_than_the_padding_compile_once_a_power_of_two(exact):
  generate(exact, num_steps=sampling.MAX_STEPS)
  traces = exact.traces
  long = generate(exact, num_steps=sampling.MAX_STEPS + 1)
  more = exact.traces
  assert more > traces
  generate(exact, num_steps=2 * sampling.MAX_STEPS)
  assert exact.traces == more
  np.testing.assert_allclose(long, generate(exact, num_steps=sampling.MAX_STEPS), atol=2e-3)  # both near the limit


def test_padding_changes_nothing():
  """The jitted path on a padded grid gives what the sampler alone gives on the grid as it is."""
  exact, grid = Exact(), times.edm_grid(7)
  keys = sampling.keys_of(range(4))
  got = sampling.sample(exact.method(), VARIABLES, keys, (8, 8, 1), grid, "ddpm", labels=jnp.arange(4))
  denoise = lambda x, t: exact.denoise(VARIABLES, x, t, {"label": jnp.arange(4)})
  x = process.EDM().prior(keys, (8, 8, 1), grid[0])
  alone = jax.jit(lambda x: samplers.ddpm(denoise, process.EDM(), x, grid, keys))(x)
  np.testing.assert_allclose(got, alone, atol=1e-5)


# --- an image depends on its seed -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh():
  """(method, variables) of a small convolutional network with fresh weights, its last layer as large as the others."""
  config = tiny.get_config()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
    method = methods.from_config(config)
  made = jax.jit(lambda key: method.init(key, start.example_batch(config)))(jax.random.key(0))
  return method, state.inference_variables(made.ema)


def test_images_do_not_depend_on_the_batch(fresh):
  """Seeds 0..63 with a stochastic sampler, in batches of 64 and of 8; seven of them alone, in another order."""
  config = config_of(sampler="ddpm", num_steps=4)
  whole = sampling.generate(config, *fresh, np.arange(64), batch_size=64)
  assert whole.shape == (64, 8, 8, 1) and np.std(whole) > 0.01
  assert len(np.unique(whole[:, 0, 0, 0])) == 64
  np.testing.assert_allclose(sampling.generate(config, *fresh, np.arange(64), batch_size=8), whole, atol=1e-4)
  some = np.array([60, 3, 17, 3, 41, 0, 63])
  np.testing.assert_allclose(sampling.generate(config, *fresh, some, batch_size=64), whole[some], atol=1e-4)
  np.testing.assert_allclose(sampling.generate(config, *fresh, [17], batch_size=1), whole[[17]], atol=1e-4)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_one_device_gives_the_images_of_eight(fresh, count):
  """`generate` lays batches over the eight devices; `sample` on one device, whatever the batch, gives the same."""
  method, variables = fresh
  config, seeds = config_of(sampler="ddpm", num_steps=4), np.arange(count)
  process_, grid = sampling.schedule_of(config.sampling, method)
  assert process_ == process.EDM()
  keys = jax.device_put(sampling.keys_of(seeds), jax.devices()[0])
  one = sampling.sample(method, variables, keys, (8, 8, 1), grid, "ddpm", labels=jnp.asarray(seeds % 10))
  assert one.sharding.device_set == {jax.devices()[0]}
  np.testing.assert_allclose(sampling.generate(config, method, variables, seeds, batch_size=64), one, atol=1e-4)


def test_batches_are_worked_on_by_all_devices(exact, monkeypatch):
  """The images of a batch come out spread over the eight devices."""
  seen, sample = [], sampling.sample
  monkeypatch.setattr(sampling.generation, "sample", lambda *a, **k: seen.append(sample(*a, **k)) or seen[-1])
  generate(exact, range(64))
  assert [len(images.sharding.device_set) for images in seen] == [8]
  assert {shard.data.shape[0] for shard in seen[0].addressable_shards} == {8}


@pytest.mark.parametrize("sampler", ["heun", "ddpm", "dpdm", "predictor_corrector", "dpm_solver_3", "unipc", "rk45"])
def test_a_fresh_network_runs_with_every_kind_of_sampler(fresh, sampler):
  """Finite images of a network that knows nothing; the others are run with exact denoisers."""
  images = sampling.generate(config_of(sampler=sampler, num_steps=3), *fresh, np.arange(8))
  assert images.shape == (8, 8, 8, 1) and images.dtype == np.float32 and np.isfinite(images).all()


def test_progress_counts_every_image_once(exact):
  counted = []
  method = exact.method()
  sampling.generate(config_of(), method, VARIABLES, range(20), batch_size=8, progress=counted.append)
  assert counted == [8, 8, 4]


# --- labels, guidance, trajectories -----------------------------------------------------------------------------------


def test_labels_are_the_seeds_by_default(exact):
  """Seed modulo ten; labels of −1 are none. Means over forty images a class."""
  config, seeds, error = config_of(num_steps=18), np.arange(400), 4 * np.sqrt(S2 / (40 * 64))
  means = sampling.generate(config, exact.method(), VARIABLES, seeds, batch_size=400).mean((1, 2, 3))
  np.testing.assert_allclose(means.reshape(40, 10).mean(0), np.arange(10) / 10, atol=error)
  without = sampling.generate(config, exact.method(), VARIABLES, seeds, -np.ones(400, int), batch_size=400)
  assert abs(without.mean() + 0.2) < error


def test_guidance_of_one_is_none(exact):
  method, keys, labels = exact.method(), sampling.keys_of(range(3)), jnp.arange(3)
  call = lambda **k: sampling.sample(method, VARIABLES, keys, (8, 8, 1), times.edm_grid(6), "euler", **k)
  np.testing.assert_allclose(call(labels=labels, guidance=1.0), call(labels=labels), atol=1e-5)
  np.testing.assert_allclose(call(labels=labels, guidance=0.0), call(labels=-jnp.ones(3, int)), atol=1e-5)


@pytest.mark.parametrize("w", [0.5, 3.0])
def test_guidance_of_gaussians_moves_their_mean(exact, w):
  """The guided denoiser of two Gaussians of equal width is that of their mean m_u + w·(m_c − m_u)."""
  method, keys = exact.method(), sampling.keys_of(range(3))
  call = lambda variables, **k: sampling.sample(method, variables, keys, (8, 8, 1), times.edm_grid(6), "heun", **k)
  got = call(VARIABLES, labels=jnp.full(3, 4), guidance=w)
  np.testing.assert_allclose(got, call({"none": -0.2 + w * 0.6}), atol=1e-4)


def test_a_trajectory_holds_the_states_of_the_grid(exact):
  """From the prior to the images, each by Euler's rule x + (s − t)(x − D)/t from the one before."""
  grid, keys = times.edm_grid(5), sampling.keys_of(range(2))
  images, states = sampling.sample(exact.method(), VARIABLES, keys, (8, 8, 1), grid, "euler", trajectory=True)
  assert states.shape == (6, 2, 8, 8, 1)
  np.testing.assert_array_equal(states[-1], images)
  np.testing.assert_allclose(states[0], process.EDM().prior(keys, (8, 8, 1), grid[0]), rtol=1e-6)
  for x, after, t, s in zip(np.asarray(states[:-1], float), states[1:], grid[:-1], grid[1:]):
    best = -0.2 + S2 / (S2 + t**2) * (x + 0.2)
    np.testing.assert_allclose(after, x + (s - t) * (x - best) / t, rtol=1e-4, atol=1e-4)
  plain = sampling.sample(exact.method(), VARIABLES, keys, (8, 8, 1), grid, "euler")
  np.testing.assert_allclose(plain, images, atol=1e-6)


def test_the_prior_has_the_largest_noise_level(exact):
  """One DDIM step from σ_max lands on D(x), so the images are the mean and a share S2/(S2 + σ²) of the prior."""
  images = generate(exact, np.arange(8), sampler="ddim", num_steps=1, sigma_max=50.0)
  x = 50 * np.asarray(jax.vmap(lambda k: process.EDM().prior(k[None], (8, 8, 1), 1.0)[0])(sampling.keys_of(range(8))))
  m = (np.arange(8) / 10)[:, None, None, None]
  np.testing.assert_allclose(images, m + S2 / (S2 + 2500) * (x - m), atol=1e-4)  # x is some 100: 1e-5 is its rounding


def test_evaluations_are_counted(exact):
  """2N − 1 for Heun, N else, twice that with guidance."""
  count = lambda **fields: sampling.evaluations(config_of(**fields).sampling, exact.method())
  assert count(sampler="heun", num_steps=18) == 35
  assert count(sampler="ddim", num_steps=18) == 18
  assert count(sampler="heun", num_steps=18, guidance=2.0) == 70
  assert count(sampler="predictor_corrector", num_steps=18) == 36


FLOW = [name for name, kind in samplers.KINDS.items() if kind.orders or kind.noise == "tau"]  # deterministic, at τ = 0


@pytest.mark.parametrize("sampler", FLOW)
def test_every_deterministic_sampler_follows_the_flow(exact, sampler):
  """From config.sampling to the image that the probability flow has, m + √S2·(x − m)/√(S2 + σ²), within its order."""
  images = generate(exact, np.arange(6), sampler=sampler, num_steps=60, tau=0.0)
  x = 80 * np.asarray(jax.vmap(lambda k: process.EDM().prior(k[None], (8, 8, 1), 1.0)[0])(sampling.keys_of(range(6))))
  m = (np.arange(6) / 10)[:, None, None, None]
  expected = m + np.sqrt(S2 / (S2 + 6400)) * (x - m)
  error = np.abs(images - expected).max()
  assert error < (0.2 if sampler in ("euler", "ddim") else 0.02), error


@pytest.mark.parametrize("sampler", ["deis", "unipc", "sa_solver", "multistep"])
def test_orders_come_from_the_config(exact, sampler):
  """Another order gives other images; 0 is the sampler's own, or the highest that few steps allow."""
  draw = lambda **fields: generate(exact, np.arange(3), sampler=sampler, tau=0.0, **fields)
  own = samplers.KINDS[sampler].orders[-1]
  np.testing.assert_allclose(draw(num_steps=6), draw(num_steps=6, order=own), atol=1e-5)
  assert np.abs(draw(num_steps=6, order=1) - draw(num_steps=6)).max() > 1e-4
  np.testing.assert_allclose(draw(num_steps=2), draw(num_steps=2, order=2), atol=1e-5)


def test_the_evaluations_of_rk45_are_measured(exact):
  mean = lambda **fields: sampling.mean_evaluations(
    config_of(sampler="rk45", num_steps=2, **fields), exact.method(), VARIABLES, range(16)
  )
  assert sampling.evaluations(config_of(sampler="rk45").sampling, exact.method()) is None
  few, many, guided = mean(), mean(rtol=1e-5, atol=1e-5), mean(guidance=1.5)
  assert 20 < few < many < 400 and guided % 2 == 0 and guided > few
  assert sampling.mean_evaluations(config_of(num_steps=5), exact.method(), VARIABLES, range(2)) == 9


@pytest.mark.parametrize("fields, message", [
  (dict(sampler="unipc", order=4), "sampling.order = 4: must be 0 or one of 1, 2, 3 for the sampler unipc"),
  (dict(sampler="deis", order=4, num_steps=3), "sampling.order = 4: must be at most the number of steps (3)"),
  (dict(sampler="heun", order=2), "sampling.order = 2: must be 0 for the sampler heun, which has but one"),
  (dict(sampler="dpmpp_3m", num_steps=2), "sampling.num_steps = 2: must be at least 3 for the sampler dpmpp_3m"),
])  # fmt: skip
def test_orders_that_do_not_go_are_named(exact, fields, message):
  with pytest.raises(config_lib.ConfigError, match=re.escape(message)):
    sampling.evaluations(config_of(**fields).sampling, exact.method())
  with pytest.raises(config_lib.ConfigError, match=re.escape(message)):
    generate(exact, **fields)


def test_the_nearest_number_of_evaluations(exact):
  """--sampler=all takes the most that are not more; alone it is an error that names the nearest."""
  steps = lambda sampler, nfe, **more: cli.nfe_steps(nfe, config_of(sampler=sampler), exact.method(), **more)
  assert (steps("heun", "9"), steps("dpm_solver_3", "10"), steps("unipc", "10")) == (5, 4, 10)
  assert (steps("heun", "10", nearest=True), steps("dpmpp_3m", "2", nearest=True)) == (5, None)
  with pytest.raises(cli.UsageError, match="--nfe=10: heun cannot spend that; nearest: 9"):
    steps("heun", "10")
  with pytest.raises(cli.UsageError, match="--nfe=10: rk45 spends what --rtol and --atol ask for"):
    steps("rk45", "10")


# --- any grid, process and solver (EDM's Table 1) ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "ve", "edm"])
@pytest.mark.parametrize("grid", ["vp", "ve", "iddpm", "edm"])
def test_every_grid_and_process_leads_to_the_data(exact, name, grid):
  """Heun maps the prior to N(m, S2) as the closed form of the flow does: x = m + √(S2/(S2 + σ²))·(x_T − m).

  In 60 steps, but for iDDPM's levels in VE's time: t = σ² shrinks by 20 in each of the last ones, which Heun cannot do.
  """
  fields = dict(sampler="heun", grid=grid, process=name, num_steps=900 if (grid, name) == ("iddpm", "ve") else 60)
  p, levels = sampling.schedule_of(config_of(**fields).sampling, exact.method())
  assert type(p) is {"vp": process.VP, "ve": process.VE, "edm": process.EDM}[name]
  images = generate(exact, np.arange(4), **fields)
  top = float(p.noise_level(levels[0]))
  prior = jax.vmap(lambda k: p.prior(k[None], (8, 8, 1), levels[0])[0])(sampling.keys_of(range(4))) / p.alpha(levels[0])
  m = (np.arange(4) / 10)[:, None, None, None]
  expected = m + np.sqrt(S2 / (S2 + top**2)) * (prior - m)
  # A grid's last step, Euler from σ_min, and its coarsest steps leave a bias of this size.
  np.testing.assert_allclose(images, expected, atol=0.15 if grid == "ve" or name == "ve" else 0.05)


def test_the_grids_are_those_of_table_1(exact):
  """Noise levels of the schedule through the process's own t, with VP's β solved for the range."""
  for grid, wanted in {
    "edm": times.edm_grid(7), "ve": times.ve_grid(7), "iddpm": times.iddpm_grid(7), "vp": times.vp_grid(7)
  }.items():
    for name in ("vp", "ve", "edm"):
      p, t = sampling.schedule_of(config_of(grid=grid, process=name, num_steps=7).sampling, exact.method())
      np.testing.assert_allclose(p.noise_level(t[:-1]), wanted[:-1], rtol=2e-3)
  fields = dict(grid="vp", process="vp", sigma_min=0.01, sigma_max=50.0)
  p, t = sampling.schedule_of(config_of(**fields).sampling, exact.method())
  np.testing.assert_allclose((p.noise_level(1e-3), p.noise_level(1.0)), (0.01, 50), rtol=1e-4)
  np.testing.assert_allclose((t[0], t[-2]), (1, 1e-3), rtol=1e-4)


def trained(name):
  """The exact method with the noise levels of a column's network."""
  row = {"vp": par.VPPreconditioner(), "ve": par.VEPreconditioner(), "iddpm": par.IDDPMPreconditioner()}[name]
  return Exact().method()._replace(preconditioner=row)


def test_a_grid_beyond_the_network_is_clamped_with_one_warning():
  """Where the range was asked for; a grid's own range is fitted silently."""
  levels = lambda **fields: sampling.schedule_of(config_of(num_steps=7, **fields).sampling, trained("ve"))[1]
  with pytest.warns(UserWarning, match="clamped to those that the network was trained on, 0.02 to 100") as caught:
    asked = levels(sigma_min=0.002, sigma_max=80.0)
  assert len(caught) == 1
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    own = levels()
    np.testing.assert_allclose(levels(sigma_min=0.02, sigma_max=80.0), own)
  np.testing.assert_allclose(asked, times.edm_grid(7, 0.02, 80.0), rtol=1e-6)
  np.testing.assert_allclose(own, asked)


def test_iddpm_networks_see_only_their_own_levels():
  """The grid takes the nearest u_j, each once; so does the raised level of churn."""
  table = times.iddpm_levels()[:-1]
  _, grid = sampling.schedule_of(config_of(num_steps=400).sampling, trained("iddpm"))
  exact_grid = times.edm_grid(400, table[-1], 80.0)[:-1]
  nearest = table[np.abs(table - exact_grid[:, None]).argmin(1)]
  np.testing.assert_allclose(grid[:-1], np.unique(nearest)[::-1], rtol=1e-6)
  assert len(grid) - 1 < 400 == len(exact_grid)
  assert sampling.evaluations(config_of(num_steps=400).sampling, trained("iddpm")) == 2 * (len(grid) - 1) - 1
  seen = []

  def denoise(x, sigma):
    jax.debug.callback(lambda s: seen.append(float(s)), sigma)
    return Prediction(0 * x, x / sigma)

  churn = sampling.options_of(config_of(churn=3.0, s_min=0.05, s_max=50.0).sampling, trained("iddpm"))["churn"]
  edm, keys = process.EDM(), sampling.keys_of([0])
  samplers.euler(denoise, edm, edm.prior(keys, (8, 8, 1), grid[0]), np.append(grid[:-1][::20], 0), keys, churn=churn)
  jax.effects_barrier()
  assert len(seen) > 10 and all(np.min(np.abs(table / s - 1)) < 1e-5 for s in seen)
  raised = [s for s in seen if np.min(np.abs(grid[:-1][::20] / s - 1)) > 1e-4]
  assert raised  # some levels were raised above the grid's


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_sampler_that_the_method_lacks_is_an_error_with_its_list(exact):
  with pytest.raises(ValueError, match="heun, euler, ddim, .*, decoupled.*'dddm'"):
    sampling.sample(exact.method(), VARIABLES, sampling.keys_of([0]), (8, 8, 1), times.edm_grid(3), "dddm")


def test_guidance_without_labels_is_an_error(exact):
  with pytest.raises(ValueError, match=r"guidance needs labels"):
    sampling.sample(exact.method(), VARIABLES, sampling.keys_of([0]), (8, 8, 1), times.edm_grid(3), guidance=2.0)


# --- samplers and grids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own, name, grid", [
  (("heun", "edm"), "dpdm", "dpdm"), (("heun", "edm"), "euler", "edm"), (("heun", "vp"), "euler", "vp"),
  (("heun", "vp"), "dpdm", "dpdm"), (("dpdm", "dpdm"), "heun", "edm"), (("dpdm", "dpdm"), "dpdm", "dpdm"),
  (("dpdm", "edm"), "dpdm", "edm"), (("heun", "dpdm"), "heun", "dpdm"), (("heun", "dpdm"), "ddim", "edm"),
  (("heun", "edm"), "dddm", "dddm"), (("heun", "decoupled"), "dddm", "dddm"), (("dddm", "dddm"), "heun", "edm"),
  (("dddm", "dddm"), "dpdm", "dpdm"), (("dddm", "dddm"), "dddm", "dddm"),
])  # fmt: skip
def test_a_sampler_brings_its_grid(own, name, grid):
  """A run's own pair stays as it is, and so do all other fields and the config itself."""
  config = config_of(sampler=own[0], grid=own[1], num_steps=5, sigma_min=0.1)
  chosen = sampling.with_sampler(config, name).sampling
  assert (chosen.sampler, chosen.grid, chosen.num_steps, chosen.sigma_min) == (name, grid, 5, 0.1)
  assert (config.sampling.sampler, config.sampling.grid) == own


# --- DDDM: iterations at one time -------------------------------------------------------------------------------------

CHAIN = process.DDPM(50, 0.1 / 50, 20 / 50)


class Direct:
  """f(x̄, x) = −.6·x̄ + .3·x + label/10, without a label −.2, at t = T; counts how often it is traced."""

  def __init__(self):
    self.traces = 0

  def method(self):
    return methods.Method(None, None, self.denoise, CHAIN, ("dddm",))

  def denoise(self, variables, x, t, cond):
    self.traces += 1
    label = cond.get("label", -jnp.ones(len(x)))
    clean = -0.6 * cond["previous"] + 0.3 * x + like(jnp.where(label < 0, -0.2, label / 10), x)
    return Prediction(jnp.where(like(t == CHAIN.num_steps, x), clean, jnp.nan), x)


def start_of(keys):
  """x_T and the first estimate."""
  x = CHAIN.prior(keys, (8, 8, 1), 50.0)
  return np.asarray(x, float), np.asarray(normal(keys, 0, (8, 8, 1)), float)


def iterated(keys, n, bias, clamp):
  """[n+1, B, H, W, C]: what n iterations come to, in float64 NumPy."""
  x, image = start_of(keys)
  out = [image]
  for _ in range(n):
    out.append(np.clip(-0.6 * out[-1] + 0.3 * x + bias, -clamp, clamp))
  return np.stack(out)


DIRECT = dict(sampler="dddm", grid="dddm", clip=1.0)


@pytest.mark.parametrize("fields, n, bias, clamp", [
  ({"num_steps": 1}, 1, None, 1.0), ({"num_steps": 5, "clip": 0.4}, 5, None, 0.4),
  ({"num_steps": 5, "clip": 0.0}, 5, None, np.inf), ({"num_steps": 3, "guidance": 2.5}, 3, 2.5, 1.0),
])  # fmt: skip
def test_dddm_iterates_from_its_seeds(fields, n, bias, clamp):
  """Through `generate`: clip = 0 does not clamp, guidance moves the bias to c_u + w·(c_y − c_u) at every iteration."""
  seeds = np.arange(8)
  got = sampling.generate(config_of(**DIRECT | fields), Direct().method(), {}, seeds)
  labels = (seeds / 10)[:, None, None, None]
  moved = labels if bias is None else -0.2 + bias * (labels + 0.2)
  np.testing.assert_allclose(got, iterated(sampling.keys_of(seeds), n, moved, clamp)[-1], atol=1e-5)


def test_rescaling_and_dynamic_thresholds_go_with_dddm():
  """By hand at every iteration: guided, rescaled to the deviation of its class, brought to the limit."""
  seeds, w, share, limit, percentile = np.arange(8), 2.5, 0.7, 0.8, 0.9
  x, image = start_of(sampling.keys_of(seeds))
  std = lambda images: np.std(images, axis=(1, 2, 3), keepdims=True)
  slope = np.linspace(0.5, 1.5, 8)[:, None]  # else guidance would only shift images

  class Sloped(Direct):
    def denoise(self, variables, x, t, cond):
      pred = super().denoise(variables, x, t, cond)
      return pred._replace(clean=pred.clean * jnp.where(like(cond["label"] < 0, x), slope, 1))

  for _ in range(3):
    base = -0.6 * image + 0.3 * x
    own, other = base + (seeds / 10)[:, None, None, None], (base - 0.2) * slope
    image = other + w * (own - other)
    image = image * (share * std(own) / std(image) + 1 - share)
    top = np.maximum(np.percentile(np.abs(image), 100 * percentile, axis=(1, 2, 3), keepdims=True), limit)
    image = np.clip(image, -top, top) / top * limit
  options = dict(guidance=w, guidance_rescale=share, clip=limit, clip_percentile=percentile, num_steps=3)
  config = config_of(**DIRECT | options)
  config_lib.check(config)
  np.testing.assert_allclose(sampling.generate(config, Sloped().method(), {}, seeds), image, atol=1e-5)


def test_iterations_of_dddm_do_not_compile_again():
  """Up to MAX_STEPS; a thousand of them end at the fixed point (.3·x + c)/1.6."""
  direct, seeds = Direct(), np.arange(8)
  draw = lambda n: sampling.generate(config_of(**DIRECT | {"num_steps": n, "clip": 9.0}), direct.method(), {}, seeds)
  draw(1)
  traces = direct.traces
  draw(2)
  draw(sampling.MAX_STEPS)
  assert direct.traces == traces > 0
  fixed = (0.3 * start_of(sampling.keys_of(seeds))[0] + (seeds / 10)[:, None, None, None]) / 1.6
  np.testing.assert_allclose(draw(1000), fixed, atol=1e-5)


def test_the_evaluations_of_dddm_are_its_iterations():
  """Twice that with guidance; --nfe=1000 is a thousand of them."""
  method, config = Direct().method(), config_of(**DIRECT, num_steps=1000)
  assert sampling.evaluations(config.sampling, method) == 1000
  assert sampling.evaluations(config_of(**DIRECT, num_steps=3, guidance=2.0).sampling, method) == 6
  assert cli.nfe_steps("1000", config, method) == 1000
  _, grid = sampling.schedule_of(config.sampling, method)
  np.testing.assert_array_equal(grid, [50.0] * 1000 + [0.0])


def test_a_trajectory_of_dddm_holds_its_estimates():
  keys = sampling.keys_of(range(2))
  images, estimates = sampling.sample(
    Direct().method(), {}, keys, (8, 8, 1), [50.0] * 3 + [0.0], "dddm", trajectory=True, clamp=0.5
  )
  np.testing.assert_allclose(estimates, iterated(keys, 3, -0.2, 0.5), atol=1e-6)
  np.testing.assert_array_equal(estimates[-1], images)


def test_the_previous_estimate_passes_through_guidance_and_change_of_process():
  """A classifier log p(0|x) = log σ(k·Σx) moves each estimate by s·σ²/α·k·(1 − p); the clip bounds it; EDM agrees."""
  keys, k, s = sampling.keys_of(range(2)), 0.3, 0.002
  logits = lambda variables, x, t: jnp.stack([k * x.sum((1, 2, 3)), jnp.zeros(len(x))], 1)
  classifier = guidance.Classifier(logits, CHAIN, 2, {}, s)
  x, _ = start_of(keys)
  alpha2 = np.prod(1 - np.linspace(0.1 / 50, 20 / 50, 50))
  wrong_share = 1 / (1 + np.exp(k * x.sum((1, 2, 3), keepdims=True)))
  shift = s * (1 - alpha2) / np.sqrt(alpha2) * k * wrong_share
  assert np.abs(shift).max() > 0.02
  expected = iterated(keys, 4, shift, 0.7)[-1]
  own = np.full(4, 50.0)
  level = np.full(4, np.sqrt((1 - alpha2) / alpha2))
  for chosen, times_ in ((CHAIN, own), (process.EDM(), level)):
    got = sampling.sample(
      Direct().method(), {}, keys, (8, 8, 1), np.append(times_, 0), "dddm", labels=jnp.zeros(2, int), process=chosen,
      clip=0.7, clamp=None, classifier=classifier,
    )  # fmt: skip
    np.testing.assert_allclose(got, expected, atol=2e-5 if chosen == CHAIN else 1e-3)


@pytest.mark.parametrize("fields, message", [
  ({"grid": "edm"}, "config.sampling.grid = 'edm': must be 'dddm' for the sampler dddm, whose times are all T"),
  ({"sampler": "heun"}, "config.sampling.grid = 'dddm': must be another for the sampler heun: its times are all T"),
  ({"sigma_max": 5.0}, "config.sampling.sigma_max = 5.0: must be 0 for the grid dddm, which is one of times"),
  ({"process": "vp"}, "config.sampling.process = 'vp': must be 'own' for the grid dddm"),
])  # fmt: skip
def test_what_does_not_go_with_dddm_is_named(fields, message):
  config = config_of(**DIRECT | fields)
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.check(config)
    sampling.schedule_of(config.sampling, Direct().method())
  assert str(error.value) == message


def test_the_grid_of_dddm_needs_a_chain(exact):
  with pytest.raises(config_lib.ConfigError, match="sampling.grid = 'dddm': needs a method whose process is a chain"):
    sampling.schedule_of(config_of(**DIRECT).sampling, exact.method())
