"""What feature networks share: convolutions in full float32, LPIPS's error, TensorFlow's resize; state dicts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffusion_jax import types
from diffusion_jax.types import Array, Params

# Of pixels in [0, 1]: the mean and deviation that torchvision's ImageNet weights were trained with.
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def check_bytes(name: str, images):
  """Raises ValueError unless images are [B, H, W, 3] uint8 with H, W >= 1."""
  types.check_images(name, images, 3)
  dtype = getattr(images, "dtype", type(images).__name__)
  if dtype != np.uint8:
    raise ValueError(f"{name} must be uint8 in 0..255, got {dtype}")
  if 0 in images.shape[1:3]:
    raise ValueError(f"{name} must have pixels, got shape {list(images.shape)}")


def resize(images, size: int) -> Array:
  """TensorFlow 1's bilinear resize of [B, H, W, C] to [B, size, size, C] in float32.

  Output i lies at input i·in/size: corners are not aligned, pixels have no half, and nothing is averaged when the image
  shrinks. Positions are float32's, as the original's.
  """
  x = jnp.asarray(images, jnp.float32)
  for axis in (2, 1):
    count = x.shape[axis]
    position = np.arange(size, dtype=np.float32) * np.float32(count / size)
    low = np.minimum(position.astype(np.int32), count - 1)
    fraction = (position - low).reshape([-1 if i == axis else 1 for i in range(4)])
    x_low, x_high = (jnp.take(x, at, axis, mode="clip") for at in (low, np.minimum(low + 1, count - 1)))
    x = x_low + (x_high - x_low) * fraction
  return x


def conv(x: Array, kernel: Array, stride: int = 1) -> Array:
  """Convolution [B, H, W, in] * [h, w, in, out] in full float32, padded with zeros where the stride is 1."""
  padding, layout = "SAME" if stride == 1 else "VALID", ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=layout, precision=jax.lax.Precision.HIGHEST
  )


def unit_error(f: Array, g: Array) -> Array:
  """(f/|f| − g/|g|)² of activations [B, h, w, C], with lengths over their channels: LPIPS's squares, of f's shape.

  Differentiable everywhere; where f = g it is 0 with gradient 0, to rounding.
  """
  u, v = _unit(f), _unit(g)
  # The difference as largest less smallest: a compiler that fuses a product of u with u − v would leave 10⁻⁹ of u − u.
  return jnp.square(jnp.maximum(u, v) - jnp.minimum(u, v))


def _unit(x: Array) -> Array:
  """x/(|x| + 10⁻¹⁰). Where all channels are 0, the root's derivative is infinite; there it is not taken."""
  square = jnp.square(x).sum(-1, keepdims=True)
  positive = square > 0
  return x / (jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0) + 1e-10)


def take(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Removes a tensor from a state dict and returns it in float32; ValueError if it is missing or of another shape."""
  if name not in tensors:
    raise ValueError(f"missing tensor {name!r}: expected shape {list(shape)}")
  value = np.asarray(tensors.pop(name))
  if value.shape != shape:
    raise ValueError(f"tensor {name!r} has shape {list(value.shape)}: expected {list(shape)}")
  return value.astype(np.float32, copy=False)


def refuse_others(tensors: dict[str, np.ndarray]):
  """Raises ValueError if tensors are left in a state dict."""
  if tensors:
    name = min(tensors)
    raise ValueError(f"unexpected tensor {name!r} of shape {list(np.shape(tensors[name]))}: the network has no such")


def renamed(tensors: dict[str, np.ndarray], shapes: Params, name_of: Callable, one_by_one: bool = False) -> Params:
  """Parameters of a flax network taken out of a state dict, in float32.

  Args:
    tensors: name -> array in PyTorch layout; those taken are removed.
    shapes: the network's parameters, or their shapes: leaves "kernel" and "scale" are PyTorch's "weight".
    name_of: path of a module, a tuple -> its name in the state dict.
    one_by_one: whether linear maps [in, out] are 1×1 convolutions [out, in, 1, 1] there, rather than [out, in].

  Raises:
    ValueError: a tensor is missing or of another shape.
  """
  params = {}
  for path, leaf in traverse_util.flatten_dict(shapes).items():
    name = f"{name_of(path[:-1])}.{'weight' if path[-1] in ('kernel', 'scale') else path[-1]}"
    if path[-1] != "kernel":
      value = take(tensors, name, leaf.shape)
    elif len(leaf.shape) == 4:
      value = take(tensors, name, (leaf.shape[3], leaf.shape[2], *leaf.shape[:2])).transpose(2, 3, 1, 0)
    else:
      value = take(tensors, name, leaf.shape[::-1] + (1, 1) * one_by_one).reshape(leaf.shape[::-1]).T
    params[path] = jnp.asarray(value)
  return traverse_util.unflatten_dict(params)
