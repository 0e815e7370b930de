"""Inception against torch-fidelity's own numbers, its resize against a loop, its weights' files and its checks."""

import json
import math
import pathlib
import runpy
from fractions import Fraction

import jax
import numpy as np
import pytest

from diffusion_jax import mesh
from diffusion_jax.interop import tensor_reader
from diffusion_jax.nets import inception, pretrained

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SHAPES = json.loads((GOLDEN / "metrics_state_dicts.json").read_text())["inception"]
WIDTHS = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits": 1008}
draw = runpy.run_path(str(GOLDEN / "draw.py"))["draw"]
torch_files = runpy.run_path(str(GOLDEN.parent / "interop" / "torch_files.py"))


@pytest.fixture(scope="module")
def state_dict():
  return {name: draw(name, shape, 0, math.sqrt(2)) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def params(state_dict):
  return inception.from_state_dict(state_dict)


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN / "metrics.npz") as file:
    return {name: file[name] for name in file.files if name == "images" or name.startswith("inception")}


@pytest.fixture(scope="module")
def features(params, golden):
  return inception.features(params, golden["images"].transpose(0, 2, 3, 1))


def relative_error(out, ref):
  return np.linalg.norm(np.asarray(out) - np.asarray(ref)) / np.linalg.norm(np.asarray(ref))


@pytest.mark.parametrize("layer", WIDTHS)
def test_features_are_torch_fidelitys(features, golden, layer):
  assert features[layer].shape == (3, WIDTHS[layer]) and features[layer].dtype == np.float32
  assert relative_error(features[layer], golden[f"inception_{layer}"]) < 2e-6


def test_logits_of_the_inception_score_lack_the_bias(features, golden, state_dict):
  assert relative_error(features["logits_unbiased"] + state_dict["fc.bias"], golden["inception_logits"]) < 2e-6
  assert set(features) == {*WIDTHS, "logits_unbiased"}


def test_images_over_devices_have_the_same_features(params, features, golden):
  images = golden["images"].transpose(0, 2, 3, 1)[np.arange(8) % 3]
  out = jax.jit(inception.features)(mesh.everywhere(params), mesh.spread(images))
  assert len(out["2048"].sharding.device_set) == jax.local_device_count() == 8
  for layer, values in features.items():
    assert relative_error(out[layer], np.asarray(values)[np.arange(8) % 3]) < 2e-6


def resized_by_loop(image, size):
  """TensorFlow 1's rule, in exact fractions."""
  height, width = image.shape[:2]
  out = np.empty((size, size, image.shape[2]))
  for i in range(size):
    for j in range(size):
      y, x = Fraction(i * height, size), Fraction(j * width, size)
      y0, x0 = math.floor(y), math.floor(x)
      y1, x1, dy, dx = min(y0 + 1, height - 1), min(x0 + 1, width - 1), float(y - y0), float(x - x0)
      top, bottom = (image[row, x0] * (1 - dx) + image[row, x1] * dx for row in (y0, y1))
      out[i, j] = top * (1 - dy) + bottom * dy
  return out


@pytest.mark.parametrize("height,width", [(7, 5), (1, 2), (19, 19), (20, 18), (64, 45), (100, 190)])
def test_resize_is_the_loop(height, width):
  image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
  out = pretrained.resize(image[None], 19)
  assert out.shape == (1, 19, 19, 3) and out.dtype == np.float32
  np.testing.assert_allclose(out[0], resized_by_loop(image.astype(float), 19), atol=2e-3)  # float32 positions


def test_resize_at_the_networks_size():
  row = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 1), dtype=np.uint8)
  out = np.asarray(pretrained.resize(row, inception.SIZE))[0, 0, :, 0]
  np.testing.assert_allclose(out, np.interp(np.arange(299) * (32 / 299), np.arange(32), row[0, 0, :, 0]), atol=1e-3)
  assert out[0] == row[0, 0, 0, 0] and out[-1] == row[0, 0, -1, 0]
  same = np.random.default_rng(0).integers(0, 256, (1, 299, 299, 1), dtype=np.uint8)
  np.testing.assert_array_equal(pretrained.resize(same, inception.SIZE), same)


@pytest.mark.parametrize("container", ["zip_file", "legacy_file"])
def test_weights_from_a_file_of_pytorch(container, state_dict, params, tmp_path):
  """One layer as a file has it, its counter of batches included, among the others."""
  layer = "Conv2d_1a_3x3."
  storages = {name: value for name, value in state_dict.items() if name.startswith(layer)}
  storages[f"{layer}bn.num_batches_tracked"] = np.zeros((), np.int64)
  storage = torch_files["storage" if container == "zip_file" else "legacy_storage"]
  value = {name: torch_files["tensor"](storage(name, array), array.shape) for name, array in storages.items()}
  (tmp_path / "weights.pth").write_bytes(torch_files[container](value, storages))
  read = tensor_reader.read_state_dict(tmp_path / "weights.pth")
  assert set(read) == set(storages)
  others = {name: value for name, value in state_dict.items() if not name.startswith(layer)}
  out = inception.from_state_dict(read | others)
  np.testing.assert_array_equal(out["Conv2d_1a_3x3"]["kernel"], params["Conv2d_1a_3x3"]["kernel"])
  np.testing.assert_array_equal(out["Conv2d_1a_3x3"]["bias"], params["Conv2d_1a_3x3"]["bias"])
  assert jax.tree.structure(out) == jax.tree.structure(params)


@pytest.mark.parametrize(
  "name",
  ["Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch1x1.bn.running_var", "Mixed_7c.branch_pool.bn.bias", "fc.weight"],
)
def test_missing_or_misshapen_tensors(state_dict, name):
  with pytest.raises(ValueError, match=f"missing tensor '{name}': expected shape"):
    inception.from_state_dict({key: value for key, value in state_dict.items() if key != name})
  shape = list(SHAPES[name])
  with pytest.raises(ValueError) as error:
    inception.from_state_dict(state_dict | {name: np.zeros([2, *shape])})
  assert f"tensor {name!r} has shape {[2, *shape]}: expected {shape}" in str(error.value)


def test_unexpected_tensors(state_dict):
  with pytest.raises(ValueError, match=r"unexpected tensor 'AuxLogits.fc.bias' of shape \[1000\]"):
    inception.from_state_dict(state_dict | {"AuxLogits.fc.bias": np.zeros(1000)})
  inception.from_state_dict(state_dict | {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64)})


@pytest.mark.parametrize(
  "images,message",
  [
    (np.zeros((2, 8, 8, 3), np.float32), "images must be uint8 in 0..255, got float32"),
    (np.zeros((2, 8, 8, 3), np.int32), "images must be uint8 in 0..255, got int32"),
    (np.zeros((8, 8, 3), np.uint8), r"images must be \[B, H, W, 3\], got shape \[8, 8, 3\]"),
    (np.zeros((2, 3, 8, 8), np.uint8), r"images must be \[B, H, W, 3\], got shape \[2, 3, 8, 8\]"),
    (np.zeros((2, 8, 0, 3), np.uint8), r"images must have pixels, got shape \[2, 8, 0, 3\]"),
  ],
)
def test_wrong_images(params, images, message):
  with pytest.raises(ValueError, match=message):
    inception.features(params, images)
