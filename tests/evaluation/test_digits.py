"""The digit features: the committed weights, the network by hand, the scores and their references."""

import numpy as np
import pytest
import scipy.signal

from diffusion_jax import evaluation
from diffusion_jax.data import sources
from diffusion_jax.evaluation import digits
from diffusion_jax.evaluation import images as images_lib


def real(split="all"):
  source = sources.load("digits", split)
  return source.gather(np.arange(len(source)))


def test_committed_weights_classify_the_test_split():
  data = real("test")
  assert np.mean(digits.logits(data["image"]).argmax(-1) == data["label"]) >= 0.97
  assert digits.WEIGHTS.stat().st_size < 200_000


def test_no_feature_is_dead():
  features = digits.features(real()["image"])
  assert features.shape == (1797, 64) and features.dtype == np.float32
  assert features.std(axis=0).min() > 0.1
  assert np.linalg.matrix_rank(np.cov(features, rowvar=False)) == 64


def by_hand(params, image):
  """Equation (1) of the module for one image [8, 8], in float64 and without JAX."""
  silu = lambda x: x / (1 + np.exp(-x))
  x = image[..., None].astype(np.float64)
  for layer in ("conv1", "conv2"):
    kernel = params[f"{layer}_kernel"].astype(np.float64)
    out = [
      sum(scipy.signal.correlate2d(x[..., i], kernel[:, :, i, o], mode="same") for i in range(kernel.shape[2]))
      for o in range(kernel.shape[3])
    ]
    x = silu(np.stack(out, axis=-1) + params[f"{layer}_bias"])
  x = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
  x = silu(x.ravel() @ params["dense_kernel"] + params["dense_bias"])
  return x, x @ params["logits_kernel"] + params["logits_bias"]


def test_network_by_hand():
  with np.load(digits.WEIGHTS) as file:
    params = dict(file)
  images = real("test")["image"][:3]
  in_bytes = images_lib.to_uint8(images) / 127.5 - 1  # as images are scored
  expected = [by_hand(params, image[..., 0]) for image in in_bytes]
  np.testing.assert_allclose(digits.features(images), [f for f, _ in expected], atol=2e-5)
  np.testing.assert_allclose(digits.logits(images), [y for _, y in expected], atol=5e-5)


def test_one_compilation_and_no_influence_of_the_batch():
  images = real()["image"]
  whole = digits.features(images)
  compiled = digits._network._cache_size()
  for n in (1, 5, 512, 513):
    np.testing.assert_allclose(digits.features(images[-n:]), whole[-n:], atol=1e-6)
  assert digits._network._cache_size() == compiled


def test_values_outside_are_clipped():
  images = 3 * real("test")["image"][:4]
  np.testing.assert_array_equal(digits.features(images), digits.features(np.clip(images, -1, 1)))


def test_score_is_the_frechet_distance_of_features():
  images = real()["image"]
  assert digits.score(images)["frechet"] < 1e-6
  a, b = images[:700], images[700:1500]
  fa, fb = digits.features(a).astype(np.float64), digits.features(b).astype(np.float64)
  ca, cb = np.cov(fa, rowvar=False), np.cov(fb, rowvar=False)
  root = np.sqrt(np.linalg.eigvals(ca @ cb).real.clip(0)).sum()
  expected = np.sum((fa.mean(0) - fb.mean(0)) ** 2) + np.trace(ca + cb) - 2 * root
  got = digits.score(a, real=b)
  assert got["frechet"] == pytest.approx(expected, rel=1e-6) and got["num_images"] == 700
  assert evaluation.frechet_distance(fa.mean(0), ca, fb.mean(0), cb) == pytest.approx(got["frechet"], rel=1e-9)


def test_references():
  assert digits.references(seed=3, draws=2) == digits.references(seed=3, draws=2)
  got = digits.references(seed=0)
  other = digits.references(seed=1)
  for name in ("resampled", "halves", "noise"):
    spread = np.hypot(got[name]["std"], other[name]["std"]) / np.sqrt(10)
    assert 0 < abs(got[name]["mean"] - other[name]["mean"]) < 4 * spread
  # The error of a mean or covariance of n draws has variance 1/n: 1/n for a resample, 2/n + 2/n for two halves.
  assert 3 < got["halves"]["mean"] / got["resampled"]["mean"] < 5.5
  assert got["noise"]["mean"] > 20 * got["halves"]["mean"]


def test_score_grows_with_the_noise_added():
  images = real()["image"]
  noise = np.random.default_rng(0).standard_normal(images.shape).astype(np.float32)
  scores = [digits.score(images + s * noise)["frechet"] for s in (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)]
  assert np.all(np.diff(scores) > 0)


@pytest.mark.parametrize(
  "images, message",
  [
    (np.zeros((4, 8, 8)), r"must be \[N, 8, 8, 1\]"),
    (np.zeros((4, 8, 8, 3)), r"must be \[N, 8, 8, 1\]"),
    (np.zeros((0, 8, 8, 1)), "N >= 1"),
    (np.zeros((4, 8, 8, 1), np.uint8), "floating-point"),
    (np.full((4, 8, 8, 1), np.nan), "got 256 values that are not"),
  ],
)
def test_bad_images(images, message):
  with pytest.raises(ValueError, match=message):
    digits.score(images)


def test_too_few_images_or_draws():
  with pytest.raises(ValueError, match="N >= 2"):
    digits.score(np.zeros((1, 8, 8, 1)))
  with pytest.raises(ValueError, match="draws"):
    digits.references(draws=1)
