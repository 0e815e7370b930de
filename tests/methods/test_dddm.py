"""DDDM: Algorithm 1 replayed example by example, gradients, options, the minimiser, bad input; a network of numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import tiny

from diffusion_jax import losses, methods, process
from diffusion_jax.config import ConfigError
from diffusion_jax.data import augment, batching
from diffusion_jax.methods import batches, dddm
from diffusion_jax.training import memory, start, state

COUNT = 22  # examples; four slices of 6, 6, 5 and 5


def dddm_config(**fields):
  c = tiny.get_config()
  c.method = "dddm"
  c.data.update(num_classes=0, flip=False)
  c.label_dropout = 0.0
  c.dddm.update(metric="l2", attention_resolutions=(8,), buffer_slices=4, num_examples=COUNT)
  c.sampling.update(sampler="dddm", grid="dddm", num_steps=2)
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


class Linear:
  """F = a·x + b·x̄_0 + c·c_noise/1000; keeps what it is given."""

  def __init__(self):
    self.params, self.calls = {"a": jnp.float32(0.9), "b": jnp.float32(-0.2), "c": jnp.float32(0.1)}, []

  def init(self, key, x, c_noise, context):
    return {"params": self.params}

  def apply(self, variables, x, c_noise, labels=None, augment=None, dropout_keys=None, context=None):
    self.calls.append({"x": x, "c_noise": c_noise, "context": context, "dropout": dropout_keys, "augment": augment})
    p = variables["params"]
    return {"out": p["a"] * x + p["b"] * context + p["c"] * c_noise[:, None, None, None] / 1000}


@pytest.fixture
def made(monkeypatch):
  """(fields) -> (method, its first state, config, network)."""

  def make(**fields):
    config, network = dddm_config(**fields), Linear()
    monkeypatch.setattr(dddm, "network_from_config", lambda config: network)
    method = methods.from_config(config)
    return method, start.create_state(method, config), config, network

  return make


IMAGES = np.random.default_rng(0).normal(0.2, 0.5, size=(COUNT, 8, 8, 1)).astype(np.float32)


def batch_at(config, step, slices=None):
  index = batching.indices(config.seed, step, config.train.batch_size, COUNT, slices or config.dddm.buffer_slices)
  slot = np.arange(len(index), dtype=np.int32)
  return {"image": IMAGES[index], "label": 0 * slot, "index": index.astype(np.int32), "slot": slot}


def by_example(buffer):
  """[N, H, W, C] of a buffer [S, rows, H, W, C]: example i from slice i mod S, row i // S."""
  i, buffer = np.arange(COUNT), np.asarray(buffer, np.float32)
  return buffer[i % len(buffer), i // len(buffer)]


def mirrored(images, config, key, step):
  """Images as data.flip mirrors them in a step, in NumPy from the examples' keys."""
  keys = batches.streams(state.example_keys(key, step, jnp.arange(len(images))), batches.AUGMENT)
  mirror = np.asarray(jax.vmap(jax.random.bernoulli)(keys)) & config.data.flip
  return np.where(mirror[:, None, None, None], images[:, :, ::-1], images)


def estimate(call, params, previous):
  x, c_noise = np.asarray(call["x"], np.float64), np.asarray(call["c_noise"], np.float64)[:, None, None, None]
  p = {name: float(value) for name, value in params.items()}
  return x - (p["a"] * x + p["b"] * previous + p["c"] * c_noise / 1000)


@pytest.mark.parametrize("fields", [
  {}, {"data__flip": True}, {"dddm__buffer_writes": "clean", "data__flip": True}, {"dddm__buffer_dtype": "bfloat16"},
], ids=str)  # fmt: skip
def test_the_buffer_is_algorithm_1_example_by_example(made, fields):
  """Fifteen updates, five epochs and more, replayed in NumPy from the states x_t that the network was given."""
  method, now, config, network = made(**fields)
  remembered = by_example(now.buffer["estimate"])
  assert abs(remembered.mean()) < 0.1 and abs(remembered.std() - 1) < 0.1  # x̄_0 ~ N(0, I) at first
  key, tolerance = jax.random.key(5), 1e-2 if config.dddm.buffer_dtype == "bfloat16" else 1e-5
  for step in range(15):
    network.calls.clear()
    batch, params = batch_at(config, step), now.params["net"]
    now, metrics = method.update(now, batch, key)
    now = now.replace(step=now.step + 1)
    (call,) = network.calls
    previous = mirrored(remembered[batch["index"]], config, key, step)
    np.testing.assert_allclose(call["context"], previous, rtol=tolerance, atol=tolerance)
    found, x0 = estimate(call, params, previous), mirrored(batch["image"], config, key, step)
    np.testing.assert_allclose(metrics["previous_error"], np.abs(previous - x0).mean(), rtol=10 * tolerance)
    np.testing.assert_allclose(metrics["loss"], ((found - x0) ** 2).sum((1, 2, 3)).mean(), rtol=10 * tolerance)
    found = x0 if config.dddm.buffer_writes == "clean" else found
    remembered[batch["index"]] = mirrored(found, config, key, step)  # of an example drawn twice the last
    np.testing.assert_allclose(by_example(now.buffer["estimate"]), remembered, rtol=tolerance, atol=tolerance)


def test_parts_of_a_batch_leave_the_estimates_of_the_whole(made):
  states = []
  for accumulation in (1, 2):
    method, now, config, _ = made(train__accumulation=accumulation, data__flip=True)
    for step in range(3):
      now, _ = method.update(now, batch_at(config, step), jax.random.key(5))
      now = now.replace(step=now.step + 1)
    states.append((now.buffer, now.params))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), *states)


@pytest.mark.parametrize("fields", [{}, {"dddm__estimates": "in_step", "dddm__in_step_iterations": 2}], ids=str)
def test_no_gradient_passes_through_the_previous_estimate(made, fields):
  """The norm of that of the last pass alone, by hand; in_step makes x̄_0 with the same parameters."""
  method, now, config, network = made(**fields)
  network.calls.clear()
  _, metrics = method.update(now, batch_at(config, 0), jax.random.key(2))
  call = network.calls[-1]
  previous = np.asarray(call["context"], np.float64)
  error = estimate(call, now.params["net"], previous) - batch_at(config, 0)["image"]
  inputs = (np.asarray(call["x"]), previous, np.asarray(call["c_noise"])[:, None, None, None] / 1000 + 0 * previous)
  grads = [(-2 * error * value).sum((1, 2, 3)).mean() for value in inputs]
  np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(grads), rtol=1e-4)


def test_estimates_of_this_very_x_t(made):
  """Each is an iterate 0, 1 or 2 of equation (1), the three about as often, made without dropout."""
  method, now, config, network = made(dddm__estimates="in_step", dddm__in_step_iterations=2, train__batch_size=600)
  assert now.buffer == {}
  network.calls.clear()
  index = np.arange(600, dtype=np.int32) % COUNT
  batch = {"image": IMAGES[index], "label": 0 * index, "index": index, "slot": np.arange(600, dtype=np.int32)}
  method.update(now, batch, jax.random.key(2))
  first, second, last = network.calls
  assert first["dropout"] is None and second["dropout"] is None and last["dropout"] is not None
  iterates = [np.asarray(first["context"], np.float64)]
  assert abs(iterates[0].mean()) < 0.02 and abs(iterates[0].std() - 1) < 0.02
  for _ in range(2):
    iterates.append(estimate(first, now.params["net"], iterates[-1]))
  close = [np.abs(last["context"] - iterate).max((1, 2, 3)) < 1e-4 for iterate in iterates]
  assert (np.sum(close, axis=0) == 1).all()
  assert np.abs(np.sum(close, axis=1) - 200).max() < 4 * np.sqrt(600 * 2 / 9)


def test_refreshed_estimates_are_fresh_noise(made):
  """At the asked rate; what is stored back is the estimate all the same."""
  method, now, config, network = made(dddm__buffer_refresh=0.25, train__batch_size=400, dddm__num_examples=400)
  images = np.zeros((400, 8, 8, 1), np.float32)
  now = now.replace(buffer={"estimate": jnp.full_like(now.buffer["estimate"], 7.0)})
  network.calls.clear()
  index = np.arange(400, dtype=np.int32).reshape(100, 4).T.reshape(-1)
  batch = {"image": images, "label": 0 * index, "index": index, "slot": np.arange(400, dtype=np.int32)}
  now, _ = method.update(now, batch, jax.random.key(4))
  context = np.asarray(network.calls[0]["context"])
  fresh = (context != 7).all((1, 2, 3))
  assert (context[~fresh] == 7).all() and abs(fresh.sum() - 100) < 4 * np.sqrt(400 * 3 / 16)
  assert abs(context[fresh].std() - 1) < 0.05
  assert not (np.asarray(now.buffer["estimate"]) == 7).any()


def test_the_published_codes_loss(made):
  """w·d(f, x_0) + (1 − w)·d(f, x̄_0) with w = 1/(epoch + 1), epochs of 22 examples."""
  method, now, config, network = made(dddm__consistency_weight=True)
  for step, share in ((0, 1.0), (2, 1.0), (3, 1 / 2), (9, 1 / 4)):
    network.calls.clear()
    batch = batch_at(config, step)
    _, metrics = method.update(now.replace(step=jnp.int32(step)), batch, jax.random.key(1))
    previous = np.asarray(network.calls[0]["context"], np.float64)
    found = estimate(network.calls[0], now.params["net"], previous)
    distance = lambda a, b: ((a - b) ** 2).sum((1, 2, 3)).mean()
    wanted = share * distance(found, batch["image"]) + (1 - share) * distance(found, previous)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-4)


def test_augmentation_warps_the_estimate_and_leaves_what_it_warped(made):
  """What was only mirrored is stored, mirrored back; a warp cannot be undone."""
  method, now, config, network = made(data__augment=0.2, train__batch_size=16)
  before = by_example(now.buffer["estimate"])
  network.calls.clear()
  batch = batch_at(config, 0)
  now, _ = method.update(now, batch, jax.random.key(3))
  call, after = network.calls[0], by_example(now.buffer["estimate"])
  labels = np.asarray(call["augment"])
  np.testing.assert_allclose(call["context"], augment.warp(before[batch["index"]], labels), rtol=1e-5, atol=1e-5)
  found = estimate(call, start.create_state(method, config).params["net"], np.asarray(call["context"], np.float64))
  warped = (labels[:, 2:] != 0).any(1)
  assert 0 < warped.sum() < 16
  for i, index in enumerate(batch["index"]):
    if index in batch["index"][i + 1 :]:
      continue
    back = found[i][:, ::-1] if labels[i, 0] else found[i]
    back = back[::-1] if labels[i, 1] else back
    np.testing.assert_allclose(after[index], before[index] if warped[i] else back, rtol=1e-4, atol=1e-5)


def test_a_skipped_update_leaves_the_estimates(made):
  method, now, config, _ = made()
  batch = batch_at(config, 0)
  bad = {**batch, "image": np.where(batch["slot"][:, None, None, None] == 3, np.nan, batch["image"])}
  after, metrics = method.update(now, bad, jax.random.key(1))
  assert metrics["skipped"] == 1
  np.testing.assert_array_equal(after.buffer["estimate"], now.buffer["estimate"])


def test_the_chain_and_the_pair(made):
  """β_1 = .1/T, β_T = 20/T; ĉ = x − F and ε̂ from it, at every t; x̄_0 is 0 where a sampler has none."""
  for count in (1000, 8000):
    method, now, _, network = made(dddm__num_steps=count)
    assert method.process == process.DDPM(count, 0.1 / count, 20 / count) and method.samplers == ("dddm",)
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([1, count // 2, count])
    network.calls.clear()
    out = method.denoise({"params": now.params["net"]}, x, t, {"previous": 2 * x})
    method.denoise({"params": now.params["net"]}, x, t)
    np.testing.assert_allclose(network.calls[0]["c_noise"], (t - 1) * 1000 / count)
    assert not np.asarray(network.calls[1]["context"]).any()
    clean = 0.1 * x + 0.4 * x - 0.1 * network.calls[0]["c_noise"][:, None, None, None] / 1000
    np.testing.assert_allclose(out.clean, clean, rtol=1e-5, atol=1e-6)
    alpha, sigma = (np.reshape(f(t), (-1, 1, 1, 1)) for f in (method.process.alpha, method.process.sigma))
    np.testing.assert_allclose(alpha * out.clean + sigma * out.eps, x, rtol=1e-4, atol=1e-4)


class PerTime:
  """F = x − (a_t·x + b_t·x̄_0 + c_t): f is any affine function at each of T = 25 times."""

  params = {name: jnp.zeros(25) for name in "abc"}

  def init(self, key, x, c_noise, context):
    return {"params": self.params}

  def apply(self, variables, x, c_noise, labels=None, augment=None, dropout_keys=None, context=None):
    t = jnp.round(c_noise * 25 / 1000).astype(int)
    a, b, c = (variables["params"][name][t][:, None, None, None] for name in "abc")
    return {"out": x - (a * x + b * context + c)}


@pytest.mark.parametrize("estimates", ["noise", "in_step"])
def test_the_l2_loss_has_the_conditional_mean_for_its_minimiser(monkeypatch, estimates):
  """Of data N(.3, .5²) it is E[x_0|x_t] = m + k·(x − α·m), k = α·s²/(α²s² + σ²), which no x̄_0 made of x_t and noise
  adds to: an affine network comes within 2 % of it at every t, started from nothing.
  """
  config = dddm_config(dddm__estimates=estimates, dddm__num_steps=25, train__batch_size=1024)
  config.optimizer.update(learning_rate=0.03, warmup_images=0, decay_power=2.0)
  config.train.num_steps = 500
  config.ema.half_life_images = 100_000
  monkeypatch.setattr(dddm, "network_from_config", lambda config: PerTime())
  method, m, s = methods.from_config(config), 0.3, 0.5
  now = start.create_state(method, config)
  slot = jnp.arange(1024)

  @jax.jit
  def step(now, key):
    images = m + s * jax.random.normal(key, (1024, 8, 8, 1))
    now, _ = method.update(now, {"image": images, "label": slot, "index": slot, "slot": slot}, key)
    return now.replace(step=now.step + 1)

  for i in range(500):
    now = step(now, jax.random.key(i))
  t = jnp.arange(1, 26)
  alpha, sigma = np.asarray(method.process.alpha(t)), np.asarray(method.process.sigma(t))
  slope = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
  p = now.ema["net"]
  x = alpha * m + np.sqrt(alpha**2 * s**2 + sigma**2) * np.array([[-2], [-1], [0], [1], [2]])
  wanted = m + slope * (x - alpha * m)
  assert np.abs(p["b"]).max() < 0.02
  assert np.abs(p["a"] * x + p["c"] - wanted).max() < 0.02 * s


@pytest.mark.parametrize("count, slices, dtype, wanted", [
  (50_000, 1, "float32", 614.4e6), (50_000, 8, "float32", 76.8e6), (50_000, 8, "float16", 38.4e6),
])  # fmt: skip
def test_the_buffer_costs_its_numbers_and_nothing_more(count, slices, dtype, wanted):
  """CIFAR-10's, on each of as many devices as slices."""
  draw = functools.partial(memory.create, num_examples=count, slices=slices, shape=(32, 32, 3), dtype=jnp.dtype(dtype))
  shape = jax.eval_shape(draw, jax.random.key(0))
  assert shape.size * shape.dtype.itemsize / slices == wanted


def test_an_examples_first_estimate_depends_on_its_number_alone():
  draw = lambda slices: memory.create(jax.random.key(3), COUNT, slices, (2, 2, 1), jnp.float32)
  np.testing.assert_array_equal(by_example(draw(1)), by_example(draw(4)))
  values = by_example(draw(4)).ravel()
  assert len(set(values.tolist())) == COUNT * 4


@pytest.mark.parametrize("fields, words", [
  ({"dddm__metric": "l3"}, ["dddm.metric = 'l3'", "l2"]),
  ({"dddm__metric": "lpips"}, ["lpips.weights = ()", "pseudo_huber"]),
  ({"dddm__conditioning": "atention"}, ["dddm.conditioning = 'atention'", "attention"]),
  ({"dddm__estimates": "instep"}, ["dddm.estimates = 'instep'", "in_step"]),
  ({"dddm__estimates": "in_step", "dddm__buffer_refresh": 0.5}, ["dddm.buffer_refresh = 0.5", "in_step"]),
  ({"dddm__estimates": "noise", "dddm__consistency_weight": True}, ["dddm.consistency_weight = True", "noise"]),
  ({"dddm__in_step_iterations": 2}, ["dddm.in_step_iterations = 2", "buffer"]),
  ({"dddm__buffer_refresh": 1.5}, ["dddm.buffer_refresh = 1.5", "probability"]),
  ({"dddm__buffer_slices": 3}, ["train.batch_size = 8", "dddm.buffer_slices (3)"]),
  ({"dddm__buffer_dtype": "float8"}, ["dddm.buffer_dtype = 'float8'", "float16"]),
  ({"dddm__buffer_memory": "host", "train__updates_per_call": 2, "train__log_every": 2},
   ["train.updates_per_call = 2", "host"]),
  ({"dddm__num_steps": 20}, ["dddm.num_steps = 20", "20/T"]),
  ({"dddm__attention_resolutions": ()}, ["dddm.attention_resolutions = ()", "attention"]),
  ({"dddm__attention_resolutions": (16,)}, ["dddm.attention_resolutions = (16,)", "[8]"]),
  ({"task__name": "superres"}, ["task.name = 'superres'", "dddm"]),
], ids=str)  # fmt: skip
def test_a_config_that_cannot_be(fields, words):
  with pytest.raises(ConfigError) as error:
    methods.from_config(dddm_config(**fields))
  assert all(word in str(error.value) for word in words), error.value


def test_a_state_is_made_of_data_that_are_known():
  config = dddm_config(dddm__num_examples=0)
  with pytest.raises(ConfigError, match="dddm.num_examples = 0: must be the number of examples"):
    start.create_state(methods.from_config(config), config)


def test_slices_are_a_multiple_of_the_devices():
  from diffusion_jax import config as config_lib

  with pytest.raises(ConfigError, match="dddm.buffer_slices = 4: must be a multiple of 8 devices"):
    config_lib.check(dddm_config(), 8)


@pytest.mark.parametrize("index, words", [([0, 4, 1, 5, 2, 6, 3, COUNT], "22"), ([0, 4, 1, 5, 2, 6, 4, 3], "slices")])
def test_an_example_that_is_not_remembered_here(made, index, words):
  method, now, config, _ = made()
  slot = np.arange(8, dtype=np.int32)
  batch = {"image": IMAGES[:8], "label": slot, "index": np.array(index, np.int32), "slot": slot}
  with pytest.raises(IndexError, match=words):
    method.update(now, batch, jax.random.key(0))


@pytest.mark.parametrize("metric", ["l1", "l2", "pseudo_huber"])
def test_the_metric_is_the_loss(made, metric):
  method, now, config, network = made(dddm__metric=metric)
  network.calls.clear()
  batch = batch_at(config, 0)
  _, metrics = method.update(now, batch, jax.random.key(1))
  error = estimate(network.calls[0], now.params["net"], np.asarray(network.calls[0]["context"])) - batch["image"]
  square = (error**2).sum((1, 2, 3))
  c = 0.00054 * 8
  wanted = {"l1": np.abs(error).sum((1, 2, 3)), "l2": square, "pseudo_huber": np.sqrt(square + c**2) - c}[metric]
  np.testing.assert_allclose(metrics["loss"], wanted.mean(), rtol=1e-4)
  assert losses.pseudo_huber(batch["image"], batch["image"]).max() == 0
