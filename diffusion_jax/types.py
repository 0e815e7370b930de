"""The vocabulary: arrays, keys, and the pair of estimates that joins every method to every sampler.

    (ĉ, ε̂) = denoise(x_t, t)                                                            (1)

Images are [B, H, W, C] float32 in [−1, 1]; a time t is a scalar or [B]; `keys` holds one PRNG key an image, [B].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array  # a typed PRNG key, or an array [B] of them
Params = Any  # a pytree of arrays


class Prediction(NamedTuple):
  """What a network says about x_t: the one thing that samplers see.

  Attributes:
    clean: ĉ, the clean component [B, ...]: the image x_0, or φ of a decoupled process.
    eps: ε̂, the unit-variance noise in x_t [B, ...].
    log_variance: for networks that learn the reverse variance, their raw interpolation output [B, ...], else None.
  """

  clean: Array
  eps: Array
  log_variance: Array | None = None


# denoise(x_t [B, ...], t scalar or [B]); DDDM's also takes its previous estimate: denoise(x_t, t, x̄_0 [B, ...])
Denoise = Callable[..., Prediction]


def like(value: Array, x: Array) -> Array:
  """Reshapes a scalar or [B] `value` so that it broadcasts against x [B, ...]."""
  value = jnp.asarray(value)
  if value.ndim > 1 or (value.ndim == 1 and value.shape[0] not in (1, x.shape[0])):
    raise ValueError(f"a time or noise level must be a scalar or [{x.shape[0]}] for x {x.shape}, got {value.shape}")
  return value.reshape(value.shape + (1,) * (x.ndim - 1)) if value.ndim else value


def normal(keys: Key, stream: int | Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
  """Draws N(0, I) images [B, *shape], image i from fold_in(keys[i], stream) alone.

  The draw of an image is bit-identical for every batch size, device count and host count.

  Args:
    keys: [B] PRNG keys, one an image.
    stream: which draw of the image this is; a sampler uses its step index.
    shape: shape of one image, (H, W, C).
    dtype: floating-point type of the result.
  """
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, stream), shape, dtype))(keys)


def check_images(name: str, x: Array, channels: int | None = None):
  """Raises ValueError unless x is [B, H, W, C] (with C = channels, if given)."""
  shape = jnp.shape(x)
  if len(shape) != 4 or (channels is not None and shape[-1] != channels):
    raise ValueError(f"{name} must be [B, H, W, {'C' if channels is None else channels}], got shape {list(shape)}")
