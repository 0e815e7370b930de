"""Distances between images and weights of noise levels. Every function returns one number an example, [B].

    EDM:  λ(σ)·‖D(y + σε; σ) − y‖²,  λ(σ) = (σ² + σ_data²)/(σ·σ_data)²                   (1)

Distances are summed over pixels and channels, as in the papers; the mean over the batch is taken once, in training.
"""

import jax.numpy as jnp

from diffusion_jax.types import Array


def _pixels(x: Array) -> Array:
  return x.reshape(x.shape[0], -1)


def squared_error(a: Array, b: Array) -> Array:
  """‖a − b‖² of images [B, ...]; [B]."""
  return jnp.sum(_pixels(a - b) ** 2, axis=-1)


def absolute_error(a: Array, b: Array) -> Array:
  """‖a − b‖_1 of images [B, ...]; [B]."""
  return jnp.sum(jnp.abs(_pixels(a - b)), axis=-1)


def pseudo_huber(a: Array, b: Array, c: float | None = None) -> Array:
  """√(‖a − b‖² + c²) − c over the whole image vector of D numbers; [B]. Default c = .00054·√D (DDDM, Section 3)."""
  if c is None:
    c = 0.00054 * _pixels(a).shape[-1] ** 0.5
  squared = squared_error(a, b)
  return squared / (jnp.sqrt(squared + c**2) + c)  # the same without cancellation


def edm_weight(sigma: Array, sigma_data: float = 0.5) -> Array:
  """λ(σ) of equation (1), which is 1/c_out²; of σ's shape."""
  return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def inverse_variance_weight(sigma: Array) -> Array:
  """λ(σ) = 1/σ², the VP, VE and iDDPM columns of EDM's Table 1."""
  return 1 / sigma**2
