"""Transforms: against what they do to images of which the answer is known, and against PIL called by hand."""

import numpy as np
import pytest
from data.formats import random_images
from PIL import Image

from diffusion_jax import config as config_lib
from diffusion_jax.data.transforms import TooSmall, Transform

LANCZOS, BICUBIC, BOX = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BOX


def coordinates(width, height):
  """An image whose pixel (row, column) is (row, column, 0)."""
  row, column = np.mgrid[:height, :width]
  return Image.fromarray(np.stack([row, column, 0 * row], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("name", config_lib.TRANSFORMS)
@pytest.mark.parametrize("size", [(16, 16), (45, 61), (61, 45), (64, 17)])
def test_a_constant_image_stays_constant(name, size):
  if name == "center-crop-wide" and size[0] > size[1]:
    size = size[::-1]  # of wide images it makes none so high
  got = Transform(name, 16, 16)(Image.new("RGB", size, (10, 100, 250)))
  np.testing.assert_array_equal(got, np.broadcast_to(np.uint8([10, 100, 250]), (16, 16, 3)))


@pytest.mark.parametrize("name", ["resize", "center-crop", "center-crop-dhariwal"])
def test_an_image_of_the_size_stays_as_it_is(name):
  (image,) = random_images(1, 16, 16, 3)
  np.testing.assert_array_equal(Transform(name, 16, 16)(Image.fromarray(image)), image)


@pytest.mark.parametrize("name", ["center-crop", "center-crop-dhariwal"])
@pytest.mark.parametrize("size, corner", [((21, 16), (0, 2)), ((16, 31), (7, 0)), ((17, 16), (0, 0))])
def test_the_crop_is_central(name, size, corner):
  """The short side is the wanted one already, so nothing is resampled; the odd pixel is below or on the right."""
  got = Transform(name, 16, 16)(coordinates(*size)).astype(int)
  np.testing.assert_array_equal(got[..., :2], np.stack(np.mgrid[:16, :16], axis=-1) + corner)


def test_resize_and_center_crop_are_lanczos():
  image = Image.fromarray(random_images(1, 41, 30, 3)[0])
  np.testing.assert_array_equal(Transform("resize", 16, 8)(image), np.asarray(image.resize((16, 8), LANCZOS)))
  square = np.asarray(image)[5:35]  # (41 - 30)//2 = 5
  expected = np.asarray(Image.fromarray(square).resize((16, 16), LANCZOS))
  np.testing.assert_array_equal(Transform("center-crop", 16, 16)(image), expected)


def test_dhariwal_halves_by_box_and_then_scales_by_bicubic():
  image = Image.fromarray(random_images(1, 75, 101, 3)[0])
  got = Transform("center-crop-dhariwal", 16, 16)(image)
  half = image.resize((50, 37), BOX).resize((25, 18), BOX)  # 18 < 2·16
  scaled = np.asarray(half.resize((round(25 * 16 / 18), 16), BICUBIC))  # 22 wide
  np.testing.assert_array_equal(got, scaled[:, 3:19])
  pixels = 4 * (np.arange(32 * 32 * 3).reshape(32, 32, 3) % 60).astype(np.uint8)
  blocks = pixels.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))  # an exact half is the mean of 2×2
  half = Transform("center-crop-dhariwal", 16, 16)(Image.fromarray(pixels))
  np.testing.assert_allclose(half, blocks, atol=0.5)


def test_wide_images_get_black_bars():
  image = Image.fromarray(random_images(1, 40, 32, 3)[0])
  got = Transform("center-crop-wide", 16, 8)(image)
  assert got.shape == Transform("center-crop-wide", 16, 8).shape == (16, 16, 3)
  assert not got[:4].any() and not got[12:].any()
  rows = image.crop((0, 10, 32, 30))  # 16·40/32 = 20 rows, central
  np.testing.assert_array_equal(got[4:12], np.asarray(rows.resize((16, 8), LANCZOS)))
  for size in ((15, 15), (32, 14)):
    with pytest.raises(TooSmall, match=f"{size[0]}×{size[1]} pixels, too small"):
      Transform("center-crop-wide", 16, 8)(Image.new("RGB", size))


def test_channels_are_converted_to_the_wanted_ones():
  colour, grey = Transform("resize", 2, 2), Transform("resize", 2, 2, channels=1)
  rgb = (200, 100, 50)
  palette = Image.new("P", (2, 2), 1)
  palette.putpalette([0, 0, 0, *rgb])
  clear = Image.new("P", (2, 2), 1)
  clear.putpalette([0, 0, 0, *rgb])
  clear.info["transparency"] = b"\xff\x00"
  alpha = Image.new("RGBA", (2, 2), (*rgb, 0))
  luma = round((299 * 200 + 587 * 100 + 114 * 50) / 1000)
  for image in (Image.new("RGB", (2, 2), rgb), palette, clear, alpha):
    assert (colour(image) == rgb).all(), image.mode
    assert grey(image).shape == (2, 2, 1) and (abs(grey(image).astype(int) - luma) <= 1).all()
  for mode, value in (("L", 7), ("LA", (7, 0))):
    image = Image.new(mode, (2, 2), value)
    assert (colour(image) == 7).all() and (grey(image) == 7).all()
  assert (colour(Image.new("1", (2, 2), 1)) == 255).all()
  with pytest.raises(ValueError, match="its mode is I;16"):
    grey(Image.new("I;16", (2, 2), 300))


@pytest.mark.parametrize(
  "args, message",
  [
    (("crop", 8, 8), "transforms are resize"),
    (("resize", 8, 8, 4), "1 or 3 channels, got 4"),
    (("center-crop-dhariwal", 8, 4), "square images, got 8×4"),
    (("center-crop-wide", 4, 8), "as wide as high, got 4×8"),
  ],
)
def test_mistakes(args, message):
  with pytest.raises(ValueError, match=message):
    Transform(*args)
