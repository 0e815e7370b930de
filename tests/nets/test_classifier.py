"""The classifier's network: its count by hand, the names it shares with the U-Net, its pooling, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from diffusion_jax.nets import blocks, classifier, unet

SMALL = dict(resolution=8, channels=16, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,))
jit = lambda f: jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def shapes_of(network, channels=3):
  image = jax.ShapeDtypeStruct((1, network.resolution, network.resolution, channels), jnp.float32)
  params = jax.eval_shape(network.init, jax.random.key(0), image, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]
  return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def adm_count(width, mults, blocks, attending, resolution, classes, channels=3):
  """ADM's classifier, layer by layer as its paper and code list them."""
  conv, linear, norm = lambda a, b: 9 * a * b + b, lambda a, b: a * b + b, lambda a: 2 * a
  embedded, attention = 4 * width, lambda a: norm(a) + linear(a, 3 * a) + linear(a, a)

  def block(a, b):
    skip = linear(a, b) if a != b else 0
    return norm(a) + conv(a, b) + linear(embedded, 2 * b) + norm(b) + conv(b, b) + skip

  total, x, size = linear(width, embedded) + linear(embedded, embedded) + conv(channels, width), width, resolution
  for level, mult in enumerate(mults):
    if level:
      total, size = total + block(x, x), size // 2
    for _ in range(blocks):
      total += block(x, mult * width) + (attention(mult * width) if size in attending else 0)
      x = mult * width
  total += block(x, x) + attention(x) + block(x, x)
  return total + norm(x) + (1 + size**2) * x + linear(x, 3 * x) + linear(x, classes)


def test_adm_count():
  """Of ImageNet-128: width 128, two blocks a level, attention at 32, 16 and 8."""
  fields = dict(resolution=128, channels=128, channel_mult=(1, 1, 2, 3, 4), num_blocks=2)
  network = classifier.over(unet.adm(**fields), 1000)
  count = sum(int(np.prod(shape)) for shape in shapes_of(network).values())
  assert count == adm_count(128, (1, 1, 2, 3, 4), 2, (32, 16, 8), 128, 1000) == 42_568_040


@pytest.mark.parametrize("make", [unet.ddpmpp, unet.ncsnpp, lambda **f: unet.adm(**{**f, "channels": 64})])
def test_what_it_shares_with_a_unet_has_that_ones_names_and_shapes(make):
  """All but the pooling; of the U-Net all of the encoder, the embedding without labels, and the middle."""
  network = make(**SMALL, num_classes=10, augment_dim=9)
  own, other = shapes_of(classifier.over(network, 10)), shapes_of(network)
  shared = {path: shape for path, shape in own.items() if not path.startswith("pool/")}
  assert shared.items() <= other.items()
  wanted = ("enc_", "map_layer", "dec_4x4_in")
  assert shared.keys() == {path for path in other if path.startswith(wanted)}
  channels = 2 * network.channels
  pool = {path.removeprefix("pool/"): shape for path, shape in own.items() if path not in shared}
  assert pool == {
    "norm/scale": (channels,), "norm/bias": (channels,), "positions": (17, channels),
    "qkv/kernel": (channels, 3 * channels), "qkv/bias": (3 * channels,),
    "proj/kernel": (channels, 10), "proj/bias": (10,),
  }  # fmt: skip


@pytest.mark.parametrize("head", [None, 8])
def test_pooling_by_hand(head):
  """Equations (1) and (2) in NumPy: token 0 is the mean, and attends to itself and every pixel."""
  style = blocks.BlockStyle(**{**vars(blocks.ADM), "head_channels": head})
  pool = classifier.AttentionPool(3, style)
  x = jax.random.normal(jax.random.key(0), (2, 2, 2, 16))
  params = pool.init(jax.random.key(1), x)["params"]
  assert 0.8 < np.std(params["positions"]) * 4 < 1.2  # N(0, 1)/√C
  got = pool.apply({"params": params}, x)
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  x = np.asarray(x, np.float64)
  grouped = x.reshape(2, 4, 4, 4)  # groups of four channels
  y = (grouped - grouped.mean((1, 3), keepdims=True)) / np.sqrt(grouped.var((1, 3), keepdims=True) + style.eps)
  y = y.reshape(2, 4, 16)
  y = y / (1 + np.exp(-y))
  z = np.concatenate([y.mean(1, keepdims=True), y], 1) + p["positions"]
  qkv = (z @ p["qkv"]["kernel"] + p["qkv"]["bias"]).reshape(2, 5, 16 // (head or 16), head or 16, 3)
  q, k, v = np.moveaxis(qkv, -1, 0)
  scores = np.exp(np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(head or 16))
  mixed = np.einsum("bhqk,bkhc->bqhc", scores / scores.sum(-1, keepdims=True), v).reshape(2, 5, 16)
  expected = (mixed @ p["proj"]["kernel"] + p["proj"]["bias"])[:, 0]
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_logits_are_float32_and_see_image_noise_level_and_dropout():
  network = classifier.over(unet.ddpmpp(**{**SMALL, "channel_mult": (1,), "attention_resolutions": ()}, dropout=0.5), 4)
  x, c = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.array([3.0, 500.0])
  params = jit(network.init)(jax.random.key(1), x, c)
  # Second convolutions start near zero, and with them what noise level and dropout do.
  params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
  apply = jit(network.apply)
  out = apply(params, x, c)
  assert out.shape == (2, 4) and out.dtype == jnp.float32
  for other in (apply(params, x[:, ::-1], c), apply(params, x, c[::-1])):
    assert np.abs(other - out).max() > 1e-4
  keys = jax.random.split(jax.random.key(2), 2)
  assert np.abs(apply(params, x, c, keys) - out).max() > 1e-4


def test_bad_input_is_named():
  network = classifier.over(unet.ddpmpp(**SMALL), 4)
  shape = lambda x, c, **kw: jax.eval_shape(network.init, jax.random.key(0), x, c, **kw)
  with pytest.raises(ValueError, match=r"x must be \[B, 8, 8, C\], got shape \[2, 8, 3\]"):
    shape(jnp.zeros((2, 8, 3)), jnp.zeros(2))
  with pytest.raises(ValueError, match=r"c_noise must be a scalar or \[2\], got shape \[3\]"):
    shape(jnp.zeros((2, 8, 8, 3)), jnp.zeros(3))
  with pytest.raises(ValueError, match=r"dropout_keys must be \[2\] typed keys, got shape \[\]"):
    shape(jnp.zeros((2, 8, 8, 3)), jnp.zeros(2), dropout_keys=jax.random.key(0))
  with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
    classifier.over(unet.ddpmpp(**SMALL), 0)
  with pytest.raises(ValueError, match="network.channels = 48: "):
    classifier.over(unet.adm(**{**SMALL, "channels": 48}), 4)
