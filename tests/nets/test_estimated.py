"""Attention to tokens and to an earlier estimate: NumPy's equations, who attends, what places tell, what learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from nets.test_context import attended, group_norm, jit
from nets.test_unet import relative_error

from diffusion_jax.nets import blocks, estimated, layers, unet

STYLE = dataclasses.replace(blocks.ADM, head_channels=8)
TOKENS = dict(tokens=6, token_attention=(4,), token_bottleneck=True)
ATTENDING = {"enc_4x4_block0_tokens", "dec_4x4_in0_tokens", "dec_4x4_block0_tokens", "dec_4x4_block1_tokens"}

# Compilation is nearly all of these tests' time: hence one level, shared functions, and no optimisation.
small = functools.partial(
  unet.ddpmpp, resolution=4, channels=8, channel_mult=(1,), num_blocks=1, attention_resolutions=(), block=STYLE
)
NETWORK, WITHOUT = small(**TOKENS), small()


@jit
def alone(params, x, c_noise, tokens, places=None):
  return NETWORK.apply({"params": params}, x, c_noise, tokens=tokens, token_positions=places)["out"]


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shapes_of(network, *args, **kwargs):
  return jax.eval_shape(functools.partial(network.init, **kwargs), jax.random.key(0), *args)["params"]


def drawn(shapes, seed=1):
  """Parameters of ordinary size."""
  rng = np.random.default_rng(seed)
  draw = lambda s: (0.7 * rng.standard_normal(s.shape) / max(1, np.prod(s.shape[:-1])) ** 0.5).astype(np.float32)
  return jax.tree.map(draw, shapes)


def sizes(tree):
  return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def codes(places, channels):
  """Of one place a row, in float64."""
  angles = np.pi * np.outer(places.reshape(-1), np.arange(1, channels // 4 + 1)).reshape(len(places), -1)
  return np.concatenate([np.cos(angles), np.sin(angles), np.zeros((len(places), channels % 4))], 1)


@pytest.mark.parametrize("style, placed", [(blocks.SONG, True), (dataclasses.replace(blocks.ADM, eps=1e-6), False)])
def test_attention_to_tokens_is_its_equation(style, placed):
  """For one image and two heads, in float64."""
  rng = np.random.default_rng(0)
  x, tokens, places = rng.standard_normal((1, 4, 3, 16)), rng.standard_normal((1, 5, 6)), rng.uniform(size=(5, 2))
  args = [jnp.float32(x), jnp.float32(tokens), jnp.float32(places) if placed else None]
  layer = blocks.CrossAttention(style, num_heads=2)
  p = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes_of(layer, *args))
  out = layer.apply({"params": jax.tree.map(jnp.float32, p)}, *args)

  linear = lambda name, value: value @ p[name]["kernel"] + p[name]["bias"]
  queries, keys = group_norm(x[0], p["norm"]).reshape(12, 16), tokens[0]
  if placed:
    centers = np.array([[(i + 0.5) / 4, (j + 0.5) / 3] for i in range(4) for j in range(3)])
    queries, keys = queries + codes(centers, 16), keys + codes(places, 6)
  y = attended(linear("q", queries).reshape(12, 2, 8), linear("kv", keys).reshape(5, 2, 8, 2))
  scale = np.sqrt(0.5) if style is blocks.SONG else 1.0
  y = (x[0] + linear("proj", y.reshape(4, 3, 16))) * scale
  np.testing.assert_allclose(out[0], y, rtol=1e-4, atol=1e-4 * np.abs(y).max())


def test_with_positions_a_pixel_can_fetch_the_token_at_its_place():
  """Queries and keys are the codes alone; the last two channels, which have none, are what is fetched."""
  image = normal(1, 4, 4, 2)
  tokens = np.concatenate([np.zeros((1, 16, 8), np.float32), image.reshape(1, 16, 2)], -1)
  kernel = np.zeros((10, 10, 2))
  kernel[:8, :8, 0], kernel[8:, 8:, 1] = 100 * np.eye(8), np.eye(2)
  maps = {"q": np.eye(10), "kv": kernel.reshape(10, 20), "proj": np.eye(10)}
  params = {name: {"kernel": jnp.float32(w), "bias": jnp.zeros(w.shape[1])} for name, w in maps.items()}
  params["norm"] = {"scale": jnp.ones(10), "bias": jnp.zeros(10)}
  layer = blocks.CrossAttention(blocks.ADM, num_heads=1)
  fetch = lambda places: layer.apply({"params": params}, jnp.zeros((1, 4, 4, 10)), tokens, places)[..., 8:]
  np.testing.assert_allclose(fetch(layers.pixel_centers(4, 4)), image, atol=1e-3)
  everywhere = np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape)
  np.testing.assert_allclose(fetch(None), everywhere, atol=1e-5)


@pytest.mark.parametrize(
  "fields, attending",
  [
    (dict(token_bottleneck=True), {"dec_4x4_in0_tokens"}),
    (dict(token_attention=(4,), token_bottleneck=True), ATTENDING),
    (
      dict(token_attention=(8,), num_blocks=2, heads=(("a", 1), ("b", 2)), decoders=2),
      {f"enc_8x8_block{i}_tokens" for i in range(2)} | {f"dec_{h}_8x8_block{i}_tokens" for h in "ab" for i in range(3)},
    ),
  ],
)
def test_who_attends(fields, attending):
  network = small(resolution=8, channel_mult=(1, 2), tokens=6, **fields)
  without = dataclasses.replace(network, tokens=0, token_attention=(), token_bottleneck=False, parent=None)
  shapes = shapes_of(network, normal(1, 8, 8, 3), normal(1), tokens=normal(1, 5, 6))
  plain = sizes(shapes_of(without, normal(1, 8, 8, 3), normal(1)))
  assert set(shapes) - {name.split("/")[0] for name in plain} == attending
  assert sizes({name: shapes[name] for name in set(shapes) - attending}) == plain
  for name in attending:
    c = 8 if "8x8" in name else 16
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes[name])) == 2 * c + (c * c + c) * 2 + 2 * c * 6 + 2 * c


def test_attention_that_is_born_zero_leaves_the_network_as_it_was():
  fresh = blocks.CrossAttention(STYLE).init(jax.random.key(0), normal(1, 4, 4, 8), normal(1, 5, 6))["params"]
  assert [name for name, leaves in fresh.items() if not np.any(leaves.get("kernel", 1))] == ["proj"]
  x, c_noise, tokens = normal(2, 4, 4, 3), normal(2), normal(2, 16, 6)
  params = drawn(shapes_of(NETWORK, x, c_noise, tokens=tokens))
  seen = alone(params, x, c_noise, tokens)
  for name in ATTENDING:
    params[name]["proj"] = fresh["proj"]
  own = {name: leaves for name, leaves in params.items() if name not in ATTENDING}
  ref = jit(lambda p: WITHOUT.apply({"params": p}, x, c_noise)["out"])(own)
  assert relative_error(alone(params, x, c_noise, tokens), ref) < 1e-5
  assert relative_error(seen, ref) > 0.01


def test_without_positions_tokens_are_a_set():
  """With positions the order of the pairs does not matter, and which token stands where does."""
  x, c_noise, tokens, order = normal(2, 4, 4, 3), normal(2), normal(2, 16, 6), np.random.default_rng(0).permutation(16)
  params, places = drawn(shapes_of(NETWORK, x, c_noise, tokens=tokens)), layers.pixel_centers(4, 4)
  found = lambda tokens, places=None: alone(params, x, c_noise, tokens, places)
  assert relative_error(found(tokens[:, order]), found(tokens)) < 1e-5
  assert relative_error(found(tokens[:, order], places[order]), found(tokens, places)) < 1e-5
  assert relative_error(found(tokens[:, order], places), found(tokens, places)) > 1e-3
  assert relative_error(found(tokens, places), found(tokens)) > 1e-3
  assert relative_error(found(tokens[::-1]), found(tokens)) > 1e-3  # another image's


@pytest.mark.parametrize("positions", [False, True])
def test_tokens_are_the_pixels_of_the_estimate(positions):
  """Against the U-Net by itself, given tokens pixel by pixel; in bfloat16, nearly."""
  x, c_noise, estimate = normal(2, 4, 4, 3), normal(2), normal(2, 4, 4, 3, seed=1)
  network = small(dtype="bfloat16", **TOKENS) if positions else NETWORK
  model = estimated.Estimated(network, "attention", positions)
  params = drawn(shapes := shapes_of(model, x, c_noise, context=estimate))
  assert sizes(params["estimate"]) == {"kernel": (3, 6), "bias": (6,)}
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
  own = {name: leaves for name, leaves in params.items() if name != "estimate"}
  assert sizes(own) == sizes(shapes_of(NETWORK, x, c_noise, tokens=normal(2, 16, 6)))

  tokens, places = np.empty((2, 16, 6), np.float32), np.empty((16, 2), np.float32)
  for i, j in np.ndindex(4, 4):
    tokens[:, 4 * i + j] = estimate[:, i, j] @ params["estimate"]["kernel"] + params["estimate"]["bias"]
    places[4 * i + j] = (i + 0.5) / 4, (j + 0.5) / 4
  ref = alone(own, x, c_noise, tokens, places if positions else None)
  out = jit(lambda p: model.apply({"params": p}, x, c_noise, context=estimate)["out"])(params)
  assert out.dtype == jnp.float32
  error = relative_error(out, ref)
  assert 1e-5 < error < 0.05 if positions else error < 1e-5


def gradients(remat=False):
  """Of a loss by the parameters and by the estimate, with dropout."""
  x, c_noise, estimate = normal(2, 4, 4, 3), normal(2), normal(2, 4, 4, 3, seed=1)
  model = estimated.Estimated(small(remat=remat, dropout=0.1, **TOKENS))
  params = drawn(shapes_of(model, x, c_noise, context=estimate))
  apply = functools.partial(model.apply, x=x, c_noise=c_noise, dropout_keys=jax.random.split(jax.random.key(1), 2))
  loss = lambda p, context: jnp.square(apply({"params": p}, context=context)["out"]).sum()
  return jit(jax.grad(loss, (0, 1)))(params, estimate)


@pytest.mark.slow
def test_blocks_that_are_computed_again_have_the_same_gradients():
  for a, b in zip(jax.tree.leaves(gradients()), jax.tree.leaves(gradients(remat=True)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())


def test_gradients_reach_the_estimate_and_who_attends():
  gradient, of_estimate = gradients()
  assert np.abs(of_estimate).min() > 0
  assert all(np.all(leaf) for leaf in jax.tree.leaves(gradient["estimate"]))
  for name in ATTENDING:
    assert all(np.any(gradient[name][layer]["kernel"]) for layer in ("q", "kv", "proj")), name


def test_an_estimate_beside_the_image():
  model = estimated.Estimated(WITHOUT, "concat")
  x, c_noise, estimate = normal(2, 4, 4, 3), normal(2), normal(2, 4, 4, 3, seed=1)
  both = np.concatenate([x, estimate], -1)
  params = drawn(shapes_of(model, x, c_noise, context=estimate))
  assert sizes(params) == sizes(shapes_of(WITHOUT, both, c_noise))
  out = jit(lambda p: model.apply({"params": p}, x, c_noise, context=estimate))(params)
  ref = jit(lambda p: WITHOUT.apply({"params": p}, both, c_noise))(params)
  np.testing.assert_allclose(out["out"], ref["out"], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_built():
  for args, message in (
    ((WITHOUT, "atention"), "conditioning = 'atention': expected one of attention, concat"),
    ((WITHOUT,), "network.tokens = 0: expected a positive width for attention"),
    ((NETWORK, "concat"), "network.tokens = 6: expected 0 for concat"),
  ):
    with pytest.raises(ValueError) as error:
      estimated.Estimated(*args)
    assert str(error.value) == message


def test_wrong_shapes_are_named():
  x, c_noise = normal(2, 4, 4, 3), normal(2)
  tokens, places = normal(2, 5, 6), normal(5, 2)
  for given, message in (
    ({}, "tokens must be [2, L, 6], got None"),
    (dict(tokens=tokens[0]), "tokens must be [2, L, 6], got shape [5, 6]"),
    (dict(tokens=tokens[:1]), "tokens must be [2, L, 6], got shape [1, 5, 6]"),
    (dict(tokens=tokens[..., :5]), "tokens must be [2, L, 6], got shape [2, 5, 5]"),
    (dict(tokens=tokens, token_positions=places[:4]), "token_positions must be [5, 2], got shape [4, 2]"),
  ):
    with pytest.raises(ValueError) as error:
      shapes_of(NETWORK, x, c_noise, **given)
    assert str(error.value) == message
  for given, seen in ((dict(tokens=tokens), "[2, 5, 6]"), (dict(token_positions=places), "[5, 2]")):
    with pytest.raises(ValueError) as error:
      shapes_of(WITHOUT, x, c_noise, **given)
    assert str(error.value) == f"{next(iter(given))} must be None for this network, got shape {seen}"
  models = (estimated.Estimated(NETWORK), estimated.Estimated(WITHOUT, "concat"))
  for model in models:
    for context, seen in ((None, "None"), (x[:1], "shape [1, 4, 4, 3]"), (x[..., :1], "shape [2, 4, 4, 1]")):
      with pytest.raises(ValueError) as error:
        shapes_of(model, x, c_noise, context=context)
      expected = "context must be an estimate [B, H, W, C] of x's shape [2, 4, 4, 3], got"
      assert str(error.value) == f"{expected} {seen}"
