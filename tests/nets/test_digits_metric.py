"""The perceptual distance of digits: the network and the distance by hand, gradients, what is near and what is far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from diffusion_jax.data import sources
from diffusion_jax.nets import digits_metric

value_and_gradient = jax.jit(jax.value_and_grad(lambda a, b, params: digits_metric.distance(params, a, b).sum()))


def real(n=1500):
  """n digits of the train split, of all writers: they come one after another."""
  return sources.load("digits", "train").gather(np.arange(0, 1500, 1500 // n))


@pytest.fixture(scope="module")
def params():
  return digits_metric.params()


def maps_by_hand(params, image):
  """Equation (1) for one image [8, 8], in float64 and without JAX: f_1, f_2, f_3 and the logits."""
  x, maps = image[..., None].astype(np.float64), []
  for i in (1, 2, 3, 4):
    if i >= 3:
      x = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
    kernel = params[f"conv{i}_kernel"].astype(np.float64)
    channels = [
      sum(scipy.signal.correlate2d(x[..., k], kernel[:, :, k, o], mode="same") for k in range(kernel.shape[2]))
      for o in range(kernel.shape[3])
    ]
    x = np.maximum(np.stack(channels, axis=-1) + params[f"conv{i}_bias"], 0)
    maps += [x] if i > 1 else []
  return maps, x.mean((0, 1)) @ params["logits_kernel"] + params["logits_bias"]


def distance_by_hand(params, a, b):
  total = 0
  for f, g in zip(*(maps_by_hand(params, image)[0] for image in (a, b))):
    u, v = (x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in (f, g))
    total += np.mean(np.sum((u - v) ** 2, axis=-1))
  return total


def test_network_and_distance_by_hand(params):
  images = real(n=4)["image"]
  a, b = images[:2], images[2:] + 0.1
  maps, logits = digits_metric.network(params, a)
  expected = [maps_by_hand(params, image[..., 0]) for image in a]
  np.testing.assert_allclose(logits, [y for _, y in expected], atol=2e-5)
  assert [f.shape[1:] for f in maps] == [f.shape for f in expected[0][0]]
  wanted = [distance_by_hand(params, x[..., 0], y[..., 0]) for x, y in zip(a, b)]
  np.testing.assert_allclose(digits_metric.distance(params, a, b), wanted, rtol=1e-5)
  np.testing.assert_allclose(digits_metric.distance(params, b, a), wanted, rtol=1e-5)
  assert min(wanted) > 0.5


def test_it_knows_the_digits_that_it_never_saw(params):
  """Trained on the test split; the train split, of which it saw nothing, tells whether it sees digits."""
  data = real(n=500)
  _, logits = digits_metric.network(params, data["image"])
  assert np.mean(np.argmax(logits, -1) == data["label"]) > 0.975
  assert digits_metric.WEIGHTS.stat().st_size < 250_000


def test_the_likelier_the_change_the_smaller_the_distance(params):
  """Noise, then a shift by a pixel, another digit of the class, one of another class; pixels put the shift last."""
  data = real(n=300)
  images, labels = data["image"], data["label"]
  rng = np.random.default_rng(0)
  noise = rng.standard_normal(images.shape).astype(np.float32)
  others_of = lambda i, equal: np.setdiff1d(np.flatnonzero((labels == labels[i]) == equal), i)
  partners = lambda equal: images[[rng.choice(others_of(i, equal)) for i in range(len(images))]]
  shifted = np.pad(images, ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=-1)[:, :, :8]
  others = [images + 0.05 * noise, images + 0.2 * noise, shifted, partners(True), partners(False)]
  distance = jax.jit(digits_metric.distance)
  found = [float(distance(params, images, other).mean()) for other in others]
  assert np.all(np.diff(found) > 0), found
  assert 2 * found[3] < found[4]


def test_an_image_and_itself(params):
  images = real(n=8)["image"]
  value, gradient = value_and_gradient(images, images, params)
  assert value < 1e-12 and np.abs(gradient).max() < 1e-7
  value, gradient = value_and_gradient(images, images[::-1], params)
  assert value > 1 and np.all(np.abs(gradient).reshape(8, -1).max(1) > 1e-3)


def test_gradient_of_finite_differences(params, x64):
  exact = {name: jnp.asarray(value, jnp.float64) for name, value in params.items()}
  images = real(n=4)["image"].astype(np.float64)
  rng = np.random.default_rng(1)
  a, b = images[:2] + 0.1 * rng.standard_normal((2, 8, 8, 1)), images[2:]
  direction, step = rng.standard_normal(a.shape), 1e-7  # a larger step crosses kinks
  _, gradient = value_and_gradient(a, b, exact)
  ahead, behind = (value_and_gradient(a + sign * step * direction, b, exact)[0] for sign in (1, -1))
  np.testing.assert_allclose(np.vdot(gradient, direction), (ahead - behind) / (2 * step), rtol=1e-5)


def test_where_no_channel_is_active(params):
  """Without biases and with positive kernels a dark image activates nothing, and a bright one does."""
  bare = {name: np.zeros_like(p) if name.endswith("bias") else np.abs(p) for name, p in params.items()}
  dark, bright = -np.ones((2, 8, 8, 1), np.float32), np.ones((2, 8, 8, 1), np.float32)
  for a, b, active in ((dark, 0.9 * dark, False), (dark, bright, True), (bright, dark, True)):
    value, gradient = value_and_gradient(a, b, bare)
    np.testing.assert_allclose(value, 2 * 3 if active else 0, rtol=1e-6)  # |0 − unit|² in each of three layers
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("a, b, message", [
  (np.zeros((2, 8, 8, 3), np.float32), None, r"a must be \[B, 8, 8, 1\] in floats, got shape \[2, 8, 8, 3\]"),
  (np.zeros((8, 8, 1), np.float32), None, r"a must be \[B, 8, 8, 1\] in floats, got shape \[8, 8, 1\]"),
  (np.zeros((2, 8, 8, 1), np.uint8), None, r"a must be .* uint8"),
  (np.zeros((2, 8, 8, 1), np.float32), np.zeros((1, 8, 8, 1), np.float32), r"b must have the shape of a, \[2, 8, 8, 1"),
])  # fmt: skip
def test_other_images_are_refused(params, a, b, message):
  with pytest.raises(ValueError, match=message):
    digits_metric.distance(params, a, a if b is None else b)
