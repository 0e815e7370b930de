"""A condition's features in the U-Net: the joining's closed forms, what starts unchanged, what reaches what, checks."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from diffusion_jax.nets import blocks, classifier, layers, unet

draw = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "draw.py"))["draw"]
plain = functools.partial(
  unet.ddpmpp, resolution=8, channels=16, channel_mult=(1, 2), num_blocks=1, attention_resolutions=()
)
JOINED = dict(context=((8, 1), (4, 5)), cross_attention=(4,))
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes_of(network):
  image = jax.ShapeDtypeStruct((1, network.resolution, network.resolution, 3), jnp.float32)
  return jax.eval_shape(network.init, jax.random.key(0), image, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]


def drawn_params(network, zero=()):
  """Parameters of ordinary size, where a fresh network's outputs are nearly 0; zeros for paths with one of `zero`."""
  params = {}
  for path, leaf in traverse_util.flatten_dict(shapes_of(network)).items():
    value = draw(".".join(path), leaf.shape[::-1]).T
    params[path] = jnp.asarray(np.zeros_like(value) if {*zero} & {*path} else value)
  return traverse_util.unflatten_dict(params)


def inputs(network, batch=2):
  rng = np.random.default_rng(1)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  context = tuple(normal(batch, size, size, width) for size, width in network.context)
  return normal(batch, network.resolution, network.resolution, 3), normal(batch), context


def group_norm(x, p):
  """In float64, for a single image [H, W, C]."""
  grouped = x.reshape(*x.shape[:2], layers.num_groups(x.shape[-1]), -1)
  mean, var = grouped.mean((0, 1, 3), keepdims=True), grouped.var((0, 1, 3), keepdims=True)
  return ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def attended(q, kv):
  """Softmax attention, q [N, heads, c] to kv [L, heads, c, 2], a query and a head at a time."""
  out = np.empty(q.shape)
  for i, head in np.ndindex(q.shape[:2]):
    logits = kv[:, head, :, 0] @ q[i, head] / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max())
    out[i, head] = weights / weights.sum() @ kv[:, head, :, 1]
  return out


def test_joining_is_its_equation():
  """Both terms for one image against sums over pixels in float64."""
  rng = np.random.default_rng(0)
  x, c = rng.standard_normal((1, 4, 3, 16)), rng.standard_normal((1, 4, 3, 5))
  join = blocks.Join(blocks.SONG, attend=True, num_heads=2)
  variables = jax.eval_shape(join.init, jax.random.key(0), x, c)["params"]
  p = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), variables)
  out = join.apply({"params": jax.tree.map(jnp.float32, p)}, jnp.float32(x), jnp.float32(c))

  linear = lambda name, value: value @ p[name]["kernel"] + p[name]["bias"]
  e = linear("embed", c[0])
  h = np.concatenate([group_norm(x[0], p["norm0"]), e], -1)
  y = x[0] + linear("proj0", h / (1 + np.exp(-h)))
  q = linear("q", group_norm(y, p["norm1"])).reshape(12, 2, 8)
  kv = linear("kv", e).reshape(12, 2, 8, 2)
  y = y + linear("proj1", attended(q, kv).reshape(4, 3, 16))
  np.testing.assert_allclose(out[0], y, rtol=1e-4, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize("fields", [{}, dict(heads=(("clean", 3), ("eps", 3)), decoders=2)], ids=["one", "two"])
def test_a_fresh_joining_leaves_the_network_as_it_was(fields):
  """Every parameter of the unconditional network is there under its name and in its shape, and is not changed."""
  network, without = plain(**fields, **JOINED), plain(**fields)
  params = drawn_params(network, zero=("proj0", "proj1"))
  own = {name: params[name] for name in shapes_of(without)}
  assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, shapes_of(without))
  assert {name for name in params if name not in own} == {"enc_8x8_join", "enc_4x4_join"}
  x, c_noise, context = inputs(network)
  ref = jit(without.apply)({"params": own}, x, c_noise)
  out = jit(lambda p, context: network.apply({"params": p}, x, c_noise, context=context))(params, context)
  for head, value in ref.items():
    np.testing.assert_allclose(out[head], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style", [blocks.SONG, blocks.ADM], ids=["song", "adm"])
def test_projections_are_born_zero(style):
  join = blocks.Join(style, attend=True, num_heads=1)
  params = join.init(jax.random.key(0), jnp.ones((1, 4, 4, 16)), jnp.ones((1, 4, 4, 5)))["params"]
  assert set(params) == {"embed", "norm0", "proj0", "norm1", "q", "kv", "proj1"}
  for name, leaves in params.items():
    assert np.any(leaves.get("kernel", 1)) == (not name.startswith("proj"))
  assert set(blocks.Join(style).init(jax.random.key(0), jnp.ones((1, 4, 4, 16)), jnp.ones((1, 4, 4, 5)))["params"]) == {
    "embed", "norm0", "proj0"
  }  # fmt: skip


def test_every_pixel_of_the_condition_reaches_every_head():
  network = plain(heads=(("clean", 3), ("eps", 3)), decoders=2, **JOINED)
  params, (x, c_noise, context) = drawn_params(network), inputs(network)

  apply = lambda context: network.apply({"params": params}, x, c_noise, context=context)

  @jit
  def found(context):
    def squares(context):
      out = apply(context)
      return jnp.stack([jnp.square(out[head]).sum() for head in ("clean", "eps")]), out

    return jax.jacrev(squares, has_aux=True)(context)

  gradients, out = found(context)
  _, zeros = found(jax.tree.map(jnp.zeros_like, context))
  none = jit(lambda: apply(None))()
  for i, head in enumerate(("clean", "eps")):
    for gradient, features in zip(gradients, context):
      assert gradient[i].shape == features.shape and np.abs(gradient[i]).min() > 1e-6
    np.testing.assert_allclose(none[head], zeros[head], rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(out[head] - none[head]) > 0.02 * np.linalg.norm(none[head])


def test_a_classifier_takes_no_condition():
  network = classifier.over(plain(**JOINED), 10)
  assert network == classifier.over(plain(), 10)


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(context=((16, 3),)), r"network.context = \(\(16, 3\),\): expected pairs .* of \[8, 4\], channels positive"),
    (dict(context=((8, 0),)), "network.context = .* channels positive"),
    (dict(context=(8, 3)), "network.context = .* expected pairs"),
    (dict(context=[[8, 3], [8, 4]]), "network.context = .* resolutions different"),
    (dict(context=((8, 3),), cross_attention=(4,)), r"cross_attention = \(4,\): expected only .*context: \[8\]"),
    (dict(cross_attention=(8,)), r"network.cross_attention = \(8,\): .*network.context: \[\]"),
    (dict(context=((8, 3),), cross_attention=(8,), num_heads=3), "network.num_heads = 3: .* divides 16 channels"),
  ],
)
def test_a_joining_that_cannot_be_built(fields, message):
  with pytest.raises(ValueError, match=message) as error:
    plain(**fields)
  assert "\n" not in str(error.value)


def test_wrong_features_are_named():
  network, without = plain(**JOINED), plain()
  x, c_noise, (a, b) = inputs(network)
  shape = lambda network, context: jax.eval_shape(network.init, jax.random.key(0), x, c_noise, context=context)
  wanted = r"context must be a tuple of shapes \[\[2, 8, 8, 1\], \[2, 4, 4, 5\]\], got "
  for context, seen in (
    ((a,), r"\[\[2, 8, 8, 1\]\]"), ((b, a), r"\[\[2, 4, 4, 5\], \[2, 8, 8, 1\]\]"), (a, "[A-Z]"), ((), r"\[\]"),
    ((a, b[:1]), r"\[\[2, 8, 8, 1\], \[1, 4, 4, 5\]\]"),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=wanted + seen):
      shape(network, context)
  with pytest.raises(ValueError, match=r"context must be None for this network, got \[\[2, 8, 8, 1\]\]"):
    shape(without, (a,))
