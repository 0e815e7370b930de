"""Trains the network of the perceptual distance of digits, writes its weights, and shows how far apart digits are.

    python experiments/make_digits_metric.py --overwrite

Writes diffusion_jax/nets/digits_metric.npz, from the 297 digits of the test split alone: generators train on the train
split, and so did the classifier that scores them (make_digits_features.py). A minute on two CPU cores; accuracy on the
train split, which it never saw, .985. The seed is fixed, but rounding differs between machines and JAX versions, and
training amplifies it: the committed file is what results refer to.
"""

import jax
import jax.numpy as jnp
import numpy as np
from make_digits_features import arguments, everything, train, write

from diffusion_jax.nets import digits_metric

SHAPES = {
  "conv1": (3, 3, 1, 24), "conv2": (3, 3, 24, 32), "conv3": (3, 3, 32, 48), "conv4": (3, 3, 48, 64), "logits": (64, 10)
}  # fmt: skip


def distorted(images, key):
  """Turns, scales, shears and shifts each image [8, 8, 1] a little, then changes its contrast, and adds noise."""
  return jax.vmap(_distorted)(images, jax.random.split(key, len(images)))


def _distorted(image, key):
  turn, grow, matrix, shift, contrast, level, noise = jax.random.split(key, 7)
  angle = jax.random.uniform(turn, minval=-0.25, maxval=0.25)
  turned = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
  scale = jax.random.uniform(grow, (2,), minval=0.85, maxval=1.2)
  matrix = turned @ (jnp.diag(scale) + 0.15 * jax.random.uniform(matrix, (2, 2), minval=-1.0))
  move = jax.random.uniform(shift, (2, 1), minval=-1.5, maxval=1.5)
  grid = jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0), indexing="ij")).reshape(2, 64)
  points = matrix @ (grid - 3.5) + 3.5 + move
  ink = jax.scipy.ndimage.map_coordinates(image[..., 0] + 1, list(points), order=1).reshape(8, 8, 1)  # 0 outside
  ink *= jax.random.uniform(contrast, minval=0.6, maxval=1.2)
  return ink - 1 + jax.random.uniform(level, maxval=0.3) * jax.random.normal(noise, ink.shape)


def distances(params, images, labels, seed=0):
  """Mean distance of images to what is near and less near to them, {what: distance}."""
  rng = np.random.Generator(np.random.Philox(seed))
  noise = rng.standard_normal(images.shape, np.float32)
  same = labels == labels[:, None]
  partners = lambda allowed: images[[rng.choice(np.flatnonzero(row)) for row in allowed]]
  others = {f"itself with noise {level}": images + np.float32(level) * noise for level in (0.05, 0.1, 0.2)}
  others["itself a pixel aside"] = np.pad(images, ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=-1)[:, :, :8]
  others["another of its class"] = partners(same & ~np.eye(len(images), dtype=bool))
  others["one of another class"] = partners(~same)
  distance = jax.jit(digits_metric.distance)
  return {name: float(distance(params, images, other).mean()) for name, other in others.items()}


def main():
  args = arguments(__doc__, digits_metric.WEIGHTS, 1500)
  params = train(digits_metric.network, SHAPES, "test", distorted, args)
  for split in ("test", "train"):
    data = everything(split)
    _, logits = digits_metric.network(params, data["image"])
    print(f"{split}: accuracy {np.mean(np.argmax(logits, axis=-1) == data['label']):.4f}")
  for name, value in distances(params, data["image"], data["label"]).items():
    print(f"mean distance of a digit of the train split and {name}: {value:.3f}")
  write(params, args.output)


if __name__ == "__main__":
  main()
