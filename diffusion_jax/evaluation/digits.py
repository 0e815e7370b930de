"""Quality of generated 8×8 digits: Fréchet distance in the features of a small classifier.

    x → conv 3×3, 16 → silu → conv 3×3, 32 → silu → mean 2×2 → dense 64 → silu → f → dense 10 → logits     (1)

f [64] are the features. experiments/make_digits_features.py trained the weights, on the train split alone, and writes
digits_features.npz. Images are scored as they would be saved, in whole bytes. Distances are in squared units of f: they
compare with `references`, not with FID.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import sources
from diffusion_jax.evaluation import frechet
from diffusion_jax.evaluation import images as images_lib

WEIGHTS = pathlib.Path(__file__).with_name("digits_features.npz")
NUM_FEATURES = 64
BATCH = 512
EXACT = jax.lax.Precision.HIGHEST  # an accelerator's shorter products would give other distances


def network(params, images):
  """Equation (1): images [B, 8, 8, 1] in [−1, 1] -> (features [B, 64], logits [B, 10])."""
  x = images
  for layer in ("conv1", "conv2"):
    x = jax.lax.conv_general_dilated(
      x, params[f"{layer}_kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=EXACT
    )
    x = jax.nn.silu(x + params[f"{layer}_bias"])
  x = x.reshape(len(x), 4, 2, 4, 2, -1).mean(axis=(2, 4)).reshape(len(x), -1)
  x = jax.nn.silu(jnp.dot(x, params["dense_kernel"], precision=EXACT) + params["dense_bias"])
  return x, jnp.dot(x, params["logits_kernel"], precision=EXACT) + params["logits_bias"]


def scaled(images):
  """Images of bytes, any shape, in [−1, 1], where the network expects them."""
  return images.astype(jnp.float32) / 127.5 - 1


def features(images) -> np.ndarray:
  """Features f of equation (1).

  Args:
    images: [N, 8, 8, 1] in [−1, 1], N >= 1; rounded to bytes by `images.to_uint8`.

  Returns:
    [N, 64] float32.

  Raises:
    ValueError: wrong shape, integers, or values that are not finite.
  """
  return _apply(images)[0]


def logits(images) -> np.ndarray:
  """Class logits [N, 10] float32 of images as in `features`."""
  return _apply(images)[1]


def score(images, real=None) -> dict[str, float]:
  """Fréchet distance of generated to real digits.

  Args:
    images: [N, 8, 8, 1] in [−1, 1], N >= 2; compare runs at one N, since a small N adds bias.
    real: [M, 8, 8, 1] real images; all 1,797 by default.

  Returns:
    "frechet": the distance; "num_images": N.

  Raises:
    ValueError: as `features`, or fewer than two images.
  """
  fake = features(images)
  target = None if real is None else frechet.moments(features(real))
  return {"frechet": _distance(fake, target), "num_images": len(fake)}


def references(seed: int = 0, draws: int = 10) -> dict[str, dict[str, float]]:
  """What `score` gives where the answer is known: the scale on which to read it.

  Args:
    seed: seed of the draws.
    draws: how many times each is drawn anew, >= 2.

  Returns:
    "resampled" (1,797 real digits drawn with replacement, to all digits: as good as a generator gets), "halves" (898
    real digits to the 899 others) and "noise" (1,797 images of N(0, 1) clipped to [−1, 1], to all digits), each
    {"mean", "std"} over the draws.
  """
  if draws < 2:
    raise ValueError(f"draws must be >= 2, got {draws}")
  real = features(_real())
  n = len(real)
  found = {"resampled": [], "halves": [], "noise": []}
  for draw in range(draws):
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, draw])))
    order = rng.permutation(n)
    noise = np.clip(rng.standard_normal((n, 8, 8, 1), np.float32), -1, 1)
    found["resampled"].append(_distance(real[rng.integers(n, size=n)]))
    found["halves"].append(_distance(real[order[: n // 2]], frechet.moments(real[order[n // 2 :]])))
    found["noise"].append(_distance(features(noise)))
  return {name: {"mean": float(np.mean(v)), "std": float(np.std(v, ddof=1))} for name, v in found.items()}


def _distance(fake, target=None) -> float:
  """From features [N, 64] to the moments `target`, those of all real digits by default."""
  return frechet.frechet_distance(*frechet.moments(fake), *(target or _real_moments()))


def _apply(images):
  images = np.asarray(images)
  if images.ndim != 4 or images.shape[1:] != (8, 8, 1) or not len(images):
    raise ValueError(f"images must be [N, 8, 8, 1] with N >= 1, got shape {list(images.shape)}")
  n = len(images)
  batches = -(-n // BATCH)
  padded = np.zeros((batches * BATCH, 8, 8, 1), np.uint8)  # whole batches: one compilation for every N
  padded[:n] = images_lib.to_uint8(images)
  parts = [_network(params(), part) for part in np.split(padded, batches)]
  return tuple(np.concatenate(part)[:n] for part in zip(*parts))


_network = jax.jit(lambda params, images: network(params, scaled(images)))


@functools.lru_cache(maxsize=1)
def params() -> dict[str, np.ndarray]:
  """The committed weights of equation (1); not to be changed."""
  with np.load(WEIGHTS) as file:
    return dict(file)


def _real() -> np.ndarray:
  source = sources.load("digits", "all")
  return source.gather(np.arange(len(source)))["image"]


@functools.lru_cache(maxsize=1)
def _real_moments():
  return frechet.moments(features(_real()))
