"""Extractors: what they refuse, whole batches whatever N, and that the package's own is the digits network."""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from interop import torch_files

from diffusion_jax.data import sources
from diffusion_jax.evaluation import digits, features
from diffusion_jax.evaluation import images as images_lib


def real_bytes(n=None):
  source = sources.load("digits", "all")
  return images_lib.to_uint8(source.gather(np.arange(n or len(source)))["image"])


def toy(apply=lambda params, x: {"f": params * x.astype(jnp.float32).mean(axis=(1, 2))}, **fields):
  default = dict(name="toy", weights="0", channels=3, resolution=None, resize="none", features="f", logits=None)
  default["params"] = jnp.float32(2.0)
  return features.Extractor(apply=apply, **{**default, **fields})


def test_digits_are_the_digits_network():
  source = sources.load("digits", "all")
  images = source.gather(np.arange(300))["image"]
  out = features.load("digits")(images_lib.to_uint8(images))
  np.testing.assert_allclose(out["features"], digits.features(images), atol=1e-6)
  np.testing.assert_allclose(out["logits"], digits.logits(images), atol=1e-5)


def test_weights_are_named_by_their_hash():
  assert features.load("digits").weights == hashlib.sha256(digits.WEIGHTS.read_bytes()).hexdigest()


@pytest.mark.parametrize("n", [1, 7, 256, 257, 600])
def test_each_image_has_its_own_features_whatever_their_number(n):
  images = np.random.default_rng(n).integers(0, 256, (n, 4, 5, 3)).astype(np.uint8)
  np.testing.assert_allclose(toy()(images)["f"], 2 * images.mean(axis=(1, 2)), rtol=1e-6)


def test_pixels_are_the_bytes():
  images = real_bytes(9)
  out = features.load("pixels", resolution=8, channels=1)(images)
  np.testing.assert_array_equal(out["pixels"], images.reshape(9, -1))


@pytest.mark.parametrize(
  "images, message",
  [
    (np.zeros((4, 8, 8, 1), np.float32), r"must be uint8 in 0..255, got float32"),
    (np.zeros((4, 8, 8, 1), np.int64), r"must be uint8 in 0..255, got int64"),
    (np.zeros((4, 8, 8, 3), np.uint8), r"digits must be \[N, 8, 8, 1\].*got shape \[4, 8, 8, 3\]"),
    (np.zeros((4, 9, 9, 1), np.uint8), r"digits must be \[N, 8, 8, 1\]"),
    (np.zeros((8, 8, 1), np.uint8), r"got shape \[8, 8, 1\]"),
    (np.zeros((0, 8, 8, 1), np.uint8), "N >= 1"),
  ],
)
def test_other_images_are_refused(images, message):
  with pytest.raises(ValueError, match=message) as error:
    features.load("digits")(images)
  assert "\n" not in str(error.value)


def test_features_that_are_not_finite_are_refused():
  broken = toy(lambda params, x: {"f": jnp.where(x[:, 0, 0] > 250, jnp.nan, 1.0)})
  images = np.zeros((300, 2, 2, 3), np.uint8)
  images[[3, 290], 0, 0, 1] = 255
  with pytest.raises(ValueError, match="features 'f' of toy must be finite, got 2 of 300 images"):
    broken(images)


def test_only_what_is_needed_is_returned():
  both = lambda params, x: {"f": x.mean(axis=(1, 2)), "g": x.mean(axis=(1, 2)), "h": x.mean(axis=(1, 2))}
  assert set(dataclasses.replace(toy(both), logits="g")(np.zeros((2, 2, 2, 3), np.uint8))) == {"f", "g"}


def test_files_that_hold_no_such_weights(tmp_path):
  with pytest.raises(ValueError, match="one of digits, inception, vgg, pixels, got 'clip'"):
    features.load("clip")
  with pytest.raises(ValueError, match="'inception' needs the file of its weights, weights-inception-2015-12-05"):
    features.load("inception")
  with pytest.raises(ValueError, match="no such file"):
    features.load("vgg", tmp_path / "vgg.pth")
  path = tmp_path / "other.pth"
  path.write_bytes(torch_files.state_dict_file({"fc.weight": np.zeros((3, 2), np.float32)}))
  for name in ("inception", "vgg"):
    with pytest.raises(ValueError, match="other.pth: .*") as error:
      features.load(name, path)
    assert "\n" not in str(error.value)
