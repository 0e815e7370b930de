"""Networks with a condition: encoders by hand, which feature goes where, what is unchanged at first, what learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets.test_context import jit
from PIL import Image

from diffusion_jax.nets import autoencoder, conditional, layers, swin, unet

SHAPE = (16, 16, 3)


@pytest.fixture(autouse=True)
def tiny_swin(monkeypatch):
  monkeypatch.setitem(swin.VARIANTS, "t", (8, (1, 1, 1, 1), 1))


def network(encoder, shape=SHAPE, **fields):
  sizes = dict(encoder.sizes(shape[0]))
  levels = [16, 8][: len(sizes)]
  context = tuple((size, sizes[size]) for size in levels)
  mult = (1, 2)[: len(levels)]
  fields = dict(resolution=16, channels=8, channel_mult=mult, num_blocks=1, attention_resolutions=(), **fields)
  return conditional.Conditional(unet.ddpmpp(context=context, **fields), encoder, shape)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def shapes_of(model):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, *SHAPE), (1,), (1, *model.shape))]
  init = lambda x, c_noise, condition: model.init(jax.random.key(0), x, c_noise, context=condition)
  return jax.eval_shape(init, *args)["params"]


JOINS = ("proj0", "proj1")


def without_joins(path, leaf):
  return 0 * leaf if any(key.key in JOINS for key in path) else leaf


def drawn(shapes, scale=0.5, seed=1):
  """Parameters of ordinary size."""
  rng = np.random.default_rng(seed)
  draw = lambda s: jnp.asarray(scale * rng.standard_normal(s.shape) / max(1, np.prod(s.shape[:-1])) ** 0.5, jnp.float32)
  return jax.tree.map(draw, shapes)


def named(params, name):
  """The leaves with this name anywhere in their path."""
  found = jax.tree_util.tree_leaves_with_path(params)
  return [leaf for path, leaf in found if any(getattr(key, "key", "") == name for key in path)]


def test_the_unet_sees_what_the_encoder_says():
  """Both by themselves; the features are as good as the condition, which is of no effect where joins are zero."""
  model = network(conditional.ConvEncoder((8,)))
  params = drawn(shapes_of(model))
  assert "encoder" in params and len(named(params, "proj0")) == 2
  x, c_noise, condition = normal(2, *SHAPE), normal(2, seed=2), normal(2, *SHAPE, seed=3)

  @jit
  def found(params, condition):
    variables = {"params": params}
    features = model.encoder.apply({"params": params["encoder"]}, condition)
    alone = model.unet.apply({"params": params}, x, c_noise, context=features)["out"]
    encoded = model.apply(variables, condition, method="encode")
    return alone, model.apply(variables, x, c_noise, context=condition)["out"], features, encoded

  alone, out, features, encoded = found(params, condition)
  np.testing.assert_allclose(out, alone, atol=1e-6)
  np.testing.assert_allclose(features[0], encoded[0], atol=1e-6)
  assert len(encoded) == 1 and np.linalg.norm(out - found(params, -condition)[1]) > 1e-3 * np.linalg.norm(out)
  params = jax.tree_util.tree_map_with_path(without_joins, params)
  np.testing.assert_array_equal(found(params, condition)[1], found(params, -condition)[1])


def test_a_fresh_network_joins_nothing_and_learns_to():
  """Projections start at zero: they have a gradient at once, the encoder as soon as they have moved."""
  model = network(conditional.ConvEncoder((8,)), cross_attention=(16,))
  x, c_noise, condition = normal(1, *SHAPE), normal(1, seed=2), normal(1, *SHAPE, seed=3)
  fresh = jit(lambda: model.init(jax.random.key(0), x, c_noise, context=condition)["params"])()
  assert all(not np.any(leaf) for name in JOINS for leaf in named(fresh, name))
  assert all(np.any(leaf) for leaf in named(fresh["encoder"], "kernel"))
  loss = lambda params: jnp.square(model.apply({"params": params}, x, c_noise, context=condition)["out"]).sum()
  gradient, moved = jit(jax.grad(loss)), drawn(fresh)
  at_first, later = gradient(jax.tree_util.tree_map_with_path(without_joins, moved)), gradient(moved)
  assert all(np.any(leaf) for name in JOINS for leaf in named(at_first, name))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(at_first["encoder"]))
  assert all(np.any(leaf) for leaf in jax.tree.leaves(later["encoder"]))


def test_the_conv_encoder_by_its_parts():
  """Of a condition four times as large as the image: the last levels are those of the U-Net."""
  encoder = conditional.ConvEncoder((8, 8, 8, 16))
  condition = normal(1, 64, 64, 3)
  params = drawn(jax.eval_shape(encoder.init, jax.random.key(0), condition)["params"])

  @jit
  def found(params):
    part = lambda layer, name, h: layer.apply({"params": params[name]}, h)
    h, by_hand = part(layers.Conv(8, conditional._INIT), "conv_in", condition), []
    for level, width in enumerate(encoder.widths):
      h = part(autoencoder.Block(width), f"level_{level}", h)
      by_hand.append(h)
      h = part(autoencoder.Halved(width), f"down_{level}", h) if level < 3 else h
    return encoder.apply({"params": params}, condition), by_hand

  features, by_hand = found(params)
  assert encoder.sizes(64) == [(64, 8), (32, 8), (16, 8), (8, 16)]
  for feature, hand, (size, width) in zip(features, by_hand, encoder.sizes(64), strict=True):
    assert feature.shape == (1, size, size, width)
    np.testing.assert_allclose(feature, hand, atol=1e-5)
  model = network(encoder, (64, 64, 3))
  encoded = model.apply({"params": {"encoder": params}}, condition, method="encode")
  assert len(encoded) == 2
  np.testing.assert_allclose(encoded[0], features[2], atol=1e-5)
  np.testing.assert_allclose(encoded[1], features[3], atol=1e-5)


def test_the_swin_encoder_sees_the_enlarged_standardised_condition():
  """Enlarged as PIL does it, pixels of ImageNet's mean 0 and deviation 1; stages go to the levels of their size."""
  encoder = conditional.SwinEncoder("t", upsample=4)
  condition = np.random.default_rng(0).uniform(-1, 1, (1, *SHAPE)).astype(np.float32)
  channels = [Image.fromarray(condition[0, ..., c]).resize((64, 64), Image.Resampling.BILINEAR) for c in range(3)]
  large = (np.stack(channels, -1)[None] + 1) / 2
  seen = (large - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  alone, model = swin.of_variant("t"), network(encoder)
  assert model.unet.context == ((16, 8), (8, 16))
  params = drawn(jax.eval_shape(alone.init, jax.random.key(0), jnp.float32(seen))["params"])

  @jit
  def found(params):
    own = {"params": {"swin": params}}
    encoded = model.apply({"params": {"encoder": own["params"]}}, jnp.asarray(condition), method="encode")
    return encoder.apply(own, condition), alone.apply({"params": params}, jnp.float32(seen)), encoded

  features, stages, encoded = found(params)
  assert encoder.sizes(16) == [(16, 8), (8, 16), (4, 32), (2, 64)]
  for feature, stage, (size, width) in zip(features, stages, encoder.sizes(16), strict=True):
    assert feature.shape == (1, size, size, width)
    np.testing.assert_allclose(feature, stage, atol=1e-4)
  np.testing.assert_allclose(encoded[1], features[1], atol=1e-5)


@pytest.mark.parametrize("resolution, upsample", [(16, 1), (18, 1), (12, 2), (28, 4)])
def test_sizes_of_stages_are_those_of_the_network(resolution, upsample):
  """Where halves are not whole too."""
  encoder = conditional.SwinEncoder("t", upsample)
  image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
  stages, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)
  assert [(s.shape[1], s.shape[3]) for s in stages] == encoder.sizes(resolution)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 16, 16, 1), (2, 16, 8, 3), (16, 16, 3)])
def test_a_condition_of_another_shape_is_refused(shape):
  model = network(conditional.ConvEncoder((8,)))
  variables = {"params": shapes_of(model)}
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, *SHAPE), (2,), shape)]
  with pytest.raises(ValueError, match=r"condition must be \[B, 16, 16, 3\], got shape ") as error:
    jax.eval_shape(lambda v, x, c_noise, c: model.apply(v, x, c_noise, context=c), variables, *args)
  assert "\n" not in str(error.value)
