"""The decoupled method: its loss by hand, gradients, preconditioning, weights, networks, a tiny run, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods.test_edm import DIM, batch_of, gaussian_images
from training import tiny

from diffusion_jax import losses, methods, process, samplers, sampling, times
from diffusion_jax import parameterization as par
from diffusion_jax.config import ConfigError
from diffusion_jax.methods import base, decoupled
from diffusion_jax.nets import layers
from diffusion_jax.training import checkpoint, loop, start, state


def decoupled_config(**fields):
  c = tiny.get_config()
  c.method = "decoupled"
  c.data.update(num_classes=0, flip=False)
  c.label_dropout = 0.0
  c.sampling.update(sampler="decoupled", grid="decoupled", num_steps=5)
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


class Heads:
  """A network whose heads are the given function of (parameters, x, c_noise [B, 1, 1, 1]); keeps its inputs."""

  def __init__(self, function, params=None):
    self.function, self.params, self.calls = function, params or {"a": jnp.zeros(())}, []

  def init(self, key, x, c_noise):
    return {"params": self.params}

  def apply(self, variables, x, c_noise, labels=None, augment=None, dropout_keys=None):
    self.calls.append({"x": x, "c_noise": c_noise, "labels": labels, "dropout_keys": dropout_keys})
    phi, eps = self.function(variables["params"], x, c_noise[:, None, None, None])
    return {"phi": phi, "eps": eps}


@pytest.fixture
def method_of(monkeypatch):
  """(network, {field: value}) -> (method, its first state, config)."""

  def make(network, **fields):
    config = decoupled_config(**fields)
    monkeypatch.setattr(base, "network_from_config", lambda config, heads, **options: network)
    method = methods.from_config(config)
    return method, method.init(jax.random.key(0), start.example_batch(config)), config

  return make


# --- the loss ---------------------------------------------------------------------------------------------------------

WEIGHTS = {
  "ones": lambda t: (1 + 0 * t, 1 + 0 * t),
  "inverse": lambda t: (1 / t, 1 / (1 - t + 1e-4)),
  "exponential": lambda t: (np.exp(t), np.exp(1 - t)),
}


@pytest.mark.parametrize("weight, loss", [("auto", "l2"), ("exponential", "l2"), ("ones", "l1")])
def test_the_update_is_the_loss_of_its_draws(method_of, weight, loss):
  """In NumPy from the x and t that the network was given; constant h, the reconstruction included."""
  network = Heads(lambda p, x, c: (jnp.sin(x) + 0.1 * c, 0.5 * x))
  fields = dict(decoupled__weight=weight, decoupled__loss=loss, decoupled__reconstruction_weight=0.7)
  method, made, _ = method_of(network, decoupled__preconditioned=False, **fields)
  y = gaussian_images(200, 0.1, 0.5)
  network.calls.clear()
  _, metrics = method.update(made, batch_of(y), jax.random.key(3))
  (call,) = network.calls
  x, c_noise = np.asarray(call["x"], np.float64), np.asarray(call["c_noise"], np.float64)
  t = np.exp(c_noise)
  np.testing.assert_allclose(method.times(state.example_keys(jax.random.key(3), 0, jnp.arange(200))), t, rtol=1e-5)
  assert t.min() >= 1e-4 * (1 - 1e-5) and t.max() <= 1 and abs(t.mean() - 0.5) < 4 / np.sqrt(12 * 200)
  column = t.reshape(-1, 1, 1, 1)
  eps = (x - (1 - column) * y) / np.sqrt(column)
  assert abs(eps.mean()) < 4 / np.sqrt(eps.size) and abs(eps.var() - 1) < 4 * np.sqrt(2 / eps.size)
  phi_head, eps_head = np.sin(x) + 0.1 * c_noise.reshape(-1, 1, 1, 1), 0.5 * x
  distance = (lambda a: np.mean(np.abs(a), (1, 2, 3))) if loss == "l1" else (lambda a: np.mean(a**2, (1, 2, 3)))
  parts = distance(phi_head + y), distance(eps_head - eps)
  rebuilt = x - phi_head * column - np.sqrt(column) * eps_head
  error = np.mean(np.abs(rebuilt - y), (1, 2, 3))
  weights = WEIGHTS["inverse" if weight == "auto" else weight](t)
  expected = np.mean(weights[0] * parts[0] + weights[1] * parts[1] + 0.7 * (1 - t) ** 2 * error)
  np.testing.assert_allclose(metrics["loss"], expected, rtol=2e-3)
  np.testing.assert_allclose([metrics["phi_loss"], metrics["eps_loss"]], np.mean(parts, 1), rtol=1e-3)
  np.testing.assert_allclose(metrics["reconstruction_error"], error.mean(), rtol=1e-4)


def test_lpips_stands_beside_the_error(method_of, monkeypatch):
  """(1 − t)²·(MAE + LPIPS)(x̂_0, x_0), with a distance known by hand in LPIPS's place."""
  asked = []
  distance = lambda a, b: jnp.sum((a - b) ** 2 * jnp.arange(1.0, 9.0)[:, None], (1, 2, 3))
  known = lambda config, metric, **more: (asked.append((metric, more)), distance)[1]
  monkeypatch.setattr(decoupled.distances, "from_config", known)
  network = Heads(lambda p, x, c: (jnp.sin(x) + 0.1 * c, 0.5 * x))
  fields = dict(decoupled__preconditioned=False, decoupled__reconstruction_weight=0.7)
  y = gaussian_images(50, 0.1, 0.5)
  found = {}
  for lpips in (False, True):
    method, made, _ = method_of(network, decoupled__reconstruction_lpips=lpips, **fields)
    network.calls.clear()
    found[lpips] = method.update(made, batch_of(y), jax.random.key(3))[1]
  assert asked == [("lpips", {"field": "decoupled.reconstruction_lpips"})]
  (call,) = network.calls
  x, t = np.asarray(call["x"], np.float64), np.exp(np.asarray(call["c_noise"], np.float64))
  column = t.reshape(-1, 1, 1, 1)
  phi, eps = np.sin(x) + 0.1 * np.log(column), 0.5 * x
  rebuilt = x - phi * column - np.sqrt(column) * eps
  perceptual = np.sum((rebuilt - y) ** 2 * np.arange(1, 9)[:, None], (1, 2, 3))
  np.testing.assert_allclose(found[True]["reconstruction_lpips"], perceptual.mean(), rtol=1e-4)
  np.testing.assert_allclose(found[True]["reconstruction_error"], found[False]["reconstruction_error"], rtol=1e-6)
  more = 0.7 * np.mean((1 - t) ** 2 * perceptual)
  assert more > 1
  np.testing.assert_allclose(found[True]["loss"] - found[False]["loss"], more, rtol=1e-3)
  assert "reconstruction_lpips" not in found[False]


def test_lpips_is_read_where_a_run_is_prepared(monkeypatch):
  """Before anything compiles; a method that only samples needs no file."""
  monkeypatch.setattr(base, "network_from_config", lambda config, heads, **options: Small())
  fields = dict(decoupled__reconstruction_weight=1.0, decoupled__reconstruction_lpips=True)
  config = decoupled_config(lpips__weights=("no_such.pth",), **fields)
  assert methods.from_config(config).denoise is not None
  with pytest.raises(ConfigError, match=r"config.lpips.weights = \('no_such.pth',\): no_such.pth: no such file"):
    loop.prepare(config, None)


def test_free_parameters_are_drawn_anew_and_learned(method_of):
  """Quadratic h, zero heads: E‖φ‖² per value is Var a + Var b + E(x_0 + a/3 + b/2)²; other draws in the next update."""
  network = Heads(lambda p, x, c: (jnp.zeros((*x.shape[:-1], 3)), 0 * x))
  method, made, _ = method_of(network, decoupled__attenuation="quadratic", decoupled__preconditioned=False)
  y, n = gaussian_images(1000, 0.2, 0.5), 1000 * DIM
  found = [method.update(made.replace(step=jnp.int32(k)), batch_of(y), jax.random.key(0))[1] for k in (0, 1)]
  expected = 2 + np.mean(y**2) + 1 / 9 + 1 / 4
  for metrics in found:
    assert abs(metrics["phi_loss"] - expected) < 4 * 4 / np.sqrt(n)
    np.testing.assert_allclose(metrics["loss"], metrics["phi_loss"] + metrics["eps_loss"], rtol=1e-5)  # weights 1, 1
  assert found[0]["phi_loss"] != found[1]["phi_loss"]


@pytest.mark.parametrize("distance", [losses.squared_error, losses.absolute_error])
def test_each_loss_reaches_its_own_head(distance):
  """Gradients by hand: 2(φ_θ − φ)/D, or its sign/D, and none across."""
  phi_head, phi = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 6))
  eps_head, eps = jax.random.normal(jax.random.key(1), (2, 2, 4, 4, 3))
  total = lambda name: lambda *heads: jnp.sum(getattr(losses.decoupled_terms(*heads, phi, eps, distance), name))
  slope = (lambda a: 2 * a / 48) if distance is losses.squared_error else (lambda a: jnp.sign(a) / 48)
  for name, expected in (("phi", (slope(phi_head - phi), 0 * eps)), ("eps", (0 * phi, slope(eps_head - eps)))):
    for got, wanted in zip(jax.grad(total(name), (0, 1))(phi_head, eps_head), expected):
      np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_table_5(name):
  t = np.array([1e-4, 0.3, 0.9, 1.0])
  np.testing.assert_allclose(losses.DECOUPLED_WEIGHTS[name](jnp.asarray(t)), WEIGHTS[name](t), rtol=2e-3)


# --- the pair ---------------------------------------------------------------------------------------------------------


def test_preconditioning(x64):
  """φ̂ = (t−1)x + t/√(1+t)·F_1 of the last parameter, F of others; ε̂ = √t·x + √((1−t)/(1+t))·F_2; c_in, c_noise."""
  x, f1, f2 = jax.random.normal(jax.random.key(0), (3, 4, 2, 2, 3), float)
  free = jax.random.normal(jax.random.key(1), (4, 2, 2, 6), float)
  t = np.array([1e-5, 0.2, 0.7, 1.0])
  column, seen = t.reshape(-1, 1, 1, 1), []
  last = (column - 1) * x + column / np.sqrt(1 + column) * f1
  noise = np.sqrt(column) * x + np.sqrt((1 - column) / (1 + column)) * f2
  cases = {
    "constant": (f1, last), "sine": (f1, f1), "exponential": (jnp.concatenate([free[..., :3], f1], -1), None),
    "quadratic": (jnp.concatenate([free, f1], -1), jnp.concatenate([free, last], -1)),
  }  # fmt: skip
  for name, (head, expected) in cases.items():
    p = process.Decoupled(name)
    network = lambda x, c_noise, head=head: (seen.append((x, c_noise)), (head, f2))[1]
    pred = par.decoupled(network, p)(x, jnp.asarray(t))
    expected = jnp.concatenate([free[..., :3], last], -1) if expected is None else expected
    np.testing.assert_allclose(pred.clean, expected, rtol=1e-12)
    np.testing.assert_allclose(pred.eps, noise, rtol=1e-12)
    plain = par.decoupled(network, p, False)(x, jnp.asarray(t))
    np.testing.assert_array_equal(plain.clean, head)
    np.testing.assert_array_equal(plain.eps, f2)
    (scaled, c_noise), (raw, _) = seen[-2:]
    np.testing.assert_allclose(scaled, x / np.sqrt(1 + column), rtol=1e-12)
    np.testing.assert_allclose(c_noise, np.log(np.maximum(t, 1e-4)), rtol=1e-12)
    np.testing.assert_array_equal(raw, x)
  np.testing.assert_array_equal(pred.eps[-1], x[-1])  # at t = 1 the state is the noise


# --- the network ------------------------------------------------------------------------------------------------------


def test_decoders_of_the_unet():
  """Two decoders, one with a branch of two convolutions, one shared: heads of k·C and C channels, sizes by hand."""
  sizes = {}
  for decoder in ("two", "branch", "one"):
    config = decoupled_config(
      data__channels=3, decoupled__decoder=decoder, decoupled__attenuation="linear", network__channels=16
    )
    network = decoupled.network_from_config(config)
    assert network.heads == (("phi", 6), ("eps", 3))
    x = jnp.zeros((2, 8, 8, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(2))
    out = jax.eval_shape(network.apply, variables, x, jnp.zeros(2))
    assert {name: head.shape for name, head in out.items()} == {"phi": (2, 8, 8, 6), "eps": (2, 8, 8, 3)}
    sizes[decoder] = {name: sum(v.size for v in jax.tree.leaves(part)) for name, part in variables["params"].items()}
  total = {name: sum(parts.values()) for name, parts in sizes.items()}
  width = 16
  branch = 9 * width * width + width + 9 * width * 3 + 3 + 2 * 2 * width  # convolutions, norms
  assert total["branch"] - total["one"] == branch - (9 * width * 3 + 3)  # ε's channels leave the shared output
  decoder = {name: size for name, size in sizes["one"].items() if name.startswith("dec_")}
  second = {name: size for name, size in sizes["two"].items() if name.startswith("dec_eps_")}
  assert len(second) == len(decoder) > 0
  assert total["two"] - total["one"] == sum(second.values()) - (9 * width * 3 + 3)


# --- runs -------------------------------------------------------------------------------------------------------------


class Small(layers.nn.Module):
  free: int = 1

  @layers.nn.compact
  def __call__(self, x, c_noise, labels=None, augment=None, dropout_keys=None):
    emb = layers.Linear(8, name="noise")(c_noise[:, None])
    h = layers.nn.silu(layers.Conv(8, name="conv0")(x) + emb[:, None, None])
    out = layers.Conv(self.free + 1, name="conv1")(layers.dropout(h, 0.1, dropout_keys, self.path))
    return {"phi": out[..., :-1], "eps": out[..., -1:]}


def test_a_run_trains_on_eight_devices_and_is_sampled_from(monkeypatch, tmp_path):
  """Through the loop with a small network: a log line has the parts of the loss, samples are by its own grid."""
  monkeypatch.setattr(base, "network_from_config", lambda config, heads, **options: Small(3))
  config = decoupled_config(
    decoupled__attenuation="quadratic", decoupled__reconstruction_weight=0.5, train__num_steps=4, sampling__refit=1.0,
    optimizer__decay_power=0.96, optimizer__min_learning_rate=1e-5, ema__ramp_power=0.67,
  )  # fmt: skip
  ended = loop.train(config, tmp_path)
  window = {name: float(value) for name, value in ended.window.items()}
  assert window["loss"] > window["phi_loss"] + window["eps_loss"]
  assert all(np.isfinite(value) for value in window.values())
  method, variables = checkpoint.load_for_inference(tmp_path)
  images = sampling.generate(config, method, variables, range(3))
  assert images.shape == (3, 8, 8, 1) and np.isfinite(images).all()


@pytest.mark.parametrize("name", ["constant", "sine"])
def test_images_are_those_of_the_sampler(method_of, name):
  """`generate` is Algorithm 2 on the uniform grid from N(0, I), with the run's refit."""
  network = Heads(lambda p, x, c: (jnp.tanh(x), jnp.sin(x)))
  method, made, config = method_of(network, decoupled__attenuation=name, sampling__refit=0.9)
  p = process.Decoupled(name)
  assert method.process == p and method.samplers[0] == "decoupled"
  assert ("ddpm" in method.samplers) == (name == "constant")
  images = sampling.generate(config, method, {"params": made.ema["net"]}, range(3))
  keys, grid = sampling.keys_of(range(3)), times.decoupled_grid(5)
  x = p.prior(keys, (8, 8, 1), 1.0)
  denoise = lambda x, t: method.denoise({"params": made.ema["net"]}, x, t)
  expected = samplers.decoupled(denoise, p, x, grid, keys, refit=0.9)
  np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-5)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, message", [
  (dict(decoupled__attenuation="cubic"), r"decoupled.attenuation = 'cubic': expected one of constant, .*; nearest"),
  (dict(decoupled__weight="on"), r"config.decoupled.weight = 'on': expected one of auto, ones, .*nearest: ones"),
  (dict(decoupled__loss="l3"), r"config.decoupled.loss = 'l3': expected one of l2, l1"),
  (dict(decoupled__decoder="tow"), r"config.decoupled.decoder = 'tow': expected one of two, branch, one"),
  (dict(decoupled__reconstruction_weight=-1.0), r"reconstruction_weight = -1.0: must not be negative"),
  (dict(decoupled__reconstruction_lpips=True), r"reconstruction_lpips = True: needs decoupled.reconstruction_w"),
  (dict(decoupled__reconstruction_lpips=True, decoupled__reconstruction_weight=1.0),
   r"config.lpips.weights = \(\): decoupled.reconstruction_lpips needs LPIPS's files"),
  (dict(sampling__refit=-1.0), r"config.sampling.refit = -1.0: must not be negative"),
  (dict(decoupled__attenuation="sine", sampling__grid="edm"), r"sampling.grid = 'edm': must be 'decoupled' for .*sine"),
  (dict(decoupled__attenuation="sine", sampling__process="vp"), r"sampling.process = 'vp': must be 'own' for .*'sine'"),
  (dict(decoupled__attenuation="linear", sampling__sampler="ddpm"), r"sampling.sampler = 'ddpm': expected one of dec"),
  (dict(optimizer__min_learning_rate=1.0), r"config.optimizer.min_learning_rate = 1.0: must be at most"),
  (dict(optimizer__decay_images=-1), r"config.optimizer.decay_images = -1: must not be negative"),
])  # fmt: skip
def test_a_wrong_config_is_named(fields, message):
  with pytest.raises(ConfigError, match=message):
    methods.from_config(decoupled_config(**fields))


@pytest.mark.parametrize("fields, message", [
  (dict(process="vp"), r"config.sampling.process = 'vp': must be 'own' for the grid decoupled"),
  (dict(sigma_max=10.0), r"config.sampling.sigma_max = 10.0: must be 0 for the grid decoupled"),
  (dict(grid="respaced"), r"config.sampling.grid = 'respaced': needs a method whose process is a chain"),
])  # fmt: skip
def test_a_wrong_schedule_is_named(fields, message):
  setting = decoupled_config(**{f"sampling__{name}": value for name, value in fields.items()}).sampling
  with pytest.raises(ConfigError, match=message):
    sampling.schedule_of(setting, base.Method(None, None, None, process.Decoupled(), ("decoupled",)))
  with pytest.raises(ConfigError, match=r"sampling.grid = 'decoupled': needs a method whose process is decoupled"):
    sampling.schedule_of(decoupled_config().sampling, base.Method(None, None, None, process.EDM(), ("heun",)))
