"""Swin against torchvision's own numbers; windows and merging against loops over tokens; weights' files and checks."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets import swin

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MANIFESTS = json.loads((GOLDEN / "swin_state_dicts.json").read_text())
draw = runpy.run_path(str(GOLDEN / "draw.py"))["draw"]


@pytest.fixture(scope="module")
def state_dict():
  return {name: draw(name, shape) for name, shape in MANIFESTS["swin_t"].items()}


@pytest.fixture(scope="module")
def params(state_dict):
  return swin.from_state_dict(state_dict, "t")


def relative_error(out, ref):
  return np.linalg.norm(np.asarray(out) - np.asarray(ref)) / np.linalg.norm(np.asarray(ref))


def test_stages_are_torchvisions(params):
  with np.load(GOLDEN / "swin_t.npz") as golden:
    stages = jax.jit(swin.features)(params, golden["x"].transpose(0, 2, 3, 1))
    for i, stage in enumerate(stages, 1):
      assert relative_error(stage, golden[f"stage{i}"]) < 5e-6  # measured: 1e-6
    assert relative_error(swin.final_norm(params, stages[-1]), golden["final_norm"]) < 5e-6


@pytest.mark.parametrize("variant, count", [("t", 28_288_354), ("s", 49_606_258), ("b", 87_768_224)])
def test_manifests_and_counts(variant, count):
  """The published counts are with the classifier of 1000 classes."""
  network = swin.of_variant(variant)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count - (8 * network.channels + 1) * 1000
  if variant == "b":  # of zeros that take no memory
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in MANIFESTS["swin_b"].items()}
    out = swin.from_state_dict(empty, "b")
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, shapes)


@pytest.mark.parametrize("height, width", [(9, 16), (5, 15), (7, 7)])
@pytest.mark.parametrize("shift", [0, 3])
def test_window_attention_is_the_loop(height, width, shift):
  """All pairs of tokens of the padded image: those see each other that share a moved window without going around."""
  rng = np.random.default_rng(0)
  heads, channels = 2, 6
  attention, x = swin.WindowAttention(heads, shift), rng.standard_normal((1, height, width, channels))
  shapes = jax.eval_shape(attention.init, jax.random.key(0), jnp.float32(x))["params"]
  p = jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape), shapes)
  out = attention.apply({"params": jax.tree.map(jnp.float32, p)}, jnp.float32(x))

  padded = [-(-size // 7) * 7 for size in (height, width)]
  tokens = np.zeros((*padded, channels))
  tokens[:height, :width] = x[0]
  qkv = (tokens @ p["qkv"]["kernel"] + p["qkv"]["bias"]).reshape(-1, 3, heads, channels // heads)
  y, x_ = (at.ravel() for at in np.indices(padded))
  sees = np.ones((y.size, y.size), bool)
  for at, size in ((y, padded[0]), (x_, padded[1])):
    moved = (at - (shift if size > 7 else 0)) % size // 7
    sees &= (moved[:, None] == moved) & (np.abs(at[:, None] - at) < 7)
  table = p["relative_position_bias_table"].reshape(13, 13, heads)
  result = np.empty((y.size, heads, channels // heads))
  for head in range(heads):
    logits = qkv[:, 0, head] @ qkv[:, 1, head].T / np.sqrt(channels // heads)
    dy, dx = (np.clip(at[:, None] - at, -6, 6) + 6 for at in (y, x_))
    weights = np.where(sees, np.exp(logits + table[dy, dx, head]), 0)
    result[:, head] = weights / weights.sum(1, keepdims=True) @ qkv[:, 2, head]
  result = result.reshape(*padded, channels) @ p["proj"]["kernel"] + p["proj"]["bias"]
  np.testing.assert_allclose(out[0], result[:height, :width], rtol=1e-3, atol=1e-4)


def test_merging_is_the_loop():
  rng = np.random.default_rng(0)
  x, kernel = rng.standard_normal((1, 3, 5, 2)), rng.standard_normal((8, 4))
  norm = {"scale": rng.standard_normal(8), "bias": rng.standard_normal(8)}
  out = swin.PatchMerging().apply({"params": {"norm": norm, "reduction": {"kernel": kernel}}}, jnp.float32(x))
  assert out.shape == (1, 2, 3, 4)
  padded = np.zeros((4, 6, 2))
  padded[:3, :5] = x[0]
  for i in range(2):
    for j in range(3):
      four = np.concatenate([padded[2 * i + row, 2 * j + column] for column in (0, 1) for row in (0, 1)])
      four = (four - four.mean()) / np.sqrt(four.var() + 1e-5) * norm["scale"] + norm["bias"]
      np.testing.assert_allclose(out[0, i, j], four @ kernel, rtol=1e-4, atol=1e-4)


def test_sizes_of_any_image(params):
  image = jax.ShapeDtypeStruct((2, 75, 46, 3), jnp.float32)
  shapes = [stage.shape for stage in jax.eval_shape(swin.features, params, image)]
  assert shapes == [(2, 18, 11, 96), (2, 9, 6, 192), (2, 5, 3, 384), (2, 3, 2, 768)]


def test_standardized_images_have_imagenets_mean_and_deviation():
  pixels = np.array([[0.485, 0.456, 0.406], [0.485 + 0.229, 0.456 + 0.224, 0.406 + 0.225]])
  out = swin.standardized(jnp.float32(2 * pixels - 1).reshape(1, 1, 2, 3))
  np.testing.assert_allclose(out[0, 0], [[0, 0, 0], [1, 1, 1]], atol=1e-6)


def test_what_torchvisions_files_hold_besides(state_dict, params):
  y, x = np.indices((7, 7)).reshape(2, -1)
  index = ((y[:, None] - y + 6) * 13 + x[:, None] - x + 6).ravel()
  head = {"head.weight": np.zeros((1000, 768)), "head.bias": np.zeros(1000)}
  name = "features.1.0.attn.relative_position_index"
  out = swin.from_state_dict(state_dict | head | {name: index})
  assert jax.tree.structure(out) == jax.tree.structure(params)
  with pytest.raises(ValueError, match=f"tensor '{name}' does not number the pairs of a 7×7 window"):
    swin.from_state_dict(state_dict | {name: index[::-1]})
  with pytest.raises(ValueError, match=r"tensor 'head.bias' has shape \[10\]: expected \[1000\]"):
    swin.from_state_dict(state_dict | {"head.bias": np.zeros(10)})


def test_a_state_dict_that_does_not_fit(state_dict):
  name = "features.3.1.attn.relative_position_bias_table"
  with pytest.raises(ValueError, match=rf"missing tensor '{name}': expected shape \[169, 6\]"):
    swin.from_state_dict({key: value for key, value in state_dict.items() if key != name})
  with pytest.raises(ValueError, match=r"tensor 'features.0.0.\w+' has shape \[96.*\]: expected \[128"):
    swin.from_state_dict(state_dict, "b")
  with pytest.raises(ValueError, match=r"unexpected tensor 'features.5.6.mlp.0.bias' of shape \[1536\]"):
    swin.from_state_dict(state_dict | {"features.5.6.mlp.0.bias": np.zeros(1536)})


def test_wrong_images_and_variants(params):
  with pytest.raises(ValueError, match=r"x must be \[B, H, W, 3\], got shape \[2, 3, 32, 32\]"):
    swin.features(params, jnp.zeros((2, 3, 32, 32)))
  with pytest.raises(ValueError, match=r"x must be at least 4×4, got shape \[1, 3, 32, 3\]"):
    swin.features(params, jnp.zeros((1, 3, 32, 3)))
  for call in (swin.from_state_dict, lambda _, v: swin.features(params, jnp.zeros((1, 32, 32, 3)), v)):
    with pytest.raises(ValueError, match="variant must be one of t, s, b, got 'l'"):
      call({}, "l")
