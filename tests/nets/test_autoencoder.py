"""KL-f4 against the published architecture's numbers; the posterior's laws; tiles; a small one's gradients; checks."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from diffusion_jax.nets import autoencoder

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MANIFEST = json.loads((GOLDEN / "kl_f4_state_dict.json").read_text())
draw = runpy.run_path(str(GOLDEN / "draw.py"))["draw"]
SMALL = autoencoder.Autoencoder(channels=8, channel_mult=(1, 2), num_blocks=1, latent_channels=2)


@pytest.fixture(scope="module")
def state_dict():
  return {name: draw(name, shape) for name, shape in MANIFEST.items()}


@pytest.fixture(scope="module")
def params(state_dict):
  return autoencoder.from_state_dict(state_dict)


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN / "kl_f4.npz") as file:
    return {name: file[name].transpose(0, 2, 3, 1) for name in file.files}


@pytest.fixture(scope="module")
def small():
  shapes = jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 2, 2, 3)))["params"]
  flat = traverse_util.flatten_dict(shapes)
  draws = {path: jnp.asarray(draw(".".join(path), leaf.shape[::-1]).T) for path, leaf in flat.items()}
  return traverse_util.unflatten_dict(draws)


def relative_error(out, ref):
  return np.linalg.norm(np.asarray(out) - np.asarray(ref)) / np.linalg.norm(np.asarray(ref))


def test_moments_are_the_published_architectures(params, golden):
  mean, log_variance = jax.jit(autoencoder.encode)(params, golden["x"])
  assert mean.shape == log_variance.shape == (2, 8, 8, 3)
  assert relative_error(jnp.concatenate([mean, log_variance], -1), golden["moments"]) < 1e-5  # measured: 2e-6


def test_decoded_images_are_the_published_architectures(params, golden):
  out = jax.jit(autoencoder.decode)(params, golden["z"])
  assert out.shape == (2, 32, 32, 3) and out.dtype == np.float32
  assert relative_error(out, golden["decoded"]) < 1e-5  # measured: 1e-6


def test_log_variances_are_clipped(small):
  x = jnp.zeros((1, 4, 4, 3))
  for offset, bound in ((100, 20), (-100, -30)):
    bias = small["quant_conv"]["bias"] + offset
    mean, log_variance = autoencoder.encode({**small, "quant_conv": {**small["quant_conv"], "bias": bias}}, x, SMALL)
    assert np.all(log_variance == bound) and np.all(np.abs(mean) > 50)  # the mean is not


def test_a_sample_has_the_posteriors_law_and_its_own_key():
  keys = jax.random.split(jax.random.key(0), 4)
  mean, log_variance = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 32, 32, 3)), jnp.full((4, 32, 32, 3), -2.0)
  z = autoencoder.sample(keys, mean, log_variance)
  deviation, count = np.exp(-1), 32 * 32 * 3
  np.testing.assert_allclose(z.mean((1, 2, 3)), np.arange(4), atol=4 * deviation / np.sqrt(count))
  np.testing.assert_allclose(z.std((1, 2, 3)), deviation, rtol=4 / np.sqrt(2 * count))
  np.testing.assert_array_equal(z[2:3], autoencoder.sample(keys[2:3], mean[2:3], log_variance[2:3]))


def test_kl_divergence_is_its_integral():
  mean, log_variance = np.array([0.3, -1.2]), np.array([0.5, -2.0])
  total, at = 0.0, np.linspace(-12, 12, 20_001)
  for m, v in zip(mean, np.exp(log_variance)):
    log_p = -((at - m) ** 2) / (2 * v) - np.log(2 * np.pi * v) / 2
    total += np.sum(np.exp(log_p) * (log_p + at**2 / 2 + np.log(2 * np.pi) / 2)) * (at[1] - at[0])
  out = autoencoder.kl_divergence(*(jnp.float32(value).reshape(1, 1, 2, 1) for value in (mean, log_variance)))
  np.testing.assert_allclose(out, [total], rtol=1e-5)
  assert autoencoder.kl_divergence(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1))) == 0


def test_a_small_one_can_be_trained(small):
  """Each parameter has a gradient of the reconstruction and the KL that finite differences confirm."""
  x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
  keys = jax.random.split(jax.random.key(1), 2)

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    out, mean, log_variance = SMALL.apply({"params": params}, x, keys)
    return jnp.square(out - x).mean() + 0.01 * autoencoder.kl_divergence(mean, log_variance).mean()

  before, gradient = jax.device_get(loss(small))
  flat = traverse_util.flatten_dict(gradient)
  # A key's bias adds the same to all logits of a query.
  assert {path for path, leaf in flat.items() if np.abs(leaf).max() < 1e-7} <= {
    (half, "mid_attn_1", "k", "bias") for half in ("encoder", "decoder")
  }
  square = sum(float(np.square(leaf).sum()) for leaf in flat.values())
  step = 1e-3 / square**0.5
  after, _ = loss(jax.tree.map(lambda p, g: np.asarray(p) - step * g, small, gradient))
  assert before - after == pytest.approx(step * square, rel=0.05)


def test_one_window_is_the_whole(small):
  z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 9, 2)), jnp.float32)
  whole = jax.jit(lambda z: autoencoder.decode(small, z, SMALL))(z)
  assert whole.shape == (2, 12, 18, 3)
  for window in (9, 64):
    tiled = jax.jit(lambda z, window=window: autoencoder.decode_tiled(small, z, SMALL, window, 4))(z)
    assert relative_error(tiled, whole) < 1e-5


def test_borders_of_windows_cannot_be_seen(small):
  """The difference from the untiled image changes no more across a window's border than beside it; cut, it would."""
  z = jnp.asarray(np.random.default_rng(0).standard_normal((1, 48, 48, 2)), jnp.float32)
  decode = jax.jit(lambda z: autoencoder.decode(small, z, SMALL))
  whole, tiled = decode(z), jax.jit(lambda z: autoencoder.decode_tiled(small, z, SMALL, 24, 12))(z)
  cut = jnp.concatenate([decode(z[:, :24]), decode(z[:, 24:])], 1)

  def visible(image, border, axis):
    """The step across a border, in steps beside it."""
    steps = np.sqrt(np.square(np.diff(np.asarray(image - whole)[0], axis=axis)).mean((1 - axis, 2)))
    return steps[border - 1] / np.median(steps[border - 7 : border + 6])

  assert relative_error(tiled, whole) < 0.2  # norms and attention of a window are not those of the image
  assert max(visible(tiled, border, axis) for border in (24, 48, 72) for axis in (0, 1)) < 1.3
  assert visible(cut, 48, 0) > 2


def test_published_files_hold_more(state_dict, params):
  loss = {"loss.logvar": np.zeros(()), "loss.discriminator.main.0.weight": np.zeros((64, 3, 4, 4))}
  inner = {f"first_stage_model.{name}": value for name, value in state_dict.items()}
  for tensors in (state_dict | loss, inner | {"model.diffusion_model.out.2.bias": np.zeros(3)}):
    out = autoencoder.from_state_dict(tensors)
    np.testing.assert_array_equal(out["decoder"]["conv_out"]["kernel"], params["decoder"]["conv_out"]["kernel"])
    assert jax.tree.structure(out) == jax.tree.structure(params)


def test_a_state_dict_that_does_not_fit(state_dict):
  name = "decoder.up.2.upsample.conv.weight"
  with pytest.raises(ValueError, match=rf"missing tensor '{name}': expected shape \[512, 512, 3, 3\]"):
    autoencoder.from_state_dict({key: value for key, value in state_dict.items() if key != name})
  with pytest.raises(ValueError, match=r"'encoder.mid.attn_1.q.weight' has shape \[512, 512\]: .* \[512, 512, 1, 1\]"):
    autoencoder.from_state_dict(state_dict | {"encoder.mid.attn_1.q.weight": np.zeros((512, 512))})
  with pytest.raises(ValueError, match=r"unexpected tensor 'quantize.embedding.weight' of shape \[8192, 3\]"):
    autoencoder.from_state_dict(state_dict | {"quantize.embedding.weight": np.zeros((8192, 3))})  # a VQ model's
  with pytest.raises(ValueError, match="has shape .*: expected"):
    autoencoder.from_state_dict(state_dict, SMALL)


def test_wrong_images_and_latents(small):
  raises = lambda text: pytest.raises(ValueError, match=text)
  with raises(r"x must be \[B, H, W, 3\], got shape \[2, 3, 8, 8\]"):
    autoencoder.encode(small, jnp.zeros((2, 3, 8, 8)), SMALL)
  with raises(r"x must have sides that are multiples of 2, got shape \[2, 8, 7, 3\]"):
    autoencoder.encode(small, jnp.zeros((2, 8, 7, 3)), SMALL)
  with raises(r"z must be \[B, H, W, 2\], got shape \[2, 4, 4, 3\]"):
    autoencoder.decode(small, jnp.zeros((2, 4, 4, 3)), SMALL)
  with raises("overlap must be in 1..window − 1 = 7, got 8"):
    autoencoder.decode_tiled(small, jnp.zeros((2, 4, 4, 2)), SMALL, window=8, overlap=8)


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(channels=0), "autoencoder.channels = 0: expected a positive integer"),
    (dict(latent_channels=True), "autoencoder.latent_channels = True: expected a positive integer"),
    (dict(channel_mult=(1, 0)), r"autoencoder.channel_mult = \(1, 0\): expected positive integers, one a level"),
    (dict(channel_mult=[]), r"autoencoder.channel_mult = \(\): expected"),
    (dict(channels=36, channel_mult=(1, 4)), "autoencoder.channels = 36: .*32 GroupNorm groups divide 144 channels"),
  ],
)
def test_an_autoencoder_that_cannot_be_built(fields, message):
  with pytest.raises(ValueError, match=message) as error:
    autoencoder.Autoencoder(**fields)
  assert "\n" not in str(error.value)
