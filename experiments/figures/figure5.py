"""EDM's Figure 5a: the loss at each noise level, before and after training, and where training draws its noise levels.

  python experiments/figures/figure5.py --workdir=runs/table1/edm_0 --out=experiments/results/edm_digits/figure5a
  python experiments/figures/figure5.py --checkpoint=FILE.pkl --path=datasets/cifar10-32x32.zip --out=figure5a

λ(σ)·‖D(y + σε; σ) − y‖² a pixel with EDM's λ, over --num_images images of the training data; the band is their standard
deviation. Before training means the first state of the run's config: there is none for a published checkpoint.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import outputs, plt, write

from diffusion_jax import cli, losses, sampling
from diffusion_jax.data import sources
from diffusion_jax.training import start, state
from diffusion_jax.types import normal

_PATH = flags.DEFINE_string("path", "", "A zip of images, for a published checkpoint.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 1000, "Images a noise level.")
model_flags = cli.ModelFlags()

SIGMAS = np.geomspace(0.005, 50, 25)


def loss_by_level(method, variables, images, labels, sigma_data: float) -> np.ndarray:
  """λ(σ)·‖D − y‖² a pixel, [levels, images]."""
  eps = normal(sampling.keys_of(range(len(images))), 0, images.shape[1:])
  cond = None if labels is None else {"label": labels}

  @jax.jit
  def at(variables, sigma):
    pred = method.denoise(variables, images + sigma * eps, sigma, cond)
    return losses.edm_weight(sigma, sigma_data) * losses.squared_error(pred.clean, images) / images[0].size

  return np.stack([at(variables, jnp.float32(sigma)) for sigma in SIGMAS])


def main():
  outputs()
  config, method, variables, step, name = model_flags.open()
  if _PATH.value:
    config.data.update(name="zip", path=_PATH.value)
  source = sources.from_config(config)
  chosen = np.random.default_rng(0).choice(len(source), min(_NUM_IMAGES.value, len(source)), replace=False)
  batch = source.gather(np.sort(chosen))
  images = jnp.asarray(batch["image"] / np.float32(127.5) - 1 if batch["image"].dtype == np.uint8 else batch["image"])
  labels = jnp.asarray(batch["label"]) if config.data.num_classes else None
  models = {f"after training ({name})": variables}
  if step is not None:
    models = {"before training": state.inference_variables(start.create_state(method, config).ema), **models}

  figure, axes = plt.subplots(figsize=(7, 4.5))
  rows = []
  for label, params in models.items():
    values = loss_by_level(method, params, images, labels, config.edm.sigma_data)
    mean, spread = values.mean(axis=1), values.std(axis=1)
    rows += [[label, sigma, m, s] for sigma, m, s in zip(SIGMAS, mean, spread)]
    (line,) = axes.plot(SIGMAS, mean, label=label)
    axes.fill_between(SIGMAS, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0)
  density = np.exp(-((np.log(SIGMAS) - config.edm.p_mean) ** 2) / (2 * config.edm.p_std**2))
  axes.plot(SIGMAS, density, "r--", label="density of the lognormal law, scaled")
  axes.set(xscale="log", xlabel="σ", ylabel="loss a pixel", ylim=(0, 1.6))
  axes.legend(fontsize=8)
  write(figure, ["model", "sigma", "loss_mean", "loss_std"], rows)


if __name__ == "__main__":
  cli.run(main)
