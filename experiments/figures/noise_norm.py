"""Whether a denoiser of digits tells the noise's norm: the slope of ‖ε̂‖ on ‖ε‖ over 256 digits, by noise level.

  python experiments/figures/noise_norm.py --workdir=runs/table1/ve100_0

Prints σ, the slope (1 for a denoiser that knows the norm, 0 for one that does not), and the root mean square of ε̂ − ε.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import cli, sampling
from diffusion_jax.data import sources
from diffusion_jax.types import normal

model_flags = cli.ModelFlags(published=False)


def main():
  _, method, variables, _, _ = model_flags.open()
  batch = sources.load("digits", "train").gather(np.arange(256))
  images, cond = jnp.asarray(batch["image"]), {"label": jnp.asarray(batch["label"])}
  eps = normal(sampling.keys_of(range(256)), 0, images.shape[1:])
  denoise = jax.jit(lambda x, sigma: method.denoise(variables, x, sigma, cond).eps)
  norm = lambda x: np.linalg.norm(np.asarray(x).reshape(256, -1), axis=1)
  for sigma in (80.0, 20.0, 5.0, 1.0):
    got = denoise(images + sigma * eps, jnp.float32(sigma))
    print(f"{sigma:g} {np.polyfit(norm(eps), norm(got), 1)[0]:.3f} {np.sqrt(np.mean((got - eps) ** 2)):.4f}")


if __name__ == "__main__":
  cli.run(main)
