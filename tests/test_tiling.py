"""Sampling from a condition: Algorithm 2 by hand, each image from its own, windows that leave no seams, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import toy_task

from diffusion_jax import methods, process, samplers, sampling, tiling, times
from diffusion_jax.config import ConfigError
from diffusion_jax.methods import base
from diffusion_jax.training import start, state
from diffusion_jax.types import Prediction, like, normal

GRID = times.decoupled_grid(4)


class Pointwise:
  """Two heads that disagree, of pixels alone; the condition's features are `gain` times it. Counts what is run."""

  def __init__(self, attenuation="constant"):
    self.process, self.traces, self.encoded, self.denoised = process.Decoupled(attenuation), 0, 0, 0

  def method(self):
    return methods.Method(None, None, self.denoise, self.process, methods.decoupled.FIRST, encode=self.encode)

  def count(self, name):
    setattr(self, name, getattr(self, name) + 1)

  def encode(self, variables, condition):
    jax.debug.callback(lambda _: self.count("encoded"), condition[0, 0, 0, 0])
    return (variables["gain"] * condition,)

  def denoise(self, variables, x, t, cond=None):
    self.traces += 1
    jax.debug.callback(lambda _: self.count("denoised"), x[0, 0, 0, 0])
    features = cond["condition"] if isinstance(cond["condition"], tuple) else self.encode(variables, cond["condition"])
    return self.heads(x, like(jnp.broadcast_to(t, len(x)), x), features[0], jnp)

  def heads(self, x, t, feature, np):
    clean = [np.sin(x + (k + 1) * feature) - t for k in range(self.process.parameters)]
    return Prediction(np.concatenate(clean, -1), 0.3 * x - t * feature)


VARIABLES = {"gain": jnp.float32(0.5)}
uniform = lambda *shape, seed=0: np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def sample(model, condition, seeds=None, **options):
  keys = sampling.keys_of(range(len(condition)) if seeds is None else seeds)
  shape = (*condition.shape[1:3], condition.shape[-1])
  return sampling.sample(model.method(), VARIABLES, keys, shape, GRID, "decoupled", condition=condition, **options)


def test_algorithm_2_with_a_condition():
  """x_{t−s} = x_t + H_{t−s} − H_t − s/√t·ε̂ + √(s(t−s)/t)·z with H_t = t·ĉ, in float64; the encoder runs once."""
  model, condition = Pointwise(), uniform(3, 8, 8, 2)
  got = sample(model, condition)
  jax.effects_barrier()
  assert (model.encoded, model.denoised) == (1, 4)
  keys = sampling.keys_of(range(3))
  x = np.asarray(model.process.prior(keys, (8, 8, 2), 1.0), np.float64)
  for i, (t, after) in enumerate(zip(GRID[:-1], GRID[1:])):
    clean, eps, _ = model.heads(x, t, 0.5 * condition.astype(np.float64), np)
    s = t - after
    x = x + (after - t) * clean - s / np.sqrt(t) * eps
    x = x + np.sqrt(s * after / t) * np.asarray(normal(keys, i, (8, 8, 2)), np.float64)
  np.testing.assert_allclose(got, x, atol=1e-5)


def test_an_image_depends_on_its_own_condition():
  model, condition = Pointwise(), uniform(4, 8, 8, 1)
  order = np.array([2, 0, 3, 1])
  whole = np.asarray(sample(model, condition))
  traces = model.traces
  np.testing.assert_allclose(sample(model, condition[order], order), whole[order], atol=1e-6)
  other = condition.copy()
  other[1] = -other[1]
  changed = np.abs(sample(model, other) - whole).max((1, 2, 3))
  assert changed[1] > 0.1 and not changed[[0, 2, 3]].any()
  assert model.traces == traces  # nothing was compiled again


@pytest.fixture(scope="module")
def trained():
  """(config, method, variables) of the toy network with a task, its weights of ordinary size."""
  config = toy_task.get_config()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", toy_task.network_from_config)
    method = methods.from_config(config)
  made = jax.jit(lambda key: method.init(key, start.example_batch(config)))(jax.random.key(0))
  return config, method, state.inference_variables(made.ema)


def test_eight_devices_give_the_images_of_one(trained):
  """Batches over the devices, the last one filled up; bytes or floats; all hosts together."""
  config, method, variables = trained
  condition = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 1)).astype(np.uint8)
  floats = condition / np.float32(127.5) - 1
  keys = jax.device_put(sampling.keys_of(range(21)), jax.devices()[0])
  grid = times.decoupled_grid(config.sampling.num_steps)
  one = sampling.sample(method, variables, keys, (8, 8, 1), grid, "decoupled", condition=jnp.asarray(floats))
  assert len(one.sharding.device_set) == 1
  for generate in (sampling.generate, sampling.generate_together):
    run = lambda condition: generate(config, method, variables, np.arange(21), condition=condition)
    np.testing.assert_allclose(run(condition), one, atol=1e-5)
    np.testing.assert_allclose(run(floats), one, atol=1e-5)
    assert np.abs(run(condition[::-1]) - one).max() > 0.05


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attenuation, size, tile", [("constant", (20, 28), (8, 3)), ("linear", (9, 16), (9, 8))])
def test_windows_change_nothing_of_a_pointwise_network(attenuation, size, tile):
  """With any number of parameters, also where a window is as high as the image."""
  model, condition = Pointwise(attenuation), uniform(2, *size, 1)
  tiled = sample(model, condition, tile=list(tile))
  np.testing.assert_allclose(tiled, sample(model, condition), atol=1e-5)


def test_one_window_is_the_untiled_result(trained):
  config, method, variables = trained
  condition, keys = uniform(2, 8, 8, 1), sampling.keys_of(range(2))
  run = lambda **options: sampling.sample(
    method, variables, keys, (8, 8, 1), GRID, "decoupled", condition=condition, **options
  )
  whole = run()
  assert np.std(whole) > 0.1
  np.testing.assert_allclose(run(tile=(8, 3)), whole, atol=1e-4)


def test_conditions_of_any_size(trained):
  """One of a window is `generate`'s, a smaller one its mirrored continuation's, cut again; larger ones are tiled."""
  config, method, variables = trained
  condition = uniform(1, 8, 8, 1)[0]
  expected = sampling.generate(config, method, variables, [5], condition=condition[None])[0]
  large = lambda condition: sampling.generate_large(config, method, variables, 5, condition, 3)
  np.testing.assert_allclose(large(condition), expected, atol=1e-4)
  small = condition[:5, :6]
  mirrored = np.concatenate([small, small[:, ::-1]], 1)[:, :8]
  mirrored = np.concatenate([mirrored, mirrored[::-1]])[:8]
  np.testing.assert_allclose(large(small), large(mirrored)[:5, :6], atol=1e-6)
  assert large(uniform(1, 9, 13, 1)[0]).shape == (9, 13, 1)
  config = config.copy_and_resolve_references()
  config.condition.resolution = 16
  with pytest.raises(ConfigError, match=r"condition.resolution = 16: must be that of the image, 8"):
    sampling.generate_large(config, method, variables, 5, condition, 3)


def test_windows_leave_no_seams():
  """A network that sees 3 pixels around each, with zeros beyond a window: overlapping windows of 16 on 40×40.

  The border of a window counts for little, so nowhere is the tiled result far from the untiled one, also where
  windows end; side by side, without a blend, it is.
  """
  rng, size, window, overlap = np.random.default_rng(0), 40, 16, 8
  kernels = [rng.standard_normal(shape) / np.sqrt(np.prod(shape[:3])) for shape in ((3, 3, 2, 8), (3, 3, 8, 8))]
  kernels = [jnp.asarray(k, jnp.float32) for k in (*kernels, rng.standard_normal((3, 3, 8, 2)) / np.sqrt(72))]

  def denoise(x, t, condition):
    h = jnp.concatenate([x, condition], -1)
    for kernel in kernels:
      h = jax.lax.conv_general_dilated(jnp.tanh(h), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return Prediction(h[..., :1], h[..., 1:])

  condition, keys, p = jnp.asarray(uniform(2, size, size, 1)), sampling.keys_of(range(2)), process.Decoupled()
  x = p.prior(keys, (size, size, 1), 1.0)
  run = jax.jit(lambda denoise: samplers.decoupled(denoise, p, x, GRID, keys), static_argnums=0)
  whole = np.asarray(run(lambda x, t: denoise(x, t, condition)))
  tiled = np.asarray(run(tiling.tiled(denoise, condition, window, overlap)))

  def apart(x, t):  # 40 = 16 + 16 + 8, without overlap
    cut = lambda a: [a[:, i : i + 16, j : j + 16] for i in (0, 16, 32) for j in (0, 16, 32)]
    parts = [denoise(a, t, c) for a, c in zip(cut(x), cut(condition))]
    join = lambda p: jnp.concatenate([jnp.concatenate(p[i : i + 3], 2) for i in (0, 3, 6)], 1)
    return Prediction(join([p.clean for p in parts]), join([p.eps for p in parts]))

  hard = np.asarray(run(apart))
  difference = lambda found: np.sqrt(np.square(found - whole).mean((0, 2, 3)))  # of each row
  soft, seams = difference(tiled), difference(hard)
  assert seams[[15, 16, 31, 32]].min() > 0.2 * np.std(whole)  # measured: 0.41 of 1.36
  assert soft.max() < 0.05 * np.std(whole) and soft.max() < 3 * soft.mean()  # 0.036, and 0.017 in the mean


@pytest.mark.parametrize(
  "shape, options, message",
  [
    ((3, 8, 8, 1), {}, r"condition must be \[2, h, w, c\] for 2 keys, got shape \[3, 8, 8, 1\]"),
    ((2, 8, 8), {}, r"condition must be \[2, h, w, c\] for 2 keys, got shape \[2, 8, 8\]"),
    ((2, 16, 16, 1), {}, r"condition must be \[B, 8, 8, 1\], got shape \[2, 16, 16, 1\]"),
    ((2, 8, 8, 3), {}, r"condition must be \[B, 8, 8, 1\], got shape \[2, 8, 8, 3\]"),
    ((2, 16, 16, 1), dict(tile=(8, 2)), r"size of the images' \[8, 8\], at least a window of 8, got shape \[2, 16, 16"),
    ((2, 8, 8, 1), dict(tile=(16, 2)), r"at least a window of 16, got shape \[2, 8, 8, 1\]"),
    ((2, 8, 8, 1), dict(tile=(8, 8)), r"overlap must be in 1..window − 1 = 7, got 8"),
    (None, dict(tile=(8, 2)), r"tile needs a condition \[2, 8, 8, c\], got None"),
    ("bytes", {}, r"condition must be floating-point in \[-1, 1\], got uint8"),
  ],
)
def test_a_condition_that_does_not_fit(trained, shape, options, message):
  _, method, variables = trained
  condition = np.zeros((2, 8, 8, 1), np.uint8) if shape == "bytes" else None if shape is None else np.zeros(shape, "f4")
  with pytest.raises(ValueError, match=message) as error:
    keys = sampling.keys_of(range(2))
    sampling.sample(method, variables, keys, (8, 8, 1), GRID, "decoupled", condition=condition, **options)
  assert "\n" not in str(error.value)


def test_conditions_belong_to_seeds_and_tasks(trained):
  config, method, variables = trained
  plain = config.copy_and_resolve_references()
  plain.task.name = ""
  condition = np.zeros((3, 8, 8, 1), np.float32)
  for generate in (sampling.generate, sampling.generate_together):
    call = lambda config, count, condition: generate(config, method, variables, np.arange(count), condition=condition)
    with pytest.raises(ValueError, match=r"must hold 2 images, one a seed, for .* = 'inpaint', got shape \[3, 8, 8, 1"):
      call(config, 2, condition)
    with pytest.raises(ValueError, match="condition must hold 3 images, one a seed, for .* = 'inpaint', got None"):
      call(config, 3, None)
    with pytest.raises(ValueError, match=r"condition must be None for config.task.name = '', got shape"):
      call(plain, 3, condition)
  with pytest.raises(ValueError, match="condition must be None for this method, which was trained without a task"):
    keys = sampling.keys_of(range(3))
    without = method._replace(encode=None)
    sampling.sample(without, variables, keys, (8, 8, 1), GRID, "decoupled", condition=condition)
