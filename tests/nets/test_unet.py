"""The U-Net against the published networks' own numbers, its laws of initialisation, dropout, precision and checks."""

import dataclasses
import functools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from diffusion_jax.interop import edm_weights
from diffusion_jax.nets import blocks, layers, unet

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NETS = json.loads((GOLDEN / "nets.json").read_text())
TINY = [name for name, entry in NETS.items() if "state_dict" in entry]
FAST_KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles in a third of the time; the laws do not depend on it
draw = runpy.run_path(str(GOLDEN / "draw.py"))["draw"]

# Compilation is nearly all of these tests' time: hence one level (the bottleneck still attends), and no optimisation.
small = functools.partial(
  unet.ddpmpp, resolution=8, channels=16, channel_mult=(1,), num_blocks=1, attention_resolutions=()
)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn_state_dict(name):
  return {key: draw(key, shape) for key, shape in NETS[name]["state_dict"].items() if "resample_filter" not in key}


def network_of(name):
  return edm_weights.network_from_kwargs(NETS[name]["init_kwargs"], NETS[name]["precond"])


def parameter_shapes(network, channels=3):
  image = jax.ShapeDtypeStruct((1, network.resolution, network.resolution, channels), jnp.float32)
  return jax.eval_shape(network.init, jax.random.key(0), image, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]


def drawn_params(network, channels=3):
  """Parameters of ordinary size: a fresh network's outputs are nearly zero."""
  flat = traverse_util.flatten_dict(parameter_shapes(network, channels))
  draws = {path: jnp.asarray(draw(".".join(path), leaf.shape[::-1]).T) for path, leaf in flat.items()}
  return traverse_util.unflatten_dict(draws)


def inputs(network, batch=4, channels=3):
  rng = np.random.default_rng(1)
  x = rng.standard_normal((batch, network.resolution, network.resolution, channels)).astype(np.float32)
  return jnp.asarray(x), jnp.asarray(rng.standard_normal(batch).astype(np.float32))


def relative_error(out, ref):
  return np.linalg.norm(np.asarray(out) - np.asarray(ref)) / np.linalg.norm(np.asarray(ref))


def iddpm_levels(num_steps=1000, floor=0.001, offset=0.008):
  """u_j of Karras et al. 2022, Table 1, third column."""
  alpha_bar = lambda j: np.sin(np.pi / 2 * j / (num_steps * (offset + 1))) ** 2
  u = np.zeros(num_steps + 1)
  for j in range(num_steps, 0, -1):
    u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), floor) - 1)
  return u


def precondition(precond, sigma):
  """c_skip, c_out, c_in, c_noise of Karras et al. 2022, Table 1."""
  if precond == "EDMPrecond":
    norm = np.sqrt(sigma**2 + 0.25)
    return 0.25 / norm**2, 0.5 * sigma / norm, 1 / norm, np.log(sigma) / 4
  if precond == "VEPrecond":
    return 1 + 0 * sigma, sigma, 1 + 0 * sigma, np.log(sigma / 2)
  if precond == "VPPrecond":  # σ² + 1 = exp(½β_d t² + β_min t)
    beta_d, beta_min = 19.9, 0.1
    c_noise = 999 * (np.sqrt(beta_min**2 + 2 * beta_d * np.log1p(sigma**2)) - beta_min) / beta_d
  else:
    c_noise = 999 - np.abs(iddpm_levels() - sigma[:, None]).argmin(1)
  return 1 + 0 * sigma, -sigma, 1 / np.sqrt(sigma**2 + 1), c_noise


@pytest.mark.parametrize("name", TINY)
def test_published_network(name):
  state_dict = drawn_state_dict(name)
  network = edm_weights.with_constants(state_dict, network_of(name))
  params = edm_weights.unet_params(state_dict, network)
  data = np.load(GOLDEN / f"net_{name}.npz")
  factors = precondition(NETS[name]["precond"], data["sigma"].astype(np.float64))
  c_skip, c_out, c_in, c_noise = (np.float32(c) for c in factors)
  x = data["x"].transpose(0, 2, 3, 1)
  wide = lambda c: c[:, None, None, None]
  out = jit(network.apply)(
    {"params": params}, wide(c_in) * x, c_noise, data.get("class_labels"), data.get("augment_labels")
  )["out"]
  denoised = wide(c_skip) * x + wide(c_out) * np.asarray(out)
  assert relative_error(denoised, data["D"].transpose(0, 2, 3, 1)) < 1e-5  # measured: below 1e-6


@pytest.mark.parametrize("name", NETS)
def test_parameter_count(name):
  shapes = parameter_shapes(network_of(name), NETS[name]["init_kwargs"]["img_channels"])
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == NETS[name]["num_params"]


def test_presets_are_the_published_networks():
  plain = lambda network: dataclasses.replace(network, dropout=0.0, parent=None)
  same = lambda a, b: plain(a) == plain(b)
  assert same(unet.ddpmpp(num_classes=10, augment_dim=9), network_of("cifar10_cond_vp"))
  assert same(unet.ncsnpp(augment_dim=9), network_of("cifar10_uncond_ve"))
  assert same(unet.adm(num_classes=1000), network_of("imagenet64_cond_adm"))


def test_song_initialisation():
  network = unet.ddpmpp(resolution=16, channels=64, channel_mult=(1, 2), num_blocks=1, num_classes=10, augment_dim=9)
  params = jit(network.init)(FAST_KEY, jnp.zeros((1, 16, 16, 3)), jnp.zeros(1))["params"]
  flat = {".".join(path): np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params).items()}
  assert all(not np.any(leaf) for name, leaf in flat.items() if name.endswith("bias"))
  assert all(np.all(leaf == 1) for name, leaf in flat.items() if name.endswith("scale"))
  seen = set()
  for name, leaf in flat.items():
    if not name.endswith("kernel"):
      continue
    layer = name.split(".")[-2].split("_")[-1]
    gain = {"conv1": 1e-5, "proj": 1e-5, "qkv": 0.2**0.5}.get(layer, 1e-5 if "aux_conv" in name else 1.0)
    bound = gain * np.sqrt(6 / (np.prod(leaf.shape[:-2]) * (leaf.shape[-1] + leaf.shape[-2])))  # Xavier-uniform
    assert np.abs(leaf).max() <= bound * (1 + 1e-6), name
    assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=2 / np.sqrt(leaf.size)), name
    seen.add(layer)
  assert seen >= {"conv0", "conv1", "affine", "skip", "qkv", "proj", "label", "augment", "layer0", "layer1", "conv"}


def test_adm_initialisation():
  network = unet.adm(
    resolution=16, channels=64, channel_mult=(1, 2), num_blocks=1, num_classes=10, augment_dim=9,
    attention_resolutions=(16,),
  )  # fmt: skip
  params = jit(network.init)(FAST_KEY, jnp.zeros((1, 16, 16, 3)), jnp.zeros(1))["params"]
  for path, leaf in traverse_util.flatten_dict(params).items():
    leaf, layer = np.asarray(leaf), path[-2]
    if layer in ("conv1", "proj", "out_conv", "map_augment"):
      assert not np.any(leaf), path
    elif layer == "map_label":
      assert np.std(leaf) == pytest.approx(1, rel=0.05)
    elif path[-1] == "kernel" or not layer.startswith(("norm", "out_norm")):
      kernel = params
      for key in path[:-1]:
        kernel = kernel[key]
      bound = 1 / np.sqrt(np.prod(kernel["kernel"].shape[:-1]))
      assert np.abs(leaf).max() <= bound * (1 + 1e-6), path
      assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=3 / np.sqrt(leaf.size)), path


def test_heads_of_one_decoder_split_its_channels_in_order():
  whole, parts = small(heads=(("out", 3),)), small(heads=[["a", 2], ["b", 1]])
  params, (x, c) = drawn_params(whole), inputs(whole)
  out, split = (jit(net.apply)({"params": params}, x, c) for net in (whole, parts))
  np.testing.assert_array_equal(out["out"], np.concatenate([split["a"], split["b"]], -1))


STYLES = [blocks.SONG, dataclasses.replace(blocks.ADM, head_channels=None)]


@pytest.mark.parametrize("style", STYLES, ids=["song", "adm"])
def test_each_head_can_have_its_own_decoder(style):
  one = small(block=style)
  two = small(block=style, heads=(("clean", 3), ("eps", 3)), decoders=2)
  params, (x, c) = drawn_params(one), inputs(one)
  copied = {}  # the one decoder's weights in both decoders, those of eps with another sign in the last layer
  for path, leaf in traverse_util.flatten_dict(params).items():
    names = [path[0].replace(stem, f"{stem}{head}_") for head in ("clean", "eps") for stem in ("dec_", "out_")
             if path[0].startswith(stem)]  # fmt: skip
    for name in names or [path[0]]:
      flip = "_eps_" in name and path[0].endswith(("aux_conv", "out_conv"))
      copied[(name, *path[1:])] = -leaf if flip else leaf
  copied = traverse_util.unflatten_dict(copied)
  assert jax.tree.map(jnp.shape, copied) == jax.tree.map(jnp.shape, parameter_shapes(two))
  ref = jit(one.apply)({"params": params}, x, c)["out"]
  out = jit(two.apply)({"params": copied}, x, c)
  np.testing.assert_allclose(out["clean"], ref, atol=1e-5)
  np.testing.assert_allclose(out["eps"], -ref, atol=1e-5)


def test_dropout_of_an_example_depends_on_its_key_alone():
  network = small(dropout=0.13)
  params, (x, c) = {"params": drawn_params(network)}, inputs(network)
  apply = jit(lambda x, c, keys: network.apply(params, x, c, dropout_keys=keys)["out"])
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.arange(4))
  out = apply(x, c, keys)
  halves = jnp.concatenate([apply(x[:2], c[:2], keys[:2]), apply(x[2:], c[2:], keys[2:])])
  np.testing.assert_allclose(out, halves, rtol=1e-4, atol=1e-5)
  other = apply(x, c, keys.at[0].set(keys[1]))
  assert relative_error(other[0], out[0]) > 0.01
  np.testing.assert_allclose(other[1:], out[1:], rtol=1e-4, atol=1e-5)

  off = apply(x, c, None)
  assert relative_error(off, out) > 0.01
  np.testing.assert_allclose(off, jit(small(dropout=0.0).apply)(params, x, c)["out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [0.05, 0.13, 0.5])
def test_dropout_rate(rate):
  keys = jax.random.split(jax.random.key(0), 4)
  x = jnp.ones((4, 16, 16, 64))
  masked = layers.dropout(x, rate, keys, ("enc_16x16_block0",))
  deviation = np.sqrt(rate * (1 - rate) / masked.size)
  assert abs(float((masked == 0).mean()) - rate) < 4 * deviation
  assert np.unique(masked)[-1] == pytest.approx(1 / (1 - rate), rel=1e-4)
  for axis in (0, 1, 2, 3):  # neighbours are independent
    dropped = np.asarray(masked == 0, np.float64) - rate
    pairs = (dropped * np.roll(dropped, 1, axis)).mean() / (rate * (1 - rate))
    assert abs(pairs) < 4 / np.sqrt(masked.size)
  assert not np.array_equal(masked, layers.dropout(x, rate, keys, ("enc_16x16_block1",)))


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.05), (jnp.float16, 0.01)])
def test_reduced_precision(dtype, tolerance):
  network, reduced = small(num_classes=4), small(num_classes=4, dtype=dtype)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameter_shapes(reduced)))
  params, (x, c) = {"params": drawn_params(network)}, inputs(network)
  labels = jnp.eye(4)
  ref, out = (jit(net.apply)(params, x, c, labels)["out"] for net in (network, reduced))
  assert out.dtype == jnp.float32
  assert 1e-5 < relative_error(out, ref) < tolerance


def test_remat_changes_no_gradient():
  (x, c), keys = inputs(small()), jax.random.split(jax.random.key(1), 4)
  gradients = []
  for remat in (False, True):
    network = small(remat=remat, dropout=0.1)
    params = drawn_params(network)
    loss = lambda p, net=network: jnp.square(net.apply({"params": p}, x, c, dropout_keys=keys)["out"]).mean()
    gradients.append(jit(jax.grad(loss))(params))
  assert jax.tree.structure(gradients[0]) == jax.tree.structure(gradients[1])
  for a, b in zip(*map(jax.tree.leaves, gradients)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_no_label_is_a_row_of_zeros():
  network = small(num_classes=4, augment_dim=9)
  params, (x, c) = {"params": drawn_params(network)}, inputs(network)
  apply = jit(network.apply)
  zeros = apply(params, x, c, jnp.zeros((4, 4)), jnp.zeros((4, 9)))["out"]
  np.testing.assert_allclose(apply(params, x, c)["out"], zeros, rtol=1e-5, atol=1e-5)
  assert relative_error(apply(params, x, c, jnp.eye(4))["out"], zeros) > 0.01


def test_group_norm_far_from_zero():
  x = 1e3 + np.random.default_rng(0).standard_normal((2, 8, 8, 48)).astype(np.float32) * np.linspace(0.5, 2, 48)
  x = np.float32(x)
  norm = layers.GroupNorm(1e-6)
  out = norm.apply(norm.init(jax.random.key(0), x), x)
  grouped = x.astype(np.float64).reshape(2, 64, 12, 4)
  mean, std = grouped.mean((1, 3), keepdims=True), grouped.std((1, 3), keepdims=True)
  np.testing.assert_allclose(out, ((grouped - mean) / std).reshape(x.shape), atol=3e-4)  # x itself is right to 6e-5


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 5, 3, 2, 1)])
def test_upsampling_is_the_transpose_of_downsampling(taps):
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((2, 8, 12, 3)), rng.standard_normal((2, 4, 6, 3))
  down, up = np.asarray(layers.downsample(jnp.asarray(x), taps)), np.asarray(layers.upsample(jnp.asarray(y), taps))
  assert (down * y).sum() == pytest.approx((x * up).sum() / 4, rel=1e-4)
  padding, square = len(taps) // 2 - 1, np.outer(taps, taps) / sum(taps) ** 2
  padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  window = padded[:, 2 : 2 + len(taps), 4 : 4 + len(taps)]
  np.testing.assert_allclose(down[:, 1, 2], np.einsum("bhwc,hw->bc", window, square), atol=1e-5)


INVALID = [
  (dict(channels=36, channel_mult=(1, 4)), "network.channels = 36: .*32 GroupNorm groups divide 144 channels"),
  (dict(channels=18), "network.channels = 18: .*GroupNorm groups divide 18"),
  (dict(channels=96, attention_resolutions=(16,), block=blocks.ADM), "channels = 96: .*96 channels in heads of"),
  (dict(channels=0), "network.channels = 0: expected a positive integer"),
  (dict(attention_resolutions=(16, 5)), r"network.attention_resolutions = \(16, 5\): .* occur: \[16, 8\]"),
  (dict(attention_resolutions=8), "network.attention_resolutions = 8: expected a tuple"),
  (dict(resolution=15), "network.resolution = 15: expected a multiple of 2, for 2 levels"),
  (dict(encoder="residal"), r"network.encoder = 'residal': .*standard, skip, residual \(nearest: residual\)"),
  (dict(decoder="residual"), "network.decoder = 'residual': expected one of standard, skip"),
  (dict(embedding="furier"), r"network.embedding = 'furier': .*\(nearest: fourier\)"),
  (dict(dtype="float8"), "network.dtype = 'float8': expected one of float32, bfloat16, float16"),
  (dict(dropout=1.0), "network.dropout = 1.0: expected a probability"),
  (dict(heads=(("a", 3), ("a", 3))), "network.heads = .* different names"),
  (dict(heads="out"), "network.heads = 'out': expected pairs"),
  (dict(heads=(("a", 3), ("b", 3), ("c", 1)), decoders=2), "network.decoders = 2: expected 1, or one for each"),
  (dict(resample_filter=(1, 2, 1)), r"network.resample_filter = \(1, 2, 1\): expected a tuple of an even number"),
  (dict(embedding="fourier", freqs=(1.0,)), r"network.freqs = \(1.0,\): expected None or 16 numbers"),
  (dict(tokens=-1), "network.tokens = -1: expected an integer of at least 0"),
  (dict(tokens=8), "network.tokens = 8: .* where token_attention or token_bottleneck is set, 0 where neither is"),
  (dict(token_attention=(8,)), "network.tokens = 0: expected a positive width where token_attention or"),
  (dict(token_bottleneck=True), "network.tokens = 0: expected a positive width where token_attention or"),
  (dict(tokens=8, token_attention=[8, 5]), r"network.token_attention = \(8, 5\): .* occur: \[16, 8\]"),
  (dict(tokens=8, token_attention=8), "network.token_attention = 8: expected only resolutions"),
  (dict(tokens=8, token_bottleneck=1), "network.token_bottleneck = 1: expected True or False"),
  (dict(channel_mult=(1, 3), tokens=8, token_attention=(16,), num_heads=3), "num_heads = 3: .* divides 32 channels"),
  (dict(chanels=64), r"network.chanels: no such field \(nearest: channels\)"),
]


@pytest.mark.parametrize("kwargs, message", INVALID)
def test_a_network_that_cannot_be_built(kwargs, message):
  base = dict(resolution=16, channels=32, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(8,))
  with pytest.raises(ValueError, match=message) as error:
    unet.ddpmpp(**{**base, **kwargs})
  assert "\n" not in str(error.value)


def test_wrong_shapes_are_named():
  network = small(num_classes=4)
  (x, c), shape = inputs(network), lambda *args, **kw: jax.eval_shape(network.init, jax.random.key(0), *args, **kw)
  with pytest.raises(ValueError, match=r"x must be \[B, 8, 8, C\], got shape \[4, 8, 3\]"):
    shape(x[:, 0], c)
  with pytest.raises(ValueError, match=r"c_noise must be a scalar or \[4\], got shape \[3\]"):
    shape(x, c[:3])
  with pytest.raises(ValueError, match=r"labels must be \[4, 4\], got shape \[4\]"):
    shape(x, c, jnp.zeros(4))
  with pytest.raises(ValueError, match=r"augment must be None for this network, got shape \[4, 9\]"):
    shape(x, c, augment=jnp.zeros((4, 9)))
  with pytest.raises(ValueError, match=r"dropout_keys must be \[4\] typed keys, got shape \[\]"):
    shape(x, c, dropout_keys=jax.random.key(0))


def test_a_state_dict_that_does_not_fit():
  state_dict = drawn_state_dict("song_skip")
  fresh = network_of("song_skip")
  network = edm_weights.with_constants(state_dict, fresh)
  name = "model.enc.8x8_block0.qkv.weight"
  raises = lambda text: pytest.raises(ValueError, match=text)
  with raises(r"missing tensor 'enc.8x8_block0.qkv.weight': expected shape \[192, 64, 1, 1\]"):
    edm_weights.unet_params({key: value for key, value in state_dict.items() if key != name}, network)
  with raises(r"unexpected tensor 'enc.extra.weight' of shape \[3, 2\]"):
    edm_weights.unet_params({**state_dict, "model.enc.extra.weight": np.zeros((3, 2))}, network)
  with raises(r"'enc.8x8_block0.qkv.weight' has shape \[192, 64\]: expected \[192, 64, 1, 1\]"):
    edm_weights.unet_params({**state_dict, name: state_dict[name][:, :, 0, 0]}, network)
  with raises("freqs.* with_constants"):
    edm_weights.unet_params(state_dict, fresh)
  with raises(r"resample_filter' of shape \[1, 1, 2, 2\]"):
    edm_weights.unet_params({**state_dict, "model.enc.8x8_down.conv0.resample_filter": np.ones((1, 1, 2, 2))}, network)
  with raises("missing argument 'img_channels'"):
    edm_weights.network_from_kwargs({"img_resolution": 32})
  with raises("unknown argument 'img_size'"):
    edm_weights.network_from_kwargs({"img_resolution": 32, "img_channels": 3, "img_size": 32})
