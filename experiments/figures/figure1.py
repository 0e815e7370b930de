"""EDM's Figure 1: noisy images, and what the ideal denoiser of a finite data set makes of them.

  python experiments/figures/figure1.py --out=experiments/results/edm_digits/figure1
  python experiments/figures/figure1.py --data=zip --path=datasets/cifar10-32x32.zip --num_data=5000 --out=figure1

    D(x; σ) = Σ_i w_i·y_i,  w = softmax_i(−‖x − y_i‖²/(2σ²))                                       (1)

The CSV holds, for each σ, the mean over 256 noisy images of exp(entropy of w), the number of images that share the
answer, and the root mean square of D − y.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import outputs, plt, write

from diffusion_jax import cli, sampling
from diffusion_jax.data import sources
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.types import Prediction, like, normal

_DATA = flags.DEFINE_string("data", "digits", "digits, photos or zip.")
_PATH = flags.DEFINE_string("path", "", "Of the zip.")
_NUM_DATA = flags.DEFINE_integer("num_data", 10_000, "At most this many images of the data set.")

SIGMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0)


def weights(x, data, sigma):
  """w of equation (1): x [B, ...], data [N, ...], sigma scalar or [B] -> [B, N]."""
  x, y = x.reshape(len(x), -1), data.reshape(len(data), -1)
  product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
  squares = jnp.sum(y**2, axis=1) - 2 * product  # ‖x‖² is the same for all i
  return jax.nn.softmax(-squares / (2 * like(sigma, squares) ** 2), axis=1)


def ideal_denoiser(data):
  """The Denoise of the EDM process by equation (1) for images [N, H, W, C]."""
  data = jnp.asarray(data)

  def denoise(x, sigma):
    clean = jnp.tensordot(weights(x, data, sigma), data, axes=1, precision=jax.lax.Precision.HIGHEST)
    return Prediction(clean, (x - clean) / like(sigma, x))

  return denoise


def main():
  outputs()
  source = sources.load(_DATA.value, "train", **({"path": _PATH.value} if _PATH.value else {}))
  data = source.gather(np.arange(min(len(source), _NUM_DATA.value)))["image"]
  data = data / np.float32(127.5) - 1 if data.dtype == np.uint8 else data
  rng = np.random.default_rng(0)
  y = jnp.asarray(data[rng.choice(len(data), min(256, len(data)), replace=False)])
  eps = normal(sampling.keys_of(range(len(y))), 0, y.shape[1:])
  rows, noisy, clean = [], [], []
  evaluate = jax.jit(lambda x, sigma: (weights(x, jnp.asarray(data), sigma), ideal_denoiser(data)(x, sigma).clean))
  for sigma in SIGMAS:
    x = y + sigma * eps
    w, d = evaluate(x, max(sigma, 1e-3))
    entropy = -jnp.sum(jnp.where(w > 0, w * jnp.log(w), 0), axis=1)
    rows.append([sigma, float(jnp.mean(jnp.exp(entropy))), float(jnp.sqrt(jnp.mean((d - y) ** 2)))])
    noisy.append(x / np.sqrt(1 + sigma**2))  # at one contrast
    clean.append(d)
  figure, panels = plt.subplots(2, 1, figsize=(12, 7))
  for axes, stack, title in zip(panels, (noisy, clean), ("noisy images, scaled", "ideal denoiser")):
    tiles = np.stack([np.asarray(images[:4]) for images in stack], axis=1).reshape(-1, *y.shape[1:])
    picture = images_lib.grid(tiles, columns=len(SIGMAS), scale=max(1, 32 // y.shape[1]))
    axes.imshow(picture.squeeze(), cmap="gray")
    axes.set(title=title, yticks=[], xticks=(np.arange(len(SIGMAS)) + 0.5) * picture.shape[1] / len(SIGMAS))
    axes.set_xticklabels([f"σ = {sigma:g}" for sigma in SIGMAS], fontsize=7)
  write(figure, ["sigma", "images_sharing", "rms_error"], rows)


if __name__ == "__main__":
  cli.run(main)
