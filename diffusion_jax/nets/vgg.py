"""VGG16 and what is made of it: features of images for precision and recall, and the distance LPIPS.

    fc2(u) = relu(W_2 relu(W_1 φ(u) + b_1) + b_2)       φ: the last max-pool, of the image resized to 224×224      (1)
    n_l(x) = f_l(x)/(|f_l(x)| + 10⁻¹⁰)                  f_l: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3            (2)
    LPIPS(a, b) = Σ_l mean_{h,w} Σ_c w_lc·(n_l(a) − n_l(b))²_hwc                                                    (3)

Layers have torchvision's names ("features.0" .. "classifier.3"), w_l those of LPIPS 0.1 ("lin0.model.1.weight").
Products are in full float32 on every device. Sources: Simonyan and Zisserman 2015; Zhang et al. 2018; Kynkäänniemi et
al. 2019 for the features.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import types
from diffusion_jax.nets import pretrained
from diffusion_jax.types import Array, Params

SIZE = 224  # pixels a side, of fc2's images; LPIPS takes them as they are
RESIZE = f"TensorFlow 1's bilinear to {SIZE}×{SIZE}"
MIN_SIZE = 16  # of LPIPS's images: four max-pools
# Convolutions between two max-pools, by their places in torchvision's list, and their channels.
STAGES = (("0", "2"), ("5", "7"), ("10", "12", "14"), ("17", "19", "21"), ("24", "26", "28"))
WIDTHS = (64, 128, 256, 512, 512)

# Of pixels in [−1, 1]: pretrained.IMAGENET_MEAN and IMAGENET_STD in LPIPS's rounding.
_SHIFT, _SCALE = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])


def from_state_dict(state_dict: Mapping[str, np.ndarray]) -> Params:
  """Parameters for `fc2` and `lpips`.

  Args:
    state_dict: name -> array in PyTorch layout, torchvision's VGG16 and LPIPS's linear weights in one mapping. Without
      "classifier.*" there is no fc2, without "lin*" no lpips; the last layer, "classifier.6", is not used.

  Raises:
    ValueError: a tensor is missing, unexpected or of another shape.
  """
  tensors, params = dict(state_dict), {"features": {}}
  channels = 3
  for layers, width in zip(STAGES, WIDTHS):
    for layer in layers:
      kernel = pretrained.take(tensors, f"features.{layer}.weight", (width, channels, 3, 3)).transpose(2, 3, 1, 0)
      bias = pretrained.take(tensors, f"features.{layer}.bias", (width,))
      params["features"][layer] = {"kernel": kernel, "bias": bias}
      channels = width
  last = {"classifier.6.weight": (1000, 4096), "classifier.6.bias": (1000,)}
  for name in [name for name in last if name in tensors]:
    pretrained.take(tensors, name, last[name])
  if any(name.startswith("classifier.") for name in tensors):
    params["classifier"] = {}
    for layer, inputs in (("0", 512 * 7 * 7), ("3", 4096)):  # weights stay [out, in]: 100 million numbers
      weight = pretrained.take(tensors, f"classifier.{layer}.weight", (4096, inputs))
      bias = pretrained.take(tensors, f"classifier.{layer}.bias", (4096,))
      params["classifier"][layer] = {"weight": weight, "bias": bias}
  if any(name.startswith("lin") for name in tensors):
    shapes = [(f"lin{i}.model.1.weight", (1, width, 1, 1)) for i, width in enumerate(WIDTHS)]
    params["lin"] = [pretrained.take(tensors, name, shape)[0, :, 0, 0] for name, shape in shapes]
  pretrained.refuse_others(tensors)
  return jax.tree.map(jnp.asarray, params)


def fc2(params: Params, images) -> Array:
  """Second hidden layer of the classifier after its ReLU, equation (1): [B, 4096] float32, without dropout.

  Args:
    params: from `from_state_dict`, with the classifier.
    images: [B, H, W, 3] uint8, of any size; resized as Inception's are.

  Raises:
    ValueError: images of another type or shape, or parameters without the classifier.
  """
  pretrained.check_bytes("images", images)
  if "classifier" not in params:
    raise ValueError("fc2 needs the tensors 'classifier.0.*' and 'classifier.3.*', and the state dict had none")
  return _fc2({name: params[name] for name in ("features", "classifier")}, images)


@jax.jit
def _fc2(params, images):
  x = pretrained.resize(images, SIZE)
  x = (x - np.float32(255 * pretrained.IMAGENET_MEAN)) / np.float32(255 * pretrained.IMAGENET_STD)
  x = _pooled(_taps(params["features"], x)[-1])
  x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # the order in which the weights see them
  for layer in params["classifier"].values():
    x = jnp.einsum("bi,oi->bo", x, layer["weight"], precision=jax.lax.Precision.HIGHEST)
    x = nn.relu(x + layer["bias"])
  return x


def lpips(params: Params, a, b) -> Array:
  """The distance LPIPS between images, equation (3): [B], differentiable everywhere.

  Computed in the parameters' type, float32. Where a = b it is 0 with gradient 0, to rounding.

  Args:
    params: from `from_state_dict`, with the linear weights.
    a: [B, H, W, 3] in [−1, 1], or uint8 in 0..255; H, W >= 16. They are not resized.
    b: the same.

  Raises:
    ValueError: images of other types or shapes, or parameters without the linear weights.
  """
  for name, images in (("a", a), ("b", b)):
    types.check_images(name, images, 3)
    dtype = getattr(images, "dtype", type(images).__name__)
    if dtype != np.uint8 and not (hasattr(images, "dtype") and jnp.issubdtype(dtype, jnp.floating)):
      raise ValueError(f"{name} must be floats in [−1, 1] or uint8 in 0..255, got {dtype}")
    if min(images.shape[1:3]) < MIN_SIZE:
      raise ValueError(f"{name} must be at least {MIN_SIZE}×{MIN_SIZE}, got shape {list(images.shape)}")
  if a.shape != b.shape:
    raise ValueError(f"b must have the shape of a, {list(a.shape)}, got {list(b.shape)}")
  if "lin" not in params:
    raise ValueError("lpips needs the tensors 'lin0.model.1.weight' to 'lin4...', and the state dict had none")
  return _lpips({name: params[name] for name in ("features", "lin")}, a, b)


@jax.jit
def _lpips(params, a, b):
  maps = [_taps(params["features"], _scaled(images, params["lin"][0].dtype)) for images in (a, b)]
  return sum((pretrained.unit_error(f, g) * weight).sum(-1).mean((1, 2)) for f, g, weight in zip(*maps, params["lin"]))


def _scaled(images: Array, dtype) -> Array:
  x = jnp.asarray(images, dtype)
  x = x / 127.5 - 1 if images.dtype == jnp.uint8 else x
  return (x - _SHIFT.astype(dtype)) / _SCALE.astype(dtype)


def _taps(layers: Params, x: Array) -> list[Array]:
  """The last activations before each of the five max-pools."""
  taps = []
  for stage in STAGES:
    x = _pooled(x) if taps else x
    for layer in stage:
      x = nn.relu(pretrained.conv(x, layers[layer]["kernel"]) + layers[layer]["bias"])
    taps.append(x)
  return taps


def _pooled(x: Array) -> Array:
  return nn.max_pool(x, (2, 2), (2, 2))
