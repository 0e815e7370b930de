"""Distances by name: values by hand, LPIPS on drawn weights, zero gradients at no distance, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop import torch_files
from nets import drawn_vgg
from training import tiny

from diffusion_jax.config import ConfigError
from diffusion_jax.data import sources
from diffusion_jax.methods import distances
from diffusion_jax.nets import digits_metric, vgg


def config_of(resolution=8, channels=1, name="digits", weights=()):
  c = tiny.get_config()
  c.data.update(name=name, resolution=resolution, channels=channels)
  c.lpips.weights = tuple(map(str, weights))
  return c


def pair(shape=(2, 8, 8, 1), seed=0):
  rng = np.random.default_rng(seed)
  return [rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """VGG16's convolutions and LPIPS's linear layers, as torch.save writes them."""
  folder, found = tmp_path_factory.mktemp("lpips"), []
  for name, prefix in (("vgg16.pth", "features."), ("vgg.pth", "lin")):
    (folder / name).write_bytes(torch_files.state_dict_file(drawn_vgg.state_dict(prefix)))
    found.append(folder / name)
  return found


def resized(images, size):
  """Bilinear, pixels at their centres, in float64: [B, H, W, C] -> [B, size, size, C]."""
  x = np.asarray(images, np.float64)
  for axis in (1, 2):
    n = x.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    low = np.minimum(at.astype(int), n - 2)
    share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
    x = np.take(x, low, axis) * (1 - share) + np.take(x, low + 1, axis) * share
  return x


# --- values -----------------------------------------------------------------------------------------------------------


def test_distances_of_pixels():
  a, b = pair((3, 8, 8, 3))
  difference = (a - b).astype(np.float64).reshape(3, -1)
  square = np.sum(difference**2, 1)
  of = lambda metric, c=0.0: distances.from_config(config_of(channels=3), metric, c)(a, b)
  np.testing.assert_allclose(of("l1"), np.abs(difference).sum(1), rtol=1e-6)
  np.testing.assert_allclose(of("l2"), square, rtol=1e-6)
  for c, own in ((0.0, 0.00054 * np.sqrt(192)), (3.0, 3.0)):
    np.testing.assert_allclose(of("pseudo_huber", c), np.sqrt(square + own**2) - own, rtol=1e-6)


def test_features_are_the_metric_of_digits(monkeypatch):
  said = []
  monkeypatch.setattr(distances.logging, "warning", lambda text: said.append(text))
  distances.warn_of_features.cache_clear()
  images = sources.load("digits", "train").gather(np.arange(4))["image"]
  a, b = images[:2], images[2:]
  of = lambda *more: distances.from_config(config_of(), *more)
  plain = digits_metric.distance(digits_metric.params(), a, b)
  distance = of("features")
  assert not said  # what only samples takes no distance
  np.testing.assert_allclose(distance(a, b), plain, rtol=1e-6)
  for c, own in ((0.0, 6.9e-5), (2.0, 2.0)):
    expected = np.sqrt(np.asarray(plain, np.float64) + own**2) - own
    np.testing.assert_allclose(of("pseudo_features", c)(a, b), expected, rtol=1e-5)
  (text,) = said
  assert "NOT LPIPS" in text


def test_pseudo_lpips_is_that_of_resized_images(files, monkeypatch):
  """Value, a gradient that reaches both images, none at a = b; files read within the trace; 16 pixels for 224."""
  monkeypatch.setattr(distances, "LPIPS_SIZE", 16)
  a, b = pair((1, 8, 8, 1))
  distance = distances.from_config(config_of(weights=files), "pseudo_lpips")
  assert jax.eval_shape(distance, a, b).shape == (1,)
  both = jax.value_and_grad(lambda a, b: distance(a, b).sum(), (0, 1))
  value, gradients = both(a, b)
  params = vgg.from_state_dict(drawn_vgg.state_dict("features.", "lin"))
  large = [jnp.asarray(np.repeat(resized(images, 16), 3, -1), jnp.float32) for images in (a, b)]
  lpips = float(vgg.lpips(params, *large)[0])
  np.testing.assert_allclose(value, np.sqrt(lpips + 6.9e-5**2) - 6.9e-5, rtol=1e-5)
  sizes = [np.abs(gradient).max() for gradient in gradients]
  assert np.isfinite(sizes).all() and min(sizes) > 1e-5
  value, gradients = both(a, a)
  assert value.dtype == gradients[0].dtype == np.float32
  # The gradient is 1/(2c) = 7,000 times LPIPS's own, which is 0 to rounding.
  assert 0 <= value < 1e-7 and max(np.abs(gradient).max() for gradient in gradients) < 1e-3 * min(sizes)


@pytest.mark.parametrize("resolution, channels, size", [(8, 1, 224), (255, 3, 224), (256, 3, 256)])
def test_what_lpips_sees(resolution, channels, size, monkeypatch):
  """Against NumPy's resize; nothing is averaged where the image shrinks, as in PyTorch."""
  seen = []
  monkeypatch.setattr(distances, "lpips_params", lambda weights: weights)
  monkeypatch.setattr(vgg, "lpips", lambda params, *images: (seen.extend(images), jnp.float32([params == ("f",)]))[1])
  a, b = pair((1, resolution, resolution, channels))
  distance = distances.from_config(config_of(resolution, channels, "folder", ["f"]), "lpips")
  assert distance(a, b) == 1
  for images, out in zip((a, b), seen, strict=True):
    expected = np.broadcast_to(resized(images, size) if size < 256 else images, (1, size, size, 3))
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("metric", [name for name in distances.METRICS if "lpips" not in name])
def test_no_distance_has_no_gradient(metric):
  """And else it is positive, and the same both ways."""
  distance = distances.from_config(config_of(), metric)
  a, b = pair()
  total = jax.jit(jax.value_and_grad(lambda a, b: distance(a, b).sum()))
  value, gradient = total(a, a)
  assert value.dtype == gradient.dtype == np.float32
  assert 0 <= value < 1e-12 and np.abs(gradient).max() <= (1 if metric == "l1" else 1e-5)  # l1: any of [−1, 1]
  np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-6)
  assert np.all(np.asarray(distance(a, b)) > 0) and np.abs(total(a, b)[1]).max() > 1e-3


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, metric, c, message", [
  (config_of(), "huber", 0.0, r"config.dddm.metric = 'huber': expected one of l1, .*; nearest: pseudo_huber"),
  (config_of(), "l2", 0.1, r"config.dddm.metric_c = 0.1: must be 0 for dddm.metric = 'l2', which has no c"),
  (config_of(), "features", 0.1, r"config.dddm.metric_c = 0.1: must be 0 for dddm.metric = 'features'"),
  (config_of(), "pseudo_huber", -1.0, r"config.dddm.metric_c = -1.0: must be a number of at least 0"),
  (config_of(), "pseudo_huber", float("nan"), r"config.dddm.metric_c = nan: must be a number of at least 0"),
  (config_of(), "pseudo_lpips", 0.0, r"config.lpips.weights = \(\): dddm.metric needs .*vgg16-397923af.pth.*vgg.pth.*"
    "pseudo_huber and, for 8×8 digits, features"),
  (config_of(16, 4, "folder", ["f"]), "lpips", 0.0, r"config.data.channels = 4: must be 1 or 3 for LPIPS, by"),
  (config_of(32, 3, "photos"), "features", 0.0, r"config.data.name, .* = \('photos', 32, 3\): must be \('digits', 8"),
  (config_of(8, 1, "folder"), "pseudo_features", 0.0, r"config.data.name, .* = \('folder', 8, 1\): must be"),
])  # fmt: skip
def test_a_wrong_metric_is_named(config, metric, c, message):
  with pytest.raises(ConfigError, match=message) as error:
    distances.from_config(config, metric, c)
  assert "\n" not in str(error.value)


def test_weights_that_cannot_be_read(files, tmp_path):
  """An error of the trace, before anything compiles; who only samples does not need the files."""
  (tmp_path / "broken.pth").write_bytes(b"no pickle")
  (tmp_path / "other.pth").write_bytes(torch_files.state_dict_file({"fc.weight": np.zeros((3, 2), np.float32)}))
  (tmp_path / "list.pth").write_bytes(torch_files.pickled([1, 2]))
  a, b = pair()
  for weights, message in (
    ([tmp_path / "none.pth"], "none.pth: no such file"),
    ([tmp_path / "broken.pth"], "broken.pth: damaged"),
    ([tmp_path / "list.pth"], "list.pth: "),
    ([tmp_path / "other.pth"], "missing tensor 'features.0.weight'"),
    ([files[0]], "missing tensor 'lin0.model.1.weight'"),
    ([files[1]], "missing tensor 'features.0.weight'"),
    ([*files, tmp_path / "other.pth"], "unexpected tensor 'fc.weight'"),
  ):
    distance = distances.from_config(config_of(weights=weights), "lpips")
    with pytest.raises(ConfigError, match=r"config.lpips.weights = \('.*" + message) as error:
      jax.eval_shape(distance, a, b)
    assert "\n" not in str(error.value)


def test_the_classifier_of_vgg16_may_be_there(files, tmp_path):
  """torchvision's file has it, the loss does not. Parameters are NumPy's, so that a jit can close over them."""
  (tmp_path / "more.pth").write_bytes(torch_files.state_dict_file({"classifier.6.bias": np.zeros(1000, np.float32)}))
  params = distances.lpips_params((*map(str, files), str(tmp_path / "more.pth")))
  assert set(params) == {"features", "lin"}
  assert {type(leaf) for leaf in jax.tree.leaves(params)} == {np.ndarray}
