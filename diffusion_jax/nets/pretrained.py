"""What published feature networks share: bytes in, TensorFlow's resize, convolutions in full float32, state dicts."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import types
from diffusion_jax.types import Array


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
