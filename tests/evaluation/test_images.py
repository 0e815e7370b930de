"""Bytes, grids and PNG files, read back pixel by pixel."""

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from diffusion_jax.evaluation import images


def test_to_uint8():
  values = np.array([-5.0, -1.0, -0.9999, 0.0, 0.996, 0.9961, 1.0, 5.0])  # 127.5x + 128, downwards
  assert images.to_uint8(values).tolist() == [0, 0, 0, 128, 254, 255, 255, 255]
  assert images.to_uint8(jnp.zeros((1, 2, 2, 3))).dtype == np.uint8


def test_bytes_survive_the_round_trip():
  every = np.arange(256)
  np.testing.assert_array_equal(images.to_uint8((every / 127.5 - 1).astype(np.float32)), every)


def test_grid_by_hand():
  tiles = np.array([10, 20, 30], np.uint8).reshape(3, 1, 1, 1)
  assert images.grid(tiles)[..., 0].tolist() == [[10, 255, 20], [255, 255, 255], [30, 255, 255]]
  assert images.grid(tiles, columns=3)[..., 0].tolist() == [[10, 255, 20, 255, 30]]
  rows = images.grid(tiles[:2], columns=1, scale=2)[..., 0]
  assert rows.tolist() == [[10, 10], [10, 10], [255, 255], [20, 20], [20, 20]]


def test_grid_places_every_tile():
  x = np.random.default_rng(0).uniform(-1, 1, (7, 4, 5, 3)).astype(np.float32)
  picture = images.grid(x, columns=3, scale=2)
  assert picture.shape == (3 * 9 - 1, 3 * 11 - 1, 3) and picture.dtype == np.uint8
  for i, image in enumerate(x):
    top, left = 9 * (i // 3), 11 * (i % 3)
    np.testing.assert_array_equal(picture[top : top + 8 : 2, left : left + 10 : 2], images.to_uint8(image))
    np.testing.assert_array_equal(picture[top + 1 : top + 8 : 2, left + 1 : left + 10 : 2], images.to_uint8(image))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_reads_back(tmp_path, channels):
  x = np.random.default_rng(1).uniform(-1, 1, (4, 8, 8, channels)).astype(np.float32)
  path = epath.Path(tmp_path) / "new" / "folder" / "samples.png"
  images.save_png(path, x, columns=2, scale=3)
  with Image.open(path) as file:
    got = np.asarray(file).reshape(2 * 25 - 1, 2 * 25 - 1, channels)
  np.testing.assert_array_equal(got, images.grid(x, 2, 3))


def test_png_is_replaced_only_when_asked(tmp_path):
  path = str(tmp_path / "samples.png")
  images.save_png(path, np.zeros((1, 2, 2, 1)))
  with pytest.raises(FileExistsError, match="overwrite=True"):
    images.save_png(path, np.ones((1, 2, 2, 1)))
  with Image.open(path) as file:
    assert np.asarray(file).max() == 128
  images.save_png(path, np.ones((1, 2, 2, 1)), overwrite=True)
  with Image.open(path) as file:
    assert np.asarray(file).min() == 255


@pytest.mark.parametrize(
  "x, options, message",
  [
    (np.zeros((8, 8, 1)), {}, r"\[N, H, W, C\]"),
    (np.zeros((0, 8, 8, 1)), {}, r"\[N, H, W, C\]"),
    (np.zeros((1, 8, 8, 1), np.int32), {}, "floating-point"),
    (np.full((1, 8, 8, 1), np.nan), {}, "finite"),
    (np.zeros((1, 8, 8, 1)), {"scale": 0}, "scale"),
    (np.zeros((1, 8, 8, 1)), {"columns": 0}, "columns"),
    (np.zeros((1, 8, 8, 2)), {}, "1 or 3 channels"),
  ],
)
def test_bad_images_write_nothing(tmp_path, x, options, message):
  with pytest.raises(ValueError, match=message):
    images.save_png(tmp_path / "bad.png", x, **options)
  assert not list(tmp_path.iterdir())
