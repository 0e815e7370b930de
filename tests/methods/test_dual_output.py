"""Dual-Output: its pair against exact answers and the paper's equations, its losses, their gradients, bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from methods.test_edm import DIM, batch_of, gaussian_images
from test_config import get_config
from training import tiny

from diffusion_jax import config as config_lib
from diffusion_jax import losses, methods, process, samplers, sampling, times
from diffusion_jax import parameterization as par
from diffusion_jax.config import ConfigError
from diffusion_jax.evaluation import r_table
from diffusion_jax.methods import base, dpdm, dual_output
from diffusion_jax.nets import layers
from diffusion_jax.samplers.ancestral import noise_ratio
from diffusion_jax.training import checkpoint, loop, start, state, warm
from diffusion_jax.types import normal

M, S2 = 0.3, 0.64
CHAINS = {"DDPM": process.DDPM(), "Cosine": process.Cosine()}


def dual_config(**fields):
  c = tiny.get_config()
  c.method = "dual_output"
  c.data.update(num_classes=0, flip=False)
  c.label_dropout = 0.0
  c.sampling.update(sampler="ddim", grid="respaced", num_steps=5)
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


class Heads:
  """A network whose heads are the given function of (parameters, x, index [B, 1, 1, 1]); counts its traces."""

  def __init__(self, function, params=None, names=("eps", "x", "r", "variance")):
    self.function, self.names, self.params, self.calls = function, names, params or {"a": jnp.zeros(())}, []

  def init(self, key, x, index):
    return {"params": self.params}

  def apply(self, variables, x, index, labels=None, augment=None, dropout_keys=None):
    self.calls.append({"x": x, "index": index, "labels": labels, "dropout_keys": dropout_keys})
    heads = self.function(variables["params"], x, index[:, None, None, None])
    return {"out": heads[0], **dict(zip(self.names, heads))}  # "out" is for EDM


@pytest.fixture
def method_of(monkeypatch):
  """(network, {field: value}) -> (method, its first state, config)."""

  def make(network, **fields):
    config = dual_config(**fields)
    monkeypatch.setattr(base, "network_from_config", lambda config, heads: network)
    method = methods.from_config(config)
    return method, method.init(jax.random.key(0), start.example_batch(config)), config

  return make


def wrong_heads(p, x, index):
  """Heads that disagree, all of them functions of x and t."""
  return jnp.sin(3 * x) + 1e-3 * index / 4, jnp.tanh(x) + 0.1, jnp.cos(x[..., :1]) + 0.2


# --- the pair ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "heun", "ddpm"])
@pytest.mark.parametrize("name", CHAINS)
def test_exact_heads_sample_the_exact_recursion_whatever_r_is(name, sampler, x64):
  """Data N(m, s²), five steps; r_θ differs from pixel to pixel, or r is one number."""
  p, grid, keys = CHAINS[name], times.respaced(CHAINS[name].num_steps, 5), sampling.keys_of(range(3))
  exact, x = oracle.gaussian_denoise(p, M, S2), jnp.linspace(-2, 2, 48).reshape(3, 4, 4, 1)

  def dual(x, t, scale, ratio):
    pred = exact(x, t)
    r = jax.nn.sigmoid(scale * jnp.sin(5 * x)) if ratio is None else ratio
    logit = jnp.log(r) - jnp.log1p(-r) if ratio is None else 0 * x
    return par.dual(p, pred.eps, pred.clean, logit, x, t, ratio)

  def run(denoise):
    return getattr(samplers, sampler)(denoise, p, x, grid, keys)

  if sampler == "ddpm":
    expected = run(exact)
  else:
    a, b, _ = oracle.affine(sampler, oracle.SCHEDULES[name], M, S2, grid)
    expected = a * x + b
  learned = jax.jit(lambda scale: run(lambda x, t: dual(x, t, scale, None)))
  fixed = jax.jit(lambda ratio: run(lambda x, t: dual(x, t, None, ratio)))
  for got in (learned(0.5), learned(9.0), fixed(0.0), fixed(0.3), fixed(1.0)):
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("unit", [True, False], ids=["unit", "respaced"])
def test_mixing_images_is_mixing_the_means_as_printed(name, unit, x64):
  """Eqs. 12, 13, 16 (DDPM) and 23, 24 (DDIM) at every kind of step; (24) as printed holds for unit steps."""
  p = CHAINS[name]
  bars = np.append(1.0, p.alpha_bars())
  x, eps, x0, logit = np.random.default_rng(0).standard_normal((4, 2, 4, 4, 3))
  logit = logit[..., :1]
  r = 1 / (1 + np.exp(-logit))
  last = p.num_steps
  steps = [(1, 0), (2, 1), (last // 2, last // 2 - 1), (last, last - 1)]
  if not unit:
    steps = [(last // 5, 0), (2 * last // 5, last // 5), (last, 4 * last // 5), (last, 1)]
  for t, s in steps:
    bar, before = bars[t], bars[s]
    step = bar / before  # α_t, for a unit step
    beta = 1 - step
    pred = par.dual(p, eps, x0, logit, x, t)
    move = lambda root, eta: samplers.transition(p, pred, x, t, s, root)
    # DDPM
    mean_x = np.sqrt(before) * beta / (1 - bar) * x0 + np.sqrt(step) * (1 - before) / (1 - bar) * x
    mean_eps = (x - beta / np.sqrt(1 - bar) * eps) / np.sqrt(step)
    mixed = r * mean_x + (1 - r) * mean_eps
    got = move(p.sigma(s) * noise_ratio(p, t, s), None)
    np.testing.assert_allclose(got, mixed, atol=1e-6 * np.abs(mixed).max())
    # DDIM with σ_t² = η²·β̃_t
    for eta in (0.0, 0.5):
      root = np.sqrt(max(1 - before - eta**2 * (1 - before) / (1 - bar) * beta, 0))
      mean_x = np.sqrt(before) * x0 + root * (x - np.sqrt(bar) * x0) / np.sqrt(1 - bar)
      mean_eps = np.sqrt(before) * (x - np.sqrt(1 - bar) * eps) / np.sqrt(bar) + root * eps
      mixed = r * mean_x + (1 - r) * mean_eps
      np.testing.assert_allclose(move(root, eta), mixed, atol=1e-6 * np.abs(mixed).max())
      printed = (x - np.sqrt(1 - bar) * eps) / np.sqrt(p.alpha_bars()[t - 1] / bars[t - 1]) + root * eps
      assert np.allclose(mean_eps, printed, rtol=1e-9) == unit


@pytest.mark.parametrize("p", [*CHAINS.values(), process.VP(), process.EDM(), process.Decoupled()], ids=str)
def test_the_pair_is_consistent_and_finite_to_the_ends(p):
  """x_t = m(ĉ, t) + σ_t·ε̂ at every noise level, α = 0 included, in float32."""
  x, eps, x0, logit = jax.random.normal(jax.random.key(0), (4, 5, 4, 4, 3))
  t = p.inverse(jnp.array([0.02, 0.5, 5.0, 80.0, 1e6]))
  for ratio in (None, 0.0, 0.4, 1.0):
    pred = par.dual(p, eps, x0, 30 * logit[..., :1], x, t, ratio)
    assert np.isfinite(pred.clean).all() and np.isfinite(pred.eps).all()
    again = p.perturb(pred.clean, pred.eps, t)
    scale = np.abs(pred.clean).max((1, 2, 3), keepdims=True) + np.abs(pred.eps).max((1, 2, 3), keepdims=True)
    assert np.all(np.abs(again - x) < 1e-5 * (1 + scale))


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_five_cosine_steps_stay_finite(method_of, sampler):
  """The paper's ✗, for every row: heads that are wrong by any measure, at ᾱ_T = 1.5e-10, in float32."""
  method, made, config = method_of(Heads(wrong_heads), dual__process="cosine", sampling__sampler=sampler)
  for fields in (*(dict(ratio=ratio) for ratio in ("learned", "0", "1", "0.5", "0.1,0.9")), dict(switch=2)):
    config.sampling.update({"ratio": "learned", **fields})
    images = sampling.generate(config, method, {"params": made.ema["net"]}, range(4))
    assert images.shape == (4, 8, 8, 1) and np.isfinite(images).all(), fields


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAINS)
def test_the_closed_form_is_the_printed_loss(name, x64):
  """Eqs. 17 to 19 from μ̃, μ_x and μ_ε as printed (8, 12, 13), in float64, first and last step included."""
  p = CHAINS[name]
  bars = np.append(1.0, p.alpha_bars())
  t = np.array([1, 2, 7, p.num_steps // 2, p.num_steps])
  x0, eps, eps_head, x_head, logit = np.random.default_rng(1).standard_normal((5, 5, 4, 4, 3))
  logit = logit[..., :1]
  bar, before = (b.reshape(-1, 1, 1, 1) for b in (bars[t], bars[t - 1]))
  x = np.sqrt(bar) * x0 + np.sqrt(1 - bar) * eps
  beta, r = 1 - bar / before, 1 / (1 + np.exp(-logit))
  posterior = lambda x0: np.sqrt(before) * beta / (1 - bar) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - bar) * x
  mean_eps = (x - beta / np.sqrt(1 - bar) * eps_head) / np.sqrt(1 - beta)
  square = lambda a: np.mean(a**2, axis=(1, 2, 3))
  terms = losses.dual_terms(p, eps_head, x_head, logit, x0, eps, t, t - 1)
  np.testing.assert_allclose(terms.eps, square(eps - eps_head), rtol=1e-12)
  np.testing.assert_allclose(terms.x, square(x0 - x_head), rtol=1e-12)
  printed = square(posterior(x0) - r * posterior(x_head) - (1 - r) * mean_eps)
  np.testing.assert_allclose(terms.mean, printed, rtol=1e-8)
  alone = square(posterior(x0) - posterior(x_head)) + square(posterior(x0) - mean_eps)
  relative = losses.dual_terms(p, eps_head, x_head, logit, x0, eps, t, t - 1, relative=True)
  np.testing.assert_allclose(relative.mean, printed / alone, rtol=1e-7)
  np.testing.assert_array_equal(relative[:2], terms[:2])


def test_a_relative_loss_of_exact_heads_is_nothing():
  """Both heads right to the last bit: 0, and no NaN in its gradient."""
  p, (x0, eps) = process.DDPM(), 0.5 * jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 1))
  loss = lambda logit: jnp.sum(losses.dual_terms(p, eps, x0, logit, x0, eps, 3, 2, relative=True).mean)
  value, slope = jax.value_and_grad(loss)(jnp.ones((4, 8, 8, 1)))
  assert value == 0 and not slope.any()


def test_each_loss_reaches_its_own_head_of_the_output_layer():
  """One convolution puts out 2C + 1 channels; a loss moves its own channels of kernel and bias, and no others."""
  layer, p, t = layers.Conv(7), process.DDPM(), jnp.array([1, 30, 500, 1000])
  x0, eps = 0.5 * jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 3))
  x = p.perturb(x0, eps, t)
  params = layer.init(jax.random.key(1), x)

  @jax.jit
  def terms(params):
    out = layer.apply(params, x)
    return jax.tree.map(jnp.sum, losses.dual_terms(p, out[..., :3], out[..., 3:6], out[..., 6:], x0, eps, t, t - 1))

  for loss, own in zip(jax.jacrev(terms)(params), (range(3), range(3, 6), [6])):
    for leaf in jax.tree.leaves(loss):
      moved = np.abs(np.asarray(leaf)).reshape(-1, 7).max(0) > 0
      np.testing.assert_array_equal(moved, np.isin(np.arange(7), list(own)))


def test_the_best_r_has_no_gradient(x64):
  """r* = ⟨b, a + b⟩/‖a + b‖² a pixel, a = x_θ − x_0, b = n·(ε_θ − ε), minimises ‖r·a − (1 − r)·b‖² over channels."""
  p, t = process.DDPM(), 400
  x0, eps, a, b = 0.3 * jax.random.normal(jax.random.key(0), (4, 2, 4, 4, 3), float)
  b = 0.5 * a + 0.2 * b  # so that r* is inside (0, 1) nearly everywhere
  n = p.noise_level(t)
  best = jnp.sum(b * (a + b), -1, keepdims=True) / jnp.sum((a + b) ** 2, -1, keepdims=True)
  best = jnp.clip(best, 0.01, 0.99)
  loss = lambda logit: jnp.sum(losses.dual_terms(p, eps + b / n, x0 + a, logit, x0, eps, t, t - 1).mean)
  at = lambda r: jnp.abs(jax.grad(loss)(jnp.log(r) - jnp.log1p(-r)))
  inside = (best > 0.01) & (best < 0.99)
  assert inside.mean() > 0.9
  assert jnp.where(inside, at(best), 0).max() < 1e-10 * at(jnp.full_like(best, 0.9)).max()


def test_the_update_is_the_loss_of_its_draws(method_of):
  """In NumPy from the x and t that the network was given, the variational bound of the fourth head included."""
  network = Heads(lambda p, x, index: (jnp.sin(x) + 1e-4 * index, 0.5 * x, 0.3 * x + 0.1, jnp.full_like(x, 0.3)))
  weights = dict(dual__eps_weight=0.7, dual__x_weight=1.3, dual__mean_weight=40.0, dual__vlb_weight=0.02)
  method, made, _ = method_of(network, **weights)
  y = gaussian_images(50, 0.1, 0.5)
  network.calls.clear()
  _, metrics = method.update(made, batch_of(y), jax.random.key(3))
  (call,) = network.calls
  x, index = np.asarray(call["x"], np.float64), np.asarray(call["index"], np.float64)
  keys = state.example_keys(jax.random.key(3), 0, jnp.arange(50))
  t = index.astype(int) + 1
  np.testing.assert_array_equal(method.times(keys), t)
  bars = np.append(1.0, process.DDPM().alpha_bars())
  bar, before = (b.reshape(-1, 1, 1, 1) for b in (bars[t], bars[t - 1]))
  eps = (x - np.sqrt(bar) * y) / np.sqrt(1 - bar)
  assert abs(eps.mean()) < 4 / np.sqrt(eps.size) and abs(eps.var() - 1) < 4 * np.sqrt(2 / eps.size)
  eps_head, x_head = np.sin(x) + 1e-4 * index.reshape(-1, 1, 1, 1), 0.5 * x
  r = 1 / (1 + np.exp(-0.3 * x - 0.1))
  clean = r * x_head + (1 - r) * (x - np.sqrt(1 - bar) * eps_head) / np.sqrt(bar)
  scale = np.sqrt(before) * (1 - bar / before) / (1 - bar)
  parts = {"eps_loss": (eps_head - eps) ** 2, "x_loss": (x_head - y) ** 2, "mean_loss": (scale * (clean - y)) ** 2}
  for name, part in parts.items():
    np.testing.assert_allclose(metrics[name], part.mean(), rtol=1e-3)
  np.testing.assert_allclose(metrics["r"], r.mean(), rtol=1e-5)
  loss = 0.7 * parts["eps_loss"].mean() + 1.3 * parts["x_loss"].mean() + 40 * parts["mean_loss"].mean()
  variance, t = jnp.full(y.shape, 0.3), jnp.asarray(t, float)
  bound = losses.variational_bound(process.DDPM(), jnp.float32(clean), variance, jnp.float32(y), t, t - 1)
  loss += 0.02 * 1000 * np.mean(bound) / DIM
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-3)


def test_times_are_uniform_and_labels_are_dropped(method_of):
  network, n = Heads(wrong_heads), 4000
  method, made, _ = method_of(network, dual__process="cosine", data__num_classes=10, label_dropout=0.3)
  network.calls.clear()
  labels = np.arange(n) % 10
  method.update(made, batch_of(np.zeros((n, 8, 8, 1)), labels), jax.random.key(0))
  (call,) = network.calls
  index = np.asarray(call["index"])
  assert index.min() >= 0 and index.max() <= 3999 and np.array_equal(index, index.round())
  assert abs(index.mean() - 1999.5) < 4 * 4000 / np.sqrt(12 * n)
  assert np.all(np.abs(np.histogram(index, 8, (0, 4000))[0] - n / 8) < 4 * np.sqrt(n / 8))
  dropped = np.asarray(call["labels"]).sum(1) == 0
  np.testing.assert_array_equal(np.asarray(call["labels"])[~dropped], np.eye(10)[labels[~dropped]])
  assert abs(dropped.mean() - 0.3) < 4 * np.sqrt(0.21 / n)
  assert len({tuple(k) for k in np.asarray(jax.random.key_data(call["dropout_keys"]))}) == n


def test_a_run_trains_on_eight_devices_and_is_sampled_from(monkeypatch, tmp_path):
  """Through the loop with a small network: a log line has the three losses and r, samples are by its own grid."""
  class Small(layers.nn.Module):
    @layers.nn.compact
    def __call__(self, x, index, labels=None, augment=None, dropout_keys=None):
      emb = layers.Linear(8, name="noise")(index[:, None] / 1000)
      h = layers.nn.silu(layers.Conv(8, name="conv0")(x) + emb[:, None, None])
      out = layers.Conv(3, name="conv1")(layers.dropout(h, 0.1, dropout_keys, self.path))
      return {"eps": out[..., :1], "x": out[..., 1:2], "r": out[..., 2:]}

  monkeypatch.setattr(base, "network_from_config", lambda config, heads: Small())
  config = dual_config(train__num_steps=4)
  ended = loop.train(config, tmp_path)
  window = {name: float(value) for name, value in ended.window.items()}
  parts = window["eps_loss"] + window["x_loss"] + window["mean_loss"]
  np.testing.assert_allclose(window["loss"], parts, rtol=1e-5)  # means over all devices
  assert 0 < window["r"] < 1
  method, variables = checkpoint.load_for_inference(tmp_path)
  assert np.isfinite(sampling.generate(config, method, variables, range(3))).all()


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, row, size", [
  ("dual_cifar10", "linear", 35.7e6), ("dual_cifar10", "cosine", 52.5e6), ("dual_celeba64", None, 78.7e6),
  ("dual_imagenet128", None, 421.5e6),
])  # fmt: skip
def test_the_heads_add_less_than_a_thousandth_of_the_parameters(name, row, size):
  """On the published sizes (of DDPM, iDDPM, DDIM, ADM; ours have up to 11 % more): 2C + 1 channels against C."""
  config = get_config(name, row)[1]
  config.dual.vlb_weight = 0.0

  def count(network):
    x = jax.ShapeDtypeStruct((1, config.data.resolution, config.data.resolution, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

  alone = count(base.network_from_config(config, (("eps", 3),)))
  whole = count(dual_output.network_from_config(config))
  assert whole - alone == 4 * (9 * config.network.channels + 1)  # four more 3×3 filters with their biases
  assert whole / alone - 1 < 1e-3
  assert 0.999 < alone / size < 1.11


def test_heads_of_the_unet():
  for weight, names in ((0.0, ("eps", "x", "r")), (0.001, ("eps", "x", "r", "variance"))):
    config = dual_config(data__channels=3, dual__vlb_weight=weight)
    network = dual_output.network_from_config(config)
    assert network.heads == tuple((name, 1 if name == "r" else 3) for name in names)
    method = methods.from_config(config)
    shapes = jax.eval_shape(method.init, jax.random.key(0), start.example_batch(config))
    variables = state.inference_variables(shapes.ema)
    x = jnp.zeros((2, 8, 8, 3))
    pred = jax.eval_shape(lambda v: method.denoise(v, x, jnp.float32(7)), variables)
    assert pred.clean.shape == pred.eps.shape == (2, 8, 8, 3)
    assert (pred.log_variance is None) == (not weight)


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio, values", [
  ("0", [0] * 5), ("1", [1] * 5), ("0.25", [0.25] * 5), ("0,0.2,0.4,0.6,0.8", [0.8, 0.6, 0.4, 0.2, 0.0]),
  ("0.3,0.7", [0.7, 0.54, 0.38, 0.3, 0.3]),  # knots 500 and 1000, times 1000, 800, 600, 400, 200
  (2, [1, 1, 0, 0, 0]), (5, [1] * 5),
])  # fmt: skip
@pytest.mark.parametrize("frame", ["own", "edm"])
def test_r_can_be_chosen(method_of, ratio, values, frame):
  """DDIM by hand in float64 with these r at the five times, from the same noise, in either process."""
  fields = dict(sampling__ratio=ratio) if isinstance(ratio, str) else dict(sampling__switch=ratio)
  heads = lambda p, x, index: (jnp.sin(x), 0.3 * x + 0.1, x)
  method, made, config = method_of(Heads(heads), sampling__process=frame, **fields)
  got = sampling.generate(config, method, {"params": made.ema["net"]}, range(3))
  p = process.DDPM()
  bars = np.append(1.0, p.alpha_bars())
  x = np.asarray(normal(sampling.keys_of(range(3)), 2**31 - 1, (8, 8, 1)), np.float64)
  if frame == "own":
    x *= np.sqrt(1 - bars[1000])
  for t, r in zip(range(1000, 0, -200), values):
    alpha, sigma = np.sqrt(bars[t]), np.sqrt(1 - bars[t])
    eps, image = np.sin(x), 0.3 * x + 0.1
    clean = r * image + (1 - r) * (x - sigma * eps) / alpha
    x = np.sqrt(bars[t - 200]) * clean + np.sqrt(1 - bars[t - 200]) * (x - alpha * clean) / sigma
  np.testing.assert_allclose(got, x, rtol=2e-3, atol=2e-3 * np.abs(x).max())


def test_changing_r_does_not_compile_again(method_of):
  network = Heads(wrong_heads)
  method, made, _ = method_of(network)

  def run(**fields):
    config = dual_config(**{f"sampling__{name}": value for name, value in fields.items()})
    return sampling.generate(config, method, {"params": made.params["net"]}, range(2))

  run(ratio="0")
  traces = len(network.calls)
  for fields in (dict(ratio="1"), dict(ratio="0.2"), dict(switch=1), dict(switch=3), dict(ratio="0.5", num_steps=20)):
    run(**fields)
    assert len(network.calls) == traces, fields


def test_guidance_keeps_the_chosen_r(method_of):
  """Both evaluations are by the image head: its guided estimate, 0.1·(1 + 2·(label − 1)) by hand."""
  class Labelled(Heads):
    def apply(self, variables, x, index, labels=None, augment=None, dropout_keys=None):
      out = super().apply(variables, x, index, labels, augment, dropout_keys)
      return {**out, "x": jnp.ones_like(x) * 0.1 * labels.sum(-1)[:, None, None, None]}

  network = Labelled(lambda p, x, index: (jnp.sin(x), x, x[..., :1]))
  method, made, config = method_of(
    network, data__num_classes=10, label_dropout=0.1, sampling__ratio="1", sampling__guidance=3.0
  )
  images = sampling.generate(config, method, {"params": made.ema["net"]}, range(3))
  np.testing.assert_allclose(images, np.full((3, 8, 8, 1), 0.3), atol=1e-4)


FRAMES = (("respaced", "own"), ("respaced", "vp"), ("edm", "own"), ("edm", "edm"), ("dpdm", "ve"))


@pytest.mark.parametrize("i, sampler", list(enumerate(dual_output.SAMPLERS)))
def test_every_sampler_serves_it(method_of, i, sampler):
  """The exact heads of N(m, s²) with any r; 20 steps on a grid of times or of noise levels, in any process."""
  def function(p, x, index):
    bars = jnp.asarray(process.DDPM().alpha_bars(), jnp.float32)
    low = jnp.floor(index).astype(int)
    part = index - low
    bar = jnp.exp((1 - part) * jnp.log(bars[low]) + part * jnp.log(bars[jnp.minimum(low + 1, 999)]))
    eps = jnp.sqrt(1 - bar) * (x - jnp.sqrt(bar) * M) / (bar * S2 + 1 - bar)
    return eps, M + jnp.sqrt(bar) * S2 / (bar * S2 + 1 - bar) * (x - jnp.sqrt(bar) * M), jnp.sin(x)

  network = Heads(function)
  grid, frame = FRAMES[i % len(FRAMES)]
  fields = dict(sampler=sampler, grid=grid, process=frame, num_steps=20)
  method, made, config = method_of(network, **{f"sampling__{k}": v for k, v in fields.items()})
  images = sampling.generate(config, method, {"params": made.ema["net"]}, range(64))
  assert np.isfinite(images).all()
  low = 0.3 if sampler == "dpdm" else 0.6  # a denoiser's images are of less variance than the data
  assert abs(images.mean() - M) < 0.05 and low < images.std() < 1.0, (fields, images.mean(), images.std())


def test_grids_keep_to_what_the_network_knows(method_of):
  method, *_ = method_of(Heads(wrong_heads))
  p = process.DDPM()
  setting = lambda **fields: dual_config(**{f"sampling__{k}": v for k, v in fields.items()}).sampling
  chain, grid = sampling.schedule_of(setting(), method)
  assert chain == p
  np.testing.assert_array_equal(grid, [1000, 800, 600, 400, 200, 0])
  _, levels = sampling.schedule_of(setting(process="edm"), method)
  np.testing.assert_allclose(levels, [*np.sqrt(1 / p.alpha_bars()[[999, 799, 599, 399, 199]] - 1), 0], rtol=1e-5)
  _, grid = sampling.schedule_of(setting(grid="edm"), method)
  np.testing.assert_allclose(grid[-2:], [1, 0], rtol=1e-4)  # σ_min is that of t = 1
  assert sampling.evaluations(setting(sampler="heun"), method) == 9
  vp, _ = sampling.schedule_of(setting(process="vp"), method)
  assert isinstance(vp, process.VP)


def test_the_learned_variance_is_used(method_of):
  """v = 1 is the upper variance, v = −1 the posterior's, by the ancestral sampler."""
  network = Heads(lambda p, x, index: (0.9 * x, 0.3 * x, 0.1 * x, p["a"] + 0 * x))
  method, *_ = method_of(network, dual__vlb_weight=0.001, sampling__sampler="ddpm", sampling__variance="learned")
  keys, grid = sampling.keys_of(range(2)), times.respaced(1000, 5)

  def draw(v, variance):
    variables = {"params": {"a": jnp.float32(v)}}
    return sampling.sample(method, variables, keys, (8, 8, 1), grid, "ddpm", variance=variance)

  upper, posterior = draw(0, "upper"), draw(0, "posterior")
  np.testing.assert_allclose(draw(1, "learned"), upper, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(draw(-1, "learned"), posterior, rtol=1e-3, atol=1e-3)
  assert np.abs(upper - posterior).max() > 0.01


# --- the table of r ---------------------------------------------------------------------------------------------------


def test_the_means_of_r_are_measured_and_kept(method_of, tmp_path):
  """r_θ = sigmoid(1 − t/500) at every pixel is found, kept for the checkpoint, and taken from there."""
  network = Heads(lambda p, x, index: (x, x, 1 - (index + 1) / 500 + 0 * x))
  method, made, config = method_of(network, sampling__ratio="mean", data__num_classes=10)
  with pytest.raises(ConfigError, match=r"config.sampling.ratio = 'mean': has to be measured before"):
    sampling.ratio_of(config.sampling, method)
  with pytest.raises(ConfigError, match=r"config.sampling.ratio = 'mean': has to be measured before"):
    loop.prepare(config, None)
  taken = []
  take = lambda: taken.append(1) or (method, {"params": made.ema["net"]})
  assert r_table.resolve(config, tmp_path, 7, take, stored_only=True) is None
  found = r_table.resolve(config, tmp_path, 7, take)
  assert r_table.resolve(config, tmp_path, 7, take).sampling == found.sampling and len(taken) == 1
  t, r = sampling.ratio_of(found.sampling, method)
  np.testing.assert_allclose(t, np.arange(10, 1001, 10))
  np.testing.assert_allclose(r, 1 / (1 + np.exp(t / 500 - 1)), rtol=1e-3)
  entry = r_table.stored(tmp_path, 7)
  np.testing.assert_allclose(entry["low"], entry["high"], rtol=1e-5)
  assert entry["images"] == 64 and r_table.stored(tmp_path, 8) is None and r_table.stored(tmp_path, 7, 1.0) is None
  again = r_table.measure(config, *take(), num_images=3, points=4)
  r_table.save(tmp_path, 8, again)
  r_table.save(tmp_path, 7, again)
  assert r_table.stored(tmp_path, 7)["times"] == [250, 500, 750, 1000]
  (tmp_path / r_table.FILE).write_text("[3")
  assert r_table.stored(tmp_path, 7) is None


@pytest.mark.parametrize("clip", [0.0, 0.25])
def test_r_is_measured_along_the_walks_of_ddim(method_of, clip):
  """ε_θ = x/2, x_θ = 0 and the logit x itself: sigmoid(x_t) along DDIM's recursion, in float64."""
  network = Heads(lambda p, x, index: (x / 2, 0 * x, x))
  method, made, config = method_of(network, sampling__clip=clip)
  table = r_table.measure(config, method, {"params": made.ema["net"]}, num_images=70, points=4)
  bars = np.append(1.0, process.DDPM().alpha_bars())
  x = np.asarray(process.DDPM().prior(sampling.keys_of(range(70)), (8, 8, 1), 1000.0), np.float64)
  for i, (t, s) in enumerate(zip((1000, 750, 500, 250), (750, 500, 250, 0))):
    r = 1 / (1 + np.exp(-x))
    found = [table[name][3 - i] for name in ("times", "mean", "low", "high")]
    means = r.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found, [t, means.mean(), means.min(), means.max()], rtol=1e-4)
    clean = (1 - r) * (x - np.sqrt(1 - bars[t]) * x / 2) / np.sqrt(bars[t])
    clean = np.clip(clean, -clip, clip) if clip else clean
    eps = (x - np.sqrt(bars[t]) * clean) / np.sqrt(1 - bars[t])
    x = np.sqrt(bars[s]) * clean + np.sqrt(1 - bars[s]) * eps


# --- the network of DDPM and DDIM -------------------------------------------------------------------------------------


@pytest.mark.parametrize("vlb_weight", [0.0, 0.02])
def test_noise_alone_is_ddpm(monkeypatch, vlb_weight):
  """One head and its loss in NumPy; with iDDPM's bound two, about the noise head's mean; images as r = 0 has them."""
  function = lambda p, x, index: (jnp.sin(x) + 1e-4 * index, jnp.full_like(x, 0.3))
  network = Heads(function, names=("eps", "variance") if vlb_weight else ("eps",))
  asked = []
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: asked.append(heads) or network)
  config = dual_config(dual__heads="eps", dual__eps_weight=0.7, dual__vlb_weight=vlb_weight)
  method = methods.from_config(config)
  assert asked == [(("eps", 1), ("variance", 1)) if vlb_weight else (("eps", 1),)]
  made, y = method.init(jax.random.key(0), start.example_batch(config)), gaussian_images(50, 0.1, 0.5)
  network.calls.clear()
  _, metrics = method.update(made, batch_of(y), jax.random.key(3))
  (call,) = network.calls
  x, t = np.asarray(call["x"], np.float64), np.asarray(call["index"], int) + 1
  bar = np.append(1.0, process.DDPM().alpha_bars())[t].reshape(-1, 1, 1, 1)
  eps, head = (x - np.sqrt(bar) * y) / np.sqrt(1 - bar), np.sin(x) + 1e-4 * (t.reshape(-1, 1, 1, 1) - 1)
  loss, clean = 0.7 * np.mean((head - eps) ** 2), (x - np.sqrt(1 - bar) * head) / np.sqrt(bar)
  if vlb_weight:
    t = jnp.asarray(t, float)
    variance = jnp.full(y.shape, 0.3)
    bound = losses.variational_bound(process.DDPM(), jnp.float32(clean), variance, jnp.float32(y), t, t - 1)
    loss += vlb_weight * 1000 * np.mean(bound) / DIM
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-3)
  found = method.denoise({"params": made.params["net"]}, call["x"], jnp.float32(call["index"] + 1))
  np.testing.assert_allclose(found.clean, clean, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(found.eps, head, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(method.weight(jnp.float32(2.0)), 0.7 / 4, rtol=1e-6)


# --- as DPDM's teacher ------------------------------------------------------------------------------------------------


def test_a_dual_network_teaches_dpdm(monkeypatch):
  """Reframed to the EDM process; levels are those of the chain's times, λ(σ) = 1/σ² + 1 its own loss's weight."""
  def function(p, x, index):
    return p["a"] * x, p["b"] * x, p["c"] * x

  params = {"a": jnp.float32(0.6), "b": jnp.float32(0.5), "c": jnp.float32(0.2)}
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: Heads(function, params))
  sampled = dict(sampling__grid="dpdm", sampling__sampler="dpdm")
  config = dual_config(
    method="dpdm", init_from="somewhere", dpdm__diffusion="dual_output", optimizer__warmup_images=0, **sampled
  )
  method = methods.from_config(config)
  made = method.init(jax.random.key(0), start.example_batch(config))
  made = made.replace(params={**made.params, "score": {**params, "b": jnp.float32(0.7)}})
  after, metrics = jax.jit(method.update)(made, batch_of(gaussian_images(8, 0.1, 0.5)), jax.random.key(0))
  assert all(np.isfinite(value) for value in metrics.values()) and metrics["loss"] > 0
  jax.tree.map(np.testing.assert_array_equal, after.params["teacher"], params)
  assert all(after.params["generator"][name] != params[name] for name in params)
  diffusion = dual_output.from_config(config)
  keys = sampling.keys_of(range(100))
  levels = process.DDPM().noise_level(diffusion.times(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)))
  np.testing.assert_allclose(method.times(keys)[:, -1], levels)  # the generator's
  sigma = jnp.array([0.1, 2.0])
  np.testing.assert_allclose(diffusion.weight(sigma), [101, 1.25], rtol=1e-6)
  np.testing.assert_allclose(dpdm.factor_from_config(config, diffusion.weight)(sigma), [1.01, 5], rtol=1e-6)
  images = sampling.generate(config, method, {"params": after.ema["generator"]}, range(3))
  assert np.isfinite(images).all()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, message", [
  (dict(dual__process="cosin"), r"config.dual.process = 'cosin': expected one of linear, cosine; nearest: cosine"),
  (dict(dual__x_weight=-1.0), r"config.dual.x_weight = -1.0: must not be negative"),
  (dict(sampling__sampler="dim"), r"config.sampling.sampler = 'dim': expected one of ddim, .*; nearest: ddim"),
  (dict(sampling__ratio="1.5"), r"config.sampling.ratio = '1.5': r must be in \[0, 1\]"),
  (dict(sampling__ratio="0.5,-0.1"), r"config.sampling.ratio = '0.5,-0.1': r must be in \[0, 1\]"),
  (dict(sampling__ratio="nan"), r"config.sampling.ratio = 'nan': r must be in \[0, 1\]"),
  (dict(sampling__ratio="meen"), r"config.sampling.ratio = 'meen': expected learned, mean, .*; nearest: mean"),
  (dict(sampling__ratio=""), r"config.sampling.ratio = '': expected learned, mean, or numbers"),
  (dict(sampling__switch=-1), r"config.sampling.switch = -1: must not be negative"),
  (dict(sampling__switch=6), r"config.sampling.switch = 6: must be at most sampling.num_steps \(5\)"),
  (dict(sampling__switch=2, sampling__ratio="0"), r"config.sampling.ratio = '0': must be 'learned' with .*switch"),
  (dict(method="edm", sampling__ratio="0"), r"config.sampling.ratio = '0': must be 'learned' for method 'edm'"),
  (dict(method="edm", sampling__switch=1), r"config.sampling.switch = 1: must be 0 for method 'edm'"),
  (dict(dual__heads="dule"), r"config.dual.heads = 'dule': expected one of dual, eps; nearest: dual"),
  (dict(dual__heads="eps", sampling__ratio="1"), r"config.sampling.ratio = '1': must be 0 for dual.heads = 'eps'"),
  (dict(dual__heads="eps", sampling__ratio="mean"), r"config.sampling.ratio = 'mean': must be 0 for dual.heads"),
  (dict(dual__heads="eps", sampling__switch=1), r"config.sampling.switch = 1: must be 0 for dual.heads = 'eps'"),
  (dict(sampling__sampler="ddpm", sampling__variance="learned"), r"variance = 'learned': needs .* dual.vlb_weight > 0"),
  (dict(sampling__sampler="ddpm", sampling__variance="learned", dual__vlb_weight=0.1, sampling__process="vp"),
   r"variance = 'learned': needs .* sampling.process = 'own'"),
])  # fmt: skip
def test_a_wrong_config_is_named(fields, message):
  with pytest.raises(ConfigError, match=message):
    methods.from_config(dual_config(**fields))


@pytest.mark.parametrize("fields, message", [
  (dict(num_steps=1001), r"config.sampling.num_steps = 1001: respaced cannot take n = 1001 steps of a chain of 1000"),
  (dict(grid="respace"), r"config.sampling.grid = 'respace': expected one of edm, .*respaced.*; nearest: respaced"),
  (dict(process="owm"), r"config.sampling.process = 'owm': expected one of own, .*; nearest: own"),
  (dict(sigma_max=10.0), r"config.sampling.sigma_max = 10.0: must be 0 for the grid respaced"),
])  # fmt: skip
def test_a_wrong_schedule_is_named(method_of, fields, message):
  method, *_ = method_of(Heads(wrong_heads))
  setting = dual_config(**{f"sampling__{name}": value for name, value in fields.items()}).sampling
  with pytest.raises(ConfigError, match=message):
    sampling.schedule_of(setting, method)


def test_the_respaced_grid_needs_a_chain():
  config = tiny.get_config()
  config.sampling.grid = "respaced"
  with pytest.raises(ConfigError, match=r"config.sampling.grid = 'respaced': needs a method whose process is a chain"):
    sampling.schedule_of(config.sampling, methods.from_config(config))


def test_a_source_of_weights_of_another_kind_is_named(method_of):
  _, _, config = method_of(Heads(wrong_heads))
  fit = lambda source, config: warm.fit(warm.to_come(source), methods.from_config(config), config)
  other = dual_config(dual__process="cosine")
  with pytest.raises(ConfigError, match=r"config.dual.process = 'linear': init_from was trained with .*Cosine.*DDPM"):
    fit(other, config)
  pupil = dual_config(method="dpdm", init_from="somewhere", sampling__grid="dpdm", sampling__sampler="dpdm")
  with pytest.raises(ConfigError, match=r"config.init_from = .*teacher must be a run of .*'edm', not dual_output"):
    fit(config, pupil)
  assert not any(fit(config, config).reasons.values())
  config_lib.check(config)
