"""Windows over large images: they cover, their weights sum to one, and their borders cannot be seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets import tiles


def noise(*shape):
  return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_windows_cover_with_weights_of_one_in_all():
  for window in (2, 3, 8, 13):
    for overlap in sorted({1, window // 2, window - 1} - {0}):
      for length in (1, window - 1, window, window + 1, 2 * window, 5 * window + 1):
        starts, size = tiles.positions(length, window, overlap), min(window, length)
        assert starts[0] == 0 and starts[-1] == length - size
        assert all(b - a <= window - overlap for a, b in zip(starts, starts[1:]))
        assert len(starts) == 1 or length > window + (len(starts) - 2) * (window - overlap)  # no fewer would do
        weights = tiles.blend(length, window, overlap, 2)
        total = np.zeros(2 * length)
        for start, weight in zip(starts, weights):
          total[2 * start : 2 * (start + size)] += weight
        assert weights.shape == (len(starts), 2 * size) and np.all(weights > 0)
        np.testing.assert_allclose(total, 1, rtol=1e-6)


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("height, width, window, overlap", [(11, 23, 8, 3), (5, 30, 8, 7), (8, 8, 8, 4), (3, 2, 9, 1)])
def test_a_function_of_pixels_is_itself(scale, height, width, window, overlap):
  x = noise(2, height, width, 3)
  f = lambda part: jnp.sin(part[..., :2]).repeat(scale, 1).repeat(scale, 2)
  out = jax.jit(lambda x: tiles.apply(f, x, window, overlap, scale))(x)
  np.testing.assert_allclose(out, f(x), atol=1e-6)


def test_windows_that_disagree_leave_no_step():
  """Each window says its own number: between two pixels the result moves by at most the ramp's slope, 3/2 overlap."""
  x, window, overlap = noise(1, 32, 40, 1), 16, 8
  out = np.asarray(tiles.apply(lambda part: jnp.full_like(part, part.mean()) * 100, x, window, overlap))[0, ..., 0]
  numbers = [100 * x[0, i : i + 16, j : j + 16].mean() for i in (0, 8, 16) for j in (0, 8, 16, 24)]
  spread = float(max(numbers) - min(numbers))
  assert max(np.abs(np.diff(out, axis=axis)).max() for axis in (0, 1)) <= 1.5 / overlap * spread
  assert np.ptp(out) > 0.5 * spread


def test_a_windows_own_border_counts_for_nothing():
  """A function that spoils its border pixels, as padding does, but for those on the image's border."""
  x, overlap = noise(1, 48, 48, 1), 12
  ends = np.array([0, -1])
  spoil = lambda part: part.at[:, ends].add(1).at[:, :, ends].add(1)
  out = tiles.apply(spoil, x, 24, overlap)
  weight = 3 * (0.5 / overlap) ** 2  # of a border pixel, to first order
  assert 0 < np.abs(out - spoil(x)).max() < 2.1 * weight


@pytest.mark.parametrize(
  "args, message",
  [
    (((1, 8, 8), 4, 2), r"x must be \[B, H, W, C\], got shape \[1, 8, 8\]"),
    (((1, 8, 8, 1), 4, 0), "overlap must be in 1..window − 1 = 3, got 0"),
    (((1, 8, 8, 1), 4, 4), "overlap must be in 1..window − 1 = 3, got 4"),
    (((1, 8, 8, 1), 4, 2, 0), "scale must be at least 1, got 0"),
    (((1, 8, 8, 1), 4, 2, 2), r"f must give windows of \[8, 8\] pixels, got shape \[1, 4, 4, 1\]"),
  ],
)
def test_what_cannot_be_tiled(args, message):
  with pytest.raises(ValueError, match=message):
    tiles.apply(lambda part: part, jnp.zeros(args[0]), *args[1:])
