"""The EDM method: its loss against closed forms, and the randomness of an example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from training import tiny

from diffusion_jax import losses, methods, process, times
from diffusion_jax.data import augment
from diffusion_jax.methods import base
from diffusion_jax.training import start

DIM = 64  # numbers an image


class Known:
  """A network that is the given function of (parameters, x, c_noise, labels); keeps what it was called with."""

  def __init__(self, function, params=None):
    self.function, self.params, self.calls = function, params or {"a": jnp.zeros(()), "b": jnp.zeros(())}, []

  def init(self, key, x, c_noise):
    return {"params": self.params}

  def apply(self, variables, x, c_noise, labels=None, augment=None, dropout_keys=None):
    self.calls.append({"x": x, "c_noise": c_noise, "labels": labels, "augment": augment, "dropout_keys": dropout_keys})
    return {"out": self.function(variables["params"], x, c_noise[:, None, None, None], labels)}


@pytest.fixture
def method_of(monkeypatch):
  """(network, {field: value}) -> (method, its first state, config)."""

  def make(network, **fields):
    config = tiny.get_config()
    config.data.num_classes, config.data.flip, config.label_dropout = 0, False, 0.0
    for name, value in fields.items():
      config.update_from_flattened_dict({name.replace("__", "."): value})
    monkeypatch.setattr(base, "network_from_config", lambda config, heads: network)
    method = methods.from_config(config)
    return method, method.init(jax.random.key(0), start.example_batch(config)), config

  return make


def batch_of(images, labels=None, slots=None):
  n = len(images)
  batch = {"image": jnp.asarray(images, jnp.float32), "index": jnp.arange(n), "slot": jnp.arange(n)}
  if slots is not None:
    batch["slot"] = jnp.asarray(slots)
  return batch if labels is None else {**batch, "label": jnp.asarray(labels)}


def gaussian_images(n, mean, std, seed=0):
  return mean + std * np.random.default_rng(seed).standard_normal((n, 8, 8, 1))


# --- the loss ---------------------------------------------------------------------------------------------------------

S_D = 0.5
# Table 1 of the paper: (c_skip, c_out, λ) at σ, with which weight, and the law of ln σ where its width can be chosen.
ROWS = {
  "edm": (
    lambda s: S_D**2 / (s**2 + S_D**2), lambda s: s * S_D / np.sqrt(s**2 + S_D**2),
    lambda s: (s**2 + S_D**2) / (s * S_D) ** 2, "edm",
  ),
  "ve": (lambda s: 1.0, lambda s: s, lambda s: 1 / s**2, "inverse_variance"),
  "vp": (lambda s: 1.0, lambda s: -s, lambda s: 1 / s**2, "inverse_variance"),
  "iddpm": (lambda s: 1.0, lambda s: -s, lambda s: 1 / s**2, "inverse_variance"),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("sigma", [0.05, 1.7])
def test_a_constant_network_has_the_loss_of_table_1(method_of, row, sigma):
  """F = f, one σ: E λ‖c_skip(y + σε) + c_out·f − y‖² by hand for y ~ N(m, s²), within four standard errors."""
  f, m, s = 0.3, 0.4, 0.5
  network = Known(lambda p, x, c_noise, labels: jnp.full_like(x, f))
  method, state, _ = method_of(
    network, edm__preconditioner=row, edm__weight=ROWS[row][3], edm__p_mean=float(np.log(sigma)), edm__p_std=1e-7
  )
  c_skip, c_out, weight = (part(sigma) for part in ROWS[row][:3])
  pixel_mean, pixel_variance = (c_skip - 1) * m + c_out * f, (c_skip - 1) ** 2 * s**2 + c_skip**2 * sigma**2
  expected = weight * DIM * (pixel_mean**2 + pixel_variance)
  n = 2000
  _, metrics = method.update(state, batch_of(gaussian_images(n, m, s)), jax.random.key(1))
  # The variance of (μ + √v·z)² is 2v² + 4μ²v, over n·DIM independent pixels.
  error = weight * DIM * np.sqrt((2 * pixel_variance**2 + 4 * pixel_mean**2 * pixel_variance) / (n * DIM))
  assert abs(metrics["loss"] - expected) < 4 * error + 1e-4 * expected


def exact_network(m, s):
  """F whose preconditioned D is (1 + a)·D*(x; σ) + b, with D* the best denoiser of N(m, s²) and the EDM row."""

  def function(params, x_in, c_noise, labels):
    sigma = jnp.exp(4 * c_noise)
    total = jnp.sqrt(sigma**2 + S_D**2)
    x = x_in * total
    best = m + s**2 / (s**2 + sigma**2) * (x - m)
    best = (1 + params["a"]) * best + params["b"]
    return (best - S_D**2 / total**2 * x) / (sigma * S_D / total)

  return Known(function)


@pytest.mark.parametrize("m, s", [(0.0, 0.5), (0.3, 0.8)])
def test_the_exact_denoiser_has_its_expected_loss(method_of, m, s):
  """E_σ λ(σ)·D·s²σ²/(s² + σ²) over the lognormal law by quadrature; for N(0, σ_data²) that is D at every σ."""
  method, state, _ = method_of(exact_network(m, s))
  steps, n = 40, 64
  images = gaussian_images(steps * n, m, s).reshape(steps, n, 8, 8, 1)
  losses = jax.jit(jax.vmap(lambda k, y: method.update(state.replace(step=k), batch_of(y), jax.random.key(0))[1]))(
    jnp.arange(steps), jnp.asarray(images, jnp.float32)
  )["loss"]

  def integrand(z):
    sigma = np.exp(-1.2 + 1.2 * z)
    law = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return law * (sigma**2 + S_D**2) / (sigma * S_D) ** 2 * s**2 * sigma**2 / (s**2 + sigma**2)

  expected = DIM * scipy.integrate.quad(integrand, -10, 10)[0]
  if (m, s) == (0.0, S_D):
    np.testing.assert_allclose(expected, DIM, rtol=1e-6)
  error = np.std(losses) / np.sqrt(steps)
  assert error < 0.02 * expected
  assert abs(np.mean(losses) - expected) < 4 * error


def test_the_exact_denoiser_is_the_minimiser(method_of):
  """The mean gradient by a scale and an offset of D vanishes there, within four standard errors, and not beside it."""
  m, s, steps = 0.3, 0.8, 40
  method, state, _ = method_of(exact_network(m, s))
  images = jnp.asarray(gaussian_images(steps * 64, m, s).reshape(steps, 64, 8, 8, 1), jnp.float32)

  def gradients(offset):
    """Adam's first moment after one update is (1 − β1)·gradient."""
    start_at = state.replace(params={"net": {"a": jnp.zeros(()), "b": jnp.full((), offset)}})
    run = lambda k, y: method.update(start_at.replace(step=k), batch_of(y), jax.random.key(0))[0].opt_state["net"].mu
    return jax.tree.map(lambda mu: np.asarray(mu) / 0.1, jax.jit(jax.vmap(run))(jnp.arange(steps), images))

  for name, g in gradients(0.0).items():
    assert abs(g.mean()) < 4 * g.std() / np.sqrt(steps), name
  beside = gradients(0.05)["b"]
  assert beside.mean() > 4 * beside.std() / np.sqrt(steps)


def test_the_loss_by_hand_from_the_draws(method_of):
  """mean over the batch of λ(σ)‖D(y + σε; σ) − y‖² in NumPy, from the x, c_noise and labels the network was given."""
  network = Known(lambda p, x, c_noise, labels: jnp.sin(3 * x) + 0.2 * c_noise)
  method, state, _ = method_of(network)
  y = gaussian_images(50, 0.1, 0.5)
  network.calls.clear()
  _, metrics = method.update(state, batch_of(y), jax.random.key(3))
  (call,) = network.calls
  x_in, c_noise = np.asarray(call["x"], np.float64), np.asarray(call["c_noise"], np.float64)[:, None, None, None]
  sigma = np.exp(4 * c_noise)
  total = np.sqrt(sigma**2 + S_D**2)
  x = x_in * total
  d = S_D**2 / total**2 * x + sigma * S_D / total * (np.sin(3 * x_in) + 0.2 * c_noise)
  loss = np.mean((total / (sigma * S_D)).reshape(-1) ** 2 * np.sum((d - y) ** 2, axis=(1, 2, 3)))
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)


# --- the randomness of an example -------------------------------------------------------------------------------------


def draws(network, method, state, batch, seed=0, step=0):
  """What the examples of a step drew: {"sigma", "eps", "labels", "mirrored", "dropout"}, each [B, ...]."""
  network.calls.clear()
  method.update(state.replace(step=jnp.int32(step)), batch, jax.random.key(seed))
  (call,) = network.calls
  sigma = np.exp(4 * np.asarray(call["c_noise"], np.float64))
  x = np.asarray(call["x"], np.float64) * np.sqrt(sigma**2 + S_D**2)[:, None, None, None]
  labels = None if call["labels"] is None else np.asarray(call["labels"])
  got = {"sigma": sigma, "x": x, "labels": labels, "dropout": np.asarray(jax.random.key_data(call["dropout_keys"]))}
  return got if call["augment"] is None else {**got, "augment": np.asarray(call["augment"])}


def recorder():
  return Known(lambda p, x, c_noise, labels: x * p["a"])


def test_noise_levels_and_noise_have_their_laws(method_of):
  """ln σ ~ N(p_mean, p_std²) and ε ~ N(0, I), independent of each other and of the next example's and step's."""
  network = recorder()
  method, state, _ = method_of(network, edm__p_mean=-0.5, edm__p_std=0.9)
  n = 2000
  now, after = (draws(network, method, state, batch_of(np.zeros((n, 8, 8, 1))), step=k) for k in (0, 1))
  z = (np.log(now["sigma"]) + 0.5) / 0.9
  assert abs(z.mean()) < 4 / np.sqrt(n) and abs(z.var() - 1) < 4 * np.sqrt(2 / n)
  eps = (now["x"] / now["sigma"][:, None, None, None]).reshape(n, -1)
  assert abs(eps.mean()) < 4 / np.sqrt(eps.size) and abs(eps.var() - 1) < 4 * np.sqrt(2 / eps.size)
  eps_after = (after["x"] / after["sigma"][:, None, None, None]).reshape(n, -1)
  for other in (np.roll(eps, 1, axis=0), np.roll(eps, 1, axis=1), eps_after):
    assert abs(np.mean(eps * other)) < 4 / np.sqrt(eps.size)
  assert abs(np.mean(z * eps[:, 0])) < 4 / np.sqrt(n)
  assert abs(np.mean(z * (np.log(after["sigma"]) + 0.5) / 0.9)) < 4 / np.sqrt(n)


def test_labels_are_dropped_at_their_rate(method_of):
  """A dropped label is all zeros; the others arrive as one-hot vectors of the example's own class."""
  network, rate, n = recorder(), 0.3, 2000
  method, state, _ = method_of(network, data__num_classes=10, label_dropout=rate)
  labels = np.arange(n) % 10
  got = draws(network, method, state, batch_of(np.zeros((n, 8, 8, 1)), labels))["labels"]
  dropped = got.sum(axis=1) == 0
  np.testing.assert_array_equal(got[~dropped], np.eye(10)[labels[~dropped]])
  assert abs(dropped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / n)


def test_half_of_the_images_are_mirrored(method_of):
  """At σ → 0 the network sees the image itself: as it is or mirrored left to right, half and half."""
  network, n = recorder(), 2000
  method, state, _ = method_of(network, data__flip=True, edm__p_mean=-12.0, edm__p_std=1e-6)
  image = np.random.default_rng(0).uniform(-1, 1, (8, 8, 1))
  x = draws(network, method, state, batch_of(np.broadcast_to(image, (n, 8, 8, 1))))["x"]
  same = np.all(np.abs(x - image) < 1e-3, axis=(1, 2, 3))
  mirrored = np.all(np.abs(x - image[:, ::-1]) < 1e-3, axis=(1, 2, 3))
  assert np.all(same ^ mirrored)
  assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(n)


def test_augmented_images_come_with_their_labels(method_of):
  """At σ → 0 the network sees the warped image, and the nine labels that say how; when sampling it sees none."""
  network, n = recorder(), 200
  method, state, _ = method_of(network, data__augment=0.5, edm__p_mean=-12.0, edm__p_std=1e-6)
  image = np.random.default_rng(0).uniform(-1, 1, (8, 8, 1)).astype(np.float32)
  got = draws(network, method, state, batch_of(np.broadcast_to(image, (n, 8, 8, 1))))
  expected = augment.warp(jnp.broadcast_to(image, (n, 8, 8, 1)), jnp.asarray(got["augment"]))
  np.testing.assert_allclose(got["x"], expected, atol=1e-3)
  active = np.mean(got["augment"] != 0, axis=0)
  error = 4 * 0.5 / np.sqrt(n)
  # x-flip half the time; y-flip half of its share; scale, rotation, an axis and a shift at the probability.
  assert np.all(np.abs(active[[0, 2, 4, 7, 8]] - 0.5) < error) and abs(active[1] - 0.25) < error
  network.calls.clear()
  method.denoise({"params": state.ema["net"]}, jnp.ones((1, 8, 8, 1)), jnp.array([1.0]))
  assert network.calls[0]["augment"] is None


def test_bytes_become_images_between_minus_one_and_one(method_of):
  network = recorder()
  method, state, _ = method_of(network, edm__p_mean=-12.0, edm__p_std=1e-6)
  image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1) * 4
  batch = {**batch_of(np.zeros((1, 8, 8, 1))), "image": jnp.asarray(image)}
  np.testing.assert_allclose(draws(network, method, state, batch)["x"], image / 127.5 - 1, atol=1e-3)


def test_an_example_depends_on_seed_step_and_slot_alone(method_of):
  """Not on the batch around it, its place in it, or the example's index; any of the three changes every draw."""
  network = recorder()
  method, state, _ = method_of(network, data__num_classes=10, label_dropout=0.5, data__flip=True)
  y, labels = gaussian_images(8, 0, 0.5), np.arange(8)
  whole = draws(network, method, state, batch_of(y, labels), seed=4, step=9)
  order = np.array([5, 2, 7])
  part = {**batch_of(y[order], labels[order], slots=order), "index": jnp.array([100, 200, 300])}
  part = draws(network, method, state, part, seed=4, step=9)
  for name in whole:
    np.testing.assert_allclose(part[name], whole[name][order], rtol=1e-5, atol=1e-6)
  for other in (
    draws(network, method, state, batch_of(y, labels), seed=5, step=9),
    draws(network, method, state, batch_of(y, labels), seed=4, step=10),
    draws(network, method, state, batch_of(y, labels, slots=np.arange(8) + 8), seed=4, step=9),
  ):
    assert not np.any(np.isclose(other["sigma"], whole["sigma"], rtol=1e-4))
    assert not np.any(np.all(other["dropout"] == whole["dropout"], axis=-1))
  assert len({tuple(k) for k in whole["dropout"]}) == 8


def test_the_denoiser_for_sampling_takes_labels_and_no_dropout(method_of):
  """denoise gives the pair of the preconditioned network; −1 is no label, cond None is none at all."""
  network = Known(lambda p, x, c_noise, labels: jnp.zeros_like(x))
  method, state, _ = method_of(network, data__num_classes=10)
  x, sigma = jnp.ones((2, 8, 8, 1)), jnp.array([0.5, 2.0])
  network.calls.clear()
  pred = method.denoise({"params": state.ema["net"]}, x, sigma, {"label": jnp.array([3, -1])})
  clean = np.array([0.5, 0.25 / 4.25])
  np.testing.assert_allclose(pred.clean[:, 0, 0, 0], clean, rtol=1e-6)
  np.testing.assert_allclose(pred.eps[:, 0, 0, 0], (1 - clean) / np.array([0.5, 2.0]), rtol=1e-6)
  np.testing.assert_array_equal(network.calls[0]["labels"], np.stack([np.eye(10)[3], np.zeros(10)]))
  assert network.calls[0]["dropout_keys"] is None
  method.denoise({"params": state.ema["net"]}, x, sigma)
  assert network.calls[1]["labels"] is None


# --- iDDPM's learned variance -----------------------------------------------------------------------------------------


def test_the_variational_bound_is_added_and_only_moves_the_variance(method_of):
  """loss = Σ‖F − ε‖² + vlb_weight·M·L_j with L_j of losses.variational_bound; its gradient leaves the mean's alone."""

  class TwoHeads(Known):
    def apply(self, *args, **kwargs):
      out = super().apply(*args, **kwargs)
      return {**out, "variance": 0 * out["out"] + args[0]["params"]["b"]}

  network = TwoHeads(lambda p, x, c_noise, labels: p["a"] * x, {"a": jnp.float32(0.7), "b": jnp.float32(0.3)})
  row = dict(edm__preconditioner="iddpm", edm__noise="iddpm", edm__weight="inverse_variance")
  y = batch_of(gaussian_images(16, 0.1, 0.5))

  def run(weight):
    method, state, _ = method_of(network, **row, edm__vlb_weight=weight)
    network.calls.clear()
    after, metrics = jax.tree.map(np.asarray, method.update(state, y, jax.random.key(3)))
    return method, metrics["loss"], after.opt_state["net"].mu  # (1 − β1)·gradient

  _, plain, plain_mu = run(0.0)
  call = network.calls[0]
  method, loss, mu = run(0.02)
  levels = times.iddpm_levels()
  j = 999 - np.asarray(call["c_noise"]).astype(int)
  sigma = levels[j]
  x = np.asarray(call["x"]) * np.sqrt(sigma**2 + 1)[:, None, None, None]
  clean = x - sigma[:, None, None, None] * 0.7 * np.asarray(call["x"])
  vp = process.VP()
  t, s = (vp.inverse(jnp.asarray(levels[k], jnp.float32)) for k in (j, j + 1))
  term = lambda v: np.mean(losses.variational_bound(vp, jnp.float32(clean), jnp.full_like(x, v), y["image"], t, s))
  np.testing.assert_allclose(loss - plain, 0.02 * 1000 * term(0.3), rtol=2e-3)
  np.testing.assert_allclose(mu["a"], plain_mu["a"], rtol=1e-4)
  slope = (term(0.35) - term(0.25)) / 0.1
  np.testing.assert_allclose((plain_mu["b"], mu["b"]), (0, 0.1 * 0.02 * 1000 * slope), rtol=0.02)
  pred = method.denoise({"params": network.params}, jnp.ones((2, 8, 8, 1)), jnp.float32(1.0))
  np.testing.assert_allclose(pred.log_variance, np.full((2, 8, 8, 1), 0.3), rtol=1e-6)


# --- float16 ----------------------------------------------------------------------------------------------------------


def test_the_loss_scale_saves_gradients_that_float16_would_lose(method_of):
  """A gradient of 1e-9 passes through a float16 activation: lost at scale 1, right at scale 1024."""

  def half(p, x, c_noise, labels):
    return x + 1e-9 * (p["a"] * jnp.ones_like(x)).astype(jnp.float16).astype(jnp.float32)

  def mu(network=half, **fields):
    method, state, _ = method_of(Known(network), **fields)
    after, _ = method.update(state, batch_of(gaussian_images(8, 0.1, 0.5)), jax.random.key(3))
    return float(after.opt_state["net"].mu["a"])

  exact = mu(lambda p, x, c_noise, labels: x + 1e-9 * p["a"])
  assert abs(mu() / exact - 1) > 0.1
  assert abs(mu(optimizer__loss_scale=2.0**20) / exact - 1) < 0.02
  assert abs(mu(optimizer__loss_scale=2.0**20, optimizer__loss_scale_growth=10) / exact - 1) < 0.02
