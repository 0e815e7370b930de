"""Diffusion in the latent space of an autoencoder (Rombach et al. 2022): what a network sees, and the way back.

    x_0 = scale·z,  z = μ(x) + σ(x)·ε ~ q(z|x)                                                             (1)
    x̂   = D(x_0/scale)                                                                                    (2)

z is drawn anew at every use of an example. `nets.autoencoder` has encoder and decoder D.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import mesh
from diffusion_jax.nets import autoencoder
from diffusion_jax.types import Array, Key, Params

WINDOW = 64  # pixels of z a side, above which it is decoded in tiles
_PIXELS = 1 << 20  # of the images that a device decodes at a time


def draw(keys: Key, mean: Array, log_variance: Array, scale: float) -> Array:
  """Equation (1): [B, h, w, z]; that of example i from keys[i] alone.

  Raises:
    ValueError: scale is not positive, as where it has not been measured.
  """
  if not scale > 0:
    raise ValueError(f"config.latent.scale = {scale!r}: `data.latents.resolve` puts in what was measured")
  return scale * autoencoder.sample(keys, mean, log_variance)


class Decoder(NamedTuple):
  """Equation (2), in tiles where the latent is larger than WINDOW.

  Attributes:
    network: the autoencoder.
    params: its parameters.
    scale: config.latent.scale.
    grey: give the mean of the channels, [N, H, W, 1]: of images that were grey before they were encoded.
  """

  network: autoencoder.Autoencoder
  params: Params
  scale: float
  grey: bool = False

  def traced(self, x0: Array) -> Array:
    """`__call__` as part of a traced program: the same images, of the whole batch at a time."""
    held = jax.lax.optimization_barrier  # each part as if it were a program of its own, see `sampling.sample`
    divided = lambda x, number: held(x / held(jnp.full_like(x, number)))  # XLA would multiply by 1/number
    images = held(_decode(self.network, *held((self.params, divided(held(x0), self.scale)))))
    return divided(images[..., :1] + images[..., 1:2] + images[..., 2:], 3) if self.grey else images

  def __call__(self, x0) -> np.ndarray:
    """[N, h, w, z] -> images [N, H, W, C] in about [−1, 1], float32, by batches over the local devices."""
    x0, params = np.asarray(x0), mesh.everywhere(self.params)
    pixels = x0.shape[1] * x0.shape[2] * self.network.factor**2
    size = max(1, _PIXELS // pixels) * jax.local_device_count()
    images = [
      np.asarray(_decode(self.network, params, mesh.spread(x0[rows] / np.float32(self.scale))))
      for rows in mesh.batches(len(x0), size)
    ]
    images = np.concatenate(images)[: len(x0)]
    return images.mean(-1, keepdims=True) if self.grey else images


@functools.partial(jax.jit, static_argnums=0)
def _decode(network, params, z):
  return autoencoder.decode_tiled(params, z, network, WINDOW)
