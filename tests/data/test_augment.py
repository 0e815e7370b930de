"""Augmentation: the published pipeline's outputs, analytic transforms, the law of the labels."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data import augment

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "augment.npz"
KEYS = jax.random.split(jax.random.key(0), 40_000)

draw, warp = jax.jit(augment.draw), jax.jit(augment.warp)


def label(**values):
  """Labels [1, 9], zero but for those named."""
  names = ("x_flip", "y_flip", "w_s", "cos", "sin", "a", "b", "w_x", "w_y")
  assert set(values) <= set(names)
  return np.float32([[values.get(name, 0) for name in names]])


def noise(*shape):
  return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def relative_error(got, wanted):
  """Of each image, [B]."""
  return np.sqrt(((got - wanted) ** 2).sum((1, 2, 3)) / (wanted**2).sum((1, 2, 3)))


def test_published_pipeline():
  golden = np.load(GOLDEN)
  labels = golden["labels"].copy()
  # Drawn there with cos r < 0, which the labels do not tell: the same transform is the same w along the other axis.
  for i in (4, 6, 13, 14, 15, 20):
    a, b = labels[i, 5:7]
    labels[i, 5:7] = np.sign(a) * np.sign(b) * np.array([b, -a])
  images, wanted = (golden[name].transpose(0, 2, 3, 1) for name in ("images", "augmented"))
  assert relative_error(warp(images, labels), wanted).max() < 1e-5


def test_flips_are_exact():
  images = np.tile(noise(1, 9, 8, 3), (3, 1, 1, 1))
  labels = np.concatenate([label(x_flip=1), label(y_flip=1), label(x_flip=1, y_flip=1)])
  wanted = np.stack([images[0, :, ::-1], images[0, ::-1], images[0, ::-1, ::-1]])
  np.testing.assert_array_equal(warp(images, labels), wanted)


def test_only_what_the_labels_move_is_resampled():
  images = noise(40, 8, 8, 3)
  for moving in (0, 1, 33, 40):
    labels = np.zeros((40, 9), np.float32)
    rows = np.random.default_rng(moving).permutation(40)[:moving]
    labels[rows, 2:] = noise(40, 7)[rows]
    out = np.asarray(warp(images, labels))
    still = np.setdiff1d(np.arange(40), rows)
    np.testing.assert_array_equal(out[still], images[still])
    assert all(np.abs(out[i] - images[i]).max() > 0.1 for i in rows)
    order = np.roll(np.arange(40), 7)  # an image's place and neighbours in the batch do not matter
    np.testing.assert_allclose(warp(images[order], labels[order]), out[order], atol=1e-5)


def test_whole_pixel_shifts_show_the_reflection():
  images = noise(1, 12, 16, 3)
  padded = np.pad(images, ((0, 0), (11, 11), (15, 15), (0, 0)), mode="reflect")
  for right, down in ((3, 0), (0, -4), (-5, 2)):
    out = warp(images, label(w_x=right / (0.125 * 16), w_y=down / (0.125 * 12)))
    np.testing.assert_allclose(out, padded[:, 11 - down : 23 - down, 15 - right : 31 - right], atol=1e-5)
  np.testing.assert_array_equal(warp(images, label(w_x=25)), 0)  # beyond the reflection


def test_quarter_turn():
  i, j = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
  images = np.stack([np.cos(0.3 * i + 0.1 * j), np.sin(0.2 * i - 0.25 * j)], -1)[None]
  out = warp(images, label(cos=-1, sin=1))
  assert relative_error(out, np.rot90(images, axes=(1, 2))).max() < 0.03


def turn(angle):
  """Counterclockwise turn of points (x right, y down)."""
  return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def stretch(w, r=0.0):
  """Stretch by 2^(.2w) along the axis at the angle r, counterclockwise from x; by 2^(−.2w) across it."""
  return turn(r) @ np.diag([2 ** (0.2 * w), 2 ** (-0.2 * w)]) @ turn(-r)


MOVES = [  # labels, and where they move the pixels
  (label(w_s=1.5), 2**0.3 * np.eye(2)),
  (label(w_s=-2), 2**-0.4 * np.eye(2)),
  (label(cos=np.cos(0.7) - 1, sin=np.sin(0.7)), turn(0.7)),
  (label(a=1.2), stretch(1.2)),
  (label(a=-1.2), stretch(-1.2)),
  (label(a=1.5 * np.cos(0.6), b=1.5 * np.sin(0.6)), stretch(1.5, 0.6)),
  (label(a=-1.5 * np.cos(0.6), b=-1.5 * np.sin(0.6)), stretch(-1.5, 0.6)),
  (label(b=0.8), stretch(0.8, np.pi / 2)),
  (label(w_s=1, cos=np.cos(-2) - 1, sin=np.sin(-2), a=0.5), stretch(0.5) @ turn(-2) * 2**0.2),
]


@pytest.mark.parametrize("height, width, channels", [(32, 32, 3), (8, 8, 1), (64, 64, 1), (24, 32, 2)])
def test_a_cosine_moves_as_the_labels_say(height, width, channels):
  center = np.array([width - 1, height - 1]) / 2
  pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1) - center

  def image(points):  # continues through its reflections
    x, y = np.moveaxis(points + center, -1, 0)
    values = np.cos(np.pi * x / (width - 1)) + 0.5 * np.cos(np.pi * y / (height - 1))
    return values[..., None] * np.arange(1, channels + 1)

  still = np.stack([image(pixels)] * len(MOVES))
  moved = np.stack([image(pixels @ np.linalg.inv(forward).T) for _, forward in MOVES])
  out = np.asarray(warp(still, np.concatenate([labels for labels, _ in MOVES])))
  assert np.all(relative_error(out, moved) < (0.03 if height > 8 else 0.1) * relative_error(still, moved))


def test_products_are_not_shortened():
  text = warp.lower(jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 9))).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert products and all("HIGHEST, HIGHEST" in line for line in products)


def test_draw_rates():
  labels = np.asarray(draw(KEYS, 0.12)).astype(float)
  assert set(np.unique(labels[:, :2])) == {0, 1}
  assert abs(labels[:, 0].mean() - 0.5) < 0.01
  assert abs(labels[:, 1].mean() - 0.06) < 0.005
  groups = [labels[:, 2:3], labels[:, 3:5], labels[:, 5:7], labels[:, 7:9]]
  applied = np.stack([labels[:, 1] == 1, *(np.any(group != 0, 1) for group in groups)], 1)
  np.testing.assert_allclose(applied.mean(0), [0.06, 0.12, 0.12, 0.12, 0.12], atol=0.006)
  assert np.all(groups[3][applied[:, 4]] != 0)  # both shifts share one activation
  together = np.corrcoef(np.column_stack([labels[:, 0], applied]).T) - np.eye(6)
  assert np.abs(together).max() < 0.025
  shifted = np.column_stack([applied[:, :4], labels[:, 7:]])[applied[:, 4]]
  assert np.abs(np.corrcoef(shifted.T)[:4, 4:]).max() < 0.07  # what is applied says nothing about the sizes


def test_draw_laws():
  labels = np.asarray(draw(KEYS, 1.0)).astype(float)
  x_flip, y_flip, w_s, cos_less_1, sin, a, b, w_x, w_y = labels.T
  assert abs(x_flip.mean() - 0.5) < 0.01 and abs(y_flip.mean() - 0.5) < 0.01

  def check_law(samples, cdf):  # Kolmogorov–Smirnov, p = .001
    samples = np.sort(samples)
    assert np.abs(cdf(samples) - (np.arange(len(samples)) + 0.5) / len(samples)).max() < 1.95 / np.sqrt(len(samples))

  normal = lambda x: np.asarray(jax.scipy.special.ndtr(x))
  w_a = np.where(a < 0, -1, 1) * np.hypot(a, b)
  for w in (w_s, w_a, w_a[b == 0], w_x, w_y):
    check_law(w, normal)
  np.testing.assert_allclose((1 + cos_less_1) ** 2 + sin**2, 1, atol=1e-6)
  theta = np.arctan2(sin, 1 + cos_less_1)
  check_law(theta, lambda x: (x + np.pi) / (2 * np.pi))
  assert abs((b == 0).mean() - 0.5) < 0.01
  turned = b != 0
  check_law(np.arctan2(b, a)[turned], lambda x: (x + np.pi) / (2 * np.pi))
  independent = [x_flip, y_flip, w_s, theta, w_a, turned, w_x, w_y]
  assert np.abs(np.corrcoef(independent) - np.eye(8)).max() < 0.025


def test_no_probability_leaves_the_x_flip():
  labels = np.asarray(draw(KEYS, 0.0))
  assert not labels[:, 1:].any() and 0.49 < labels[:, 0].mean() < 0.51


def test_labels_depend_on_the_image_key_alone():
  np.testing.assert_array_equal(draw(KEYS[5:12][::-1], 0.12), draw(KEYS, 0.12)[5:12][::-1])
  assert len(np.unique(draw(KEYS, 1.0)[:, 2])) > 0.99 * len(KEYS)


def test_under_pmap_and_vmap():
  step = lambda keys, images: augment.warp(images, augment.draw(keys, 0.5))
  keys, images = KEYS[:16], noise(16, 8, 8, 1)
  whole = jax.jit(step)(keys, images)
  split = keys.reshape(8, 2), images.reshape(8, 2, 8, 8, 1)
  for mapped in (jax.pmap(step), jax.jit(jax.vmap(step))):
    np.testing.assert_allclose(mapped(*split).reshape(whole.shape), whole, atol=1e-5)


@pytest.mark.parametrize("call, message", [
  (lambda: augment.draw(jax.random.key(0), 0.1), r"keys must be typed PRNG keys \[B\], got key<fry> of shape \[\]"),
  (lambda: augment.draw(jnp.zeros((3, 2), jnp.uint32), 0.1), r"keys must .* got uint32 of shape \[3, 2\]"),
  (lambda: augment.draw(KEYS[:2], jnp.zeros(2)), "probability must be a number"),
  (lambda: augment.draw(KEYS[:2], 12), r"probability must be a number in \[0, 1\], got 12"),
  (lambda: augment.warp(jnp.zeros((8, 8, 3)), jnp.zeros((8, 9))), r"images must be \[B, H, W, C\], got .* \[8, 8, 3\]"),
  (lambda: augment.warp(jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 8))), r"labels must be \[2, 9\] .* got shape \[2, 8\]"),
  (lambda: augment.warp(jnp.zeros((2, 8, 8, 3)), jnp.zeros((1, 9))), r"labels must be \[2, 9\] .* got shape \[1, 9\]"),
])  # fmt: skip
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
