"""Estimates for images larger than a network's window, given their condition.

    (ĉ, ε̂)(p) = Σ_k w_k(p)·denoise(x_k, t; condition_k)(p) / Σ_k w_k(p)                                       (1)

over overlapping windows k, see `nets.tiles`. Windows are blended at every evaluation, not at the end: one sampler moves
the whole image, with one noise, and neighbouring windows agree where they meet.
"""

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.nets import tiles
from diffusion_jax.types import Array, Denoise, Prediction


def tiled(denoise: Callable[..., Prediction], condition: Array, window: int, overlap: int) -> Denoise:
  """Equation (1), of which one window that covers the image is `denoise` itself. A learned variance is left out.

  The encoder sees every window at every step, and norms and attention see a window, not the image.

  Args:
    denoise: (x [B, window, window, C], t, condition [B, window, window, c]) -> Prediction.
    condition: [B, H, W, c], H, W >= window, of the image's size.
    window: pixels a side of what `denoise` takes.
    overlap: pixels that neighbouring windows share at least, 1 to window − 1.

  Returns:
    (x [B, H, W, C], t) -> Prediction.

  Raises:
    ValueError: the overlap is out of range, or x and the condition differ in size.
  """

  def estimate(x, t):
    if x.shape[:3] != condition.shape[:3]:
      raise ValueError(f"x and its condition must have one size, got {list(x.shape)} and {list(condition.shape)}")
    channels = x.shape[-1]

    def part(joined):
      pred = denoise(joined[..., :channels], t, joined[..., channels:])
      return jnp.concatenate([pred.clean, pred.eps], -1)

    both = tiles.apply(part, jnp.concatenate([x, condition], -1), window, overlap)
    return Prediction(both[..., :-channels], both[..., -channels:])

  return estimate
