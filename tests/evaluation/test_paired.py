"""PSNR and MAE of image pairs, by hand."""

import numpy as np
import pytest

from diffusion_jax import evaluation
from diffusion_jax.evaluation.paired import mae, psnr


def test_a_constant_difference():
  a = np.zeros((2, 4, 5, 3), np.uint8)
  b = a.copy()
  b[0], b[1] = 51, 255
  np.testing.assert_allclose(psnr(a, b), [20 * np.log10(5), 0], atol=1e-12)
  np.testing.assert_allclose(mae(a, b), [0.2, 1], rtol=1e-14)
  assert evaluation.psnr is psnr and evaluation.mae is mae


def test_bytes_do_not_wrap():
  a, b = np.full((1, 2, 2, 1), 10, np.uint8), np.full((1, 2, 2, 1), 200, np.uint8)
  assert mae(a, b) == mae(b, a) == pytest.approx(190 / 255)
  assert psnr(a, b) == psnr(b, a) == pytest.approx(20 * np.log10(255 / 190))


def test_both_kinds_of_images_agree():
  a, b = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 7, 3), np.uint8)
  floats = [x / 127.5 - 1 for x in (a, b)]
  np.testing.assert_allclose(psnr(*floats), psnr(a, b), rtol=1e-12)
  np.testing.assert_allclose(mae(*floats), mae(a, b), rtol=1e-12)


def test_each_image_by_the_formula():
  a, b = np.random.default_rng(1).uniform(-1, 1, (2, 5, 8, 8, 3)).astype(np.float32)
  unit = [(x.astype(np.float64) + 1) / 2 for x in (a, b)]
  for i, (x, y) in enumerate(zip(*unit)):
    assert psnr(a, b)[i] == pytest.approx(10 * np.log10(1 / np.mean((x - y) ** 2)), rel=1e-12)
    assert mae(a, b)[i] == pytest.approx(np.mean(np.abs(x - y)), rel=1e-12)
  assert psnr(a, b).shape == mae(a, b).shape == (5,)


def test_colours_count_together():
  """A fault in one of three channels is a third of the squared error: not a mean of the channels' decibels."""
  a = np.zeros((1, 4, 4, 3), np.uint8)
  b = a.copy()
  b[..., 1] = 255
  np.testing.assert_allclose(psnr(a, b), 10 * np.log10(3), rtol=1e-12)


def test_equal_images():
  a = np.random.default_rng(2).uniform(-1, 1, (2, 4, 4, 3))
  b = a.copy()
  b[1, 0, 0, 0] += 1e-9
  got = psnr(a, b)
  assert got[0] == np.inf and 180 < got[1] < np.inf
  assert mae(a, b)[0] == 0


@pytest.mark.parametrize("function", [psnr, mae])
@pytest.mark.parametrize(
  "a, b, message",
  [
    (np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 1)), "of one shape"),
    (np.zeros((4, 4, 3)), np.zeros((4, 4, 3)), r"\[B, H, W, C\]"),
    (np.zeros((0, 4, 4, 3)), np.zeros((0, 4, 4, 3)), r"\[B, H, W, C\]"),
    (np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 3), np.uint8), "both"),
    (np.zeros((2, 4, 4, 3), np.int32), np.zeros((2, 4, 4, 3), np.int32), "both"),
    (np.zeros((2, 4, 4, 3)), np.full((2, 4, 4, 3), np.nan), "b must be finite, got 2 of 2 images"),
  ],
)
def test_bad_input(function, a, b, message):
  with pytest.raises(ValueError, match=message):
    function(a, b)
