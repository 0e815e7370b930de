"""VGG16's features and LPIPS against torch-fidelity's own numbers, LPIPS's gradients, weights' files and checks."""

import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import drawn_vgg
from nets.drawn_vgg import GOLDEN, MANIFEST, SHAPES

from diffusion_jax.interop import tensor_reader
from diffusion_jax.nets import vgg

torch_files = runpy.run_path(str(GOLDEN.parent / "interop" / "torch_files.py"))


@pytest.fixture(scope="module")
def state_dict():
  """VGG16 without its last layer, which nothing here uses, and LPIPS: 134 million numbers."""
  return drawn_vgg.state_dict("features.", "classifier.0", "classifier.3", "lin")


@pytest.fixture(scope="module")
def convolutions(state_dict):
  return {name: value for name, value in state_dict.items() if name.startswith("features")}


@pytest.fixture(scope="module")
def params(state_dict):
  return vgg.from_state_dict(state_dict)


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN / "metrics.npz") as file:
    return {name: file[name] for name in ("images", "vgg_fc2_relu", "lpips_a", "lpips_b", "lpips")}


def relative_error(out, ref):
  return np.linalg.norm(np.asarray(out) - np.asarray(ref)) / np.linalg.norm(np.asarray(ref))


def pair(size=16, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return [rng.uniform(-1, 1, (2, size, size, 3)).astype(dtype) for _ in range(2)]


distance_and_gradient = jax.jit(jax.value_and_grad(lambda a, b, params: vgg.lpips(params, a, b).sum()))


def test_fc2_is_torch_fidelitys(params, golden):
  out = vgg.fc2(params, golden["images"].transpose(0, 2, 3, 1))
  assert out.shape == (3, 4096) and out.dtype == np.float32
  assert relative_error(out, golden["vgg_fc2_relu"]) < 5e-6


def test_lpips_is_torch_fidelitys(params, golden):
  a, b = (golden[name].transpose(0, 2, 3, 1) / np.float32(127.5) - 1 for name in ("lpips_a", "lpips_b"))
  out = vgg.lpips(params, a, b)
  assert out.shape == (3,) and out.dtype == np.float32
  assert relative_error(out, golden["lpips"]) < 1e-6
  assert relative_error(jax.jit(vgg.lpips)(params, a, b), out) < 1e-6
  assert relative_error(vgg.lpips(params, b, a), out) < 1e-6


def test_lpips_takes_bytes(params):
  a, b = (np.round(127.5 * images + 127.5).astype(np.uint8) for images in pair())
  out = vgg.lpips(params, *(images.astype(np.float32) / 127.5 - 1 for images in (a, b)))
  assert relative_error(vgg.lpips(params, a, b), out) < 1e-5


def test_lpips_has_the_gradient_of_finite_differences(params, x64):
  exact = jax.tree.map(lambda p: p.astype(jnp.float64), {name: params[name] for name in ("features", "lin")})
  a, b = pair(dtype=np.float64)
  loss = lambda a: vgg.lpips(exact, a, b).sum()
  gradient, (direction, _) = jax.grad(loss)(a), pair(seed=1, dtype=np.float64)
  step = 1e-7  # a larger one crosses kinks
  difference = (loss(a + step * direction) - loss(a - step * direction)) / (2 * step)
  np.testing.assert_allclose(np.vdot(gradient, direction), difference, rtol=1e-6)


def test_lpips_of_an_image_and_itself(params):
  a, _ = pair()
  distance, gradient = distance_and_gradient(a, a, {name: params[name] for name in ("features", "lin")})
  # Two passes may add in different orders. Between two images the distance is 0.2 and the gradient 10⁻³.
  assert distance < 1e-11 and np.abs(gradient).max() < 1e-7


def test_lpips_where_no_channel_is_active(convolutions, state_dict):
  """Without biases and with a positive first layer a dark image activates nothing, and a bright one does."""
  tensors = {name: np.zeros_like(value) if name.endswith("bias") else value for name, value in convolutions.items()}
  tensors["features.0.weight"] = np.abs(tensors["features.0.weight"])
  params = vgg.from_state_dict(tensors | {name: state_dict[name] for name in MANIFEST["lpips"]})
  dark, bright = -np.ones((2, 16, 16, 3), np.float32), np.ones((2, 16, 16, 3), np.float32)
  for a, b, active in ((dark, 0.9 * dark, False), (dark, bright, True), (bright, dark, True)):
    distance, gradient = distance_and_gradient(a, b, params)
    assert distance > 0 if active else distance == 0
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("container", ["zip_file", "legacy_file"])
def test_weights_from_a_file_of_pytorch(container, convolutions, state_dict, tmp_path):
  storages = {name: state_dict[name] for name in MANIFEST["lpips"]}
  storage = torch_files["storage" if container == "zip_file" else "legacy_storage"]
  value = {name: torch_files["tensor"](storage(name, array), array.shape) for name, array in storages.items()}
  (tmp_path / "lpips.pth").write_bytes(torch_files[container](value, storages))
  params = vgg.from_state_dict(convolutions | tensor_reader.read_state_dict(tmp_path / "lpips.pth"))
  for out, name in zip(params["lin"], MANIFEST["lpips"], strict=True):
    np.testing.assert_array_equal(out, state_dict[name].ravel())


def test_parts_may_lack(convolutions, params):
  only = vgg.from_state_dict(convolutions)
  with pytest.raises(ValueError, match="fc2 needs the tensors 'classifier.0"):
    vgg.fc2(only, np.zeros((1, 8, 8, 3), np.uint8))
  with pytest.raises(ValueError, match="lpips needs the tensors 'lin0"):
    vgg.lpips(only, *pair())
  assert jax.tree.structure(only["features"]) == jax.tree.structure(params["features"])


@pytest.mark.parametrize("name", ["features.0.weight", "features.28.bias", "classifier.3.bias", "lin3.model.1.weight"])
def test_missing_or_misshapen_tensors(state_dict, name):
  needed = {key: value for key, value in state_dict.items() if key.startswith(("features", name[:3]))}
  with pytest.raises(ValueError, match=f"missing tensor '{name}': expected shape"):
    vgg.from_state_dict({key: value for key, value in needed.items() if key != name})
  shape = list(SHAPES[name])
  with pytest.raises(ValueError) as error:
    vgg.from_state_dict(needed | {name: np.zeros([2, *shape])})
  assert f"tensor {name!r} has shape {[2, *shape]}: expected {shape}" in str(error.value)


def test_unexpected_tensors(convolutions):
  with pytest.raises(ValueError, match=r"unexpected tensor 'features.1.weight' of shape \[64\]"):
    vgg.from_state_dict(convolutions | {"features.1.weight": np.zeros(64)})  # VGG16 with batch normalisation
  with pytest.raises(ValueError, match=r"tensor 'classifier.6.bias' has shape \[10\]: expected \[1000\]"):
    vgg.from_state_dict(convolutions | {"classifier.6.bias": np.zeros(10)})
  with pytest.raises(ValueError, match="missing tensor 'classifier.0.weight'"):
    vgg.from_state_dict(convolutions | {"classifier.0.bias": np.zeros(4096)})


@pytest.mark.parametrize(
  "images,message",
  [
    (np.zeros((2, 8, 8, 3), np.float32), "images must be uint8 in 0..255, got float32"),
    (np.zeros((8, 8, 3), np.uint8), r"images must be \[B, H, W, 3\], got shape \[8, 8, 3\]"),
    (np.zeros((2, 8, 8, 1), np.uint8), r"images must be \[B, H, W, 3\], got shape \[2, 8, 8, 1\]"),
  ],
)
def test_wrong_images_for_fc2(params, images, message):
  with pytest.raises(ValueError, match=message):
    vgg.fc2(params, images)


@pytest.mark.parametrize(
  "a,b,message",
  [
    (np.zeros((2, 16, 16, 3), np.int32), None, "a must be floats in .* or uint8 in 0..255, got int32"),
    (np.zeros((16, 16, 3), np.float32), None, r"a must be \[B, H, W, 3\], got shape \[16, 16, 3\]"),
    (np.zeros((2, 15, 16, 3), np.float32), None, r"a must be at least 16×16, got shape \[2, 15, 16, 3\]"),
    (np.zeros((2, 16, 16, 3), np.float32), np.zeros((1, 16, 16, 3), np.float32), r"b must have the shape of a"),
    (np.zeros((2, 16, 16, 3), np.float32), np.zeros((2, 16, 16, 1), np.float32), r"b must be \[B, H, W, 3\]"),
  ],
)
def test_wrong_images_for_lpips(params, a, b, message):
  with pytest.raises(ValueError, match=message):
    vgg.lpips(params, a, a if b is None else b)
