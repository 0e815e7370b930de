"""A perceptual distance of 8×8 digits: LPIPS's form, on the activations of a small classifier of digits.

    x → conv 24 → relu → conv 32 → relu f_1 → mean 2×2 → conv 48 → relu f_2 → mean 2×2 → conv 64 → relu f_3
      → mean → dense 10 → logits                                                    convolutions are 3×3          (1)
    d(a, b) = Σ_l mean_{h,w} Σ_c (n_l(a) − n_l(b))²_hwc,  n_l = f_l/(|f_l| + 10⁻¹⁰)                                  (2)

It is not LPIPS, and its numbers do not compare with LPIPS's. experiments/make_digits_metric.py trained the weights,
digits_metric.npz, on the 297 images of the test split alone: as a loss it shares neither images nor weights with
evaluation/digits.py, which scores, and no images with generators, which train on the train split. The form is that of
Zhang et al. 2018 with w = 1.
"""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.nets import pretrained
from diffusion_jax.types import Array, Params

WEIGHTS = pathlib.Path(__file__).with_name("digits_metric.npz")
STAGES = (("conv1", "conv2"), ("conv3",), ("conv4",))  # convolutions between two poolings


def network(params: Params, images: Array) -> tuple[list[Array], Array]:
  """Equation (1): images [B, 8, 8, 1] in [−1, 1] -> ([f_1, f_2, f_3], logits [B, 10])."""
  maps, x = [], images
  for stage in STAGES:
    x = nn.avg_pool(x, (2, 2), (2, 2)) if maps else x
    for layer in stage:
      x = nn.relu(pretrained.conv(x, params[f"{layer}_kernel"]) + params[f"{layer}_bias"])
    maps.append(x)
  logits = jnp.dot(x.mean((1, 2)), params["logits_kernel"], precision=jax.lax.Precision.HIGHEST)
  return maps, logits + params["logits_bias"]


def distance(params: Params, a: Array, b: Array) -> Array:
  """The distance between digits, equation (2): [B], differentiable everywhere.

  Where a = b it is 0 with gradient 0, to rounding.

  Args:
    params: see `params`.
    a: [B, 8, 8, 1] in [−1, 1], floating-point; values outside are taken as they are.
    b: the same.

  Raises:
    ValueError: images of other shapes or types.
  """
  for name, images in (("a", a), ("b", b)):
    if jnp.shape(images)[1:] != (8, 8, 1) or not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(f"{name} must be [B, 8, 8, 1] in floats, got shape {list(jnp.shape(images))} {images.dtype}")
  if a.shape != b.shape:
    raise ValueError(f"b must have the shape of a, {list(a.shape)}, got {list(b.shape)}")
  maps = [network(params, images)[0] for images in (a, b)]
  return sum(pretrained.unit_error(f, g).sum(-1).mean((1, 2)) for f, g in zip(*maps))


@functools.lru_cache(maxsize=1)
def params() -> dict[str, np.ndarray]:
  """The committed weights of equation (1); not to be changed."""
  with np.load(WEIGHTS) as file:
    return dict(file)
