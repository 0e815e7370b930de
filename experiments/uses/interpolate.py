"""On the way from one image to another: the latents between theirs, on a sphere.

  python experiments/uses/interpolate.py --workdir=runs/edm_digits --out=results/interpolate
  python experiments/uses/interpolate.py --workdir=RUN --out=OUT --seeds=0-7
  python experiments/uses/interpolate.py --workdir=RUN --out=OUT --weight=linear     # for comparison

Between real images of a split, whose latents `samplers.invert` finds, or with --seeds between samples. A row of OUT.png
joins two images; with classes, both must be of one, and pairs are looked for among the split's. OUT.csv has by weight
the root mean square of the latents in units of σ_max, which is about 1 for noise, and how far the image moves a step.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import draw, model_flags, opened, real, rms, table  # noqa: F401  the flags

from diffusion_jax import cli, editing, samplers, sampling

_SEEDS = flags.DEFINE_string("seeds", None, "Even in number: pairs of samples in place of real images.")
_SPLIT = flags.DEFINE_string("split", "test", "Of the run's data.")
_PAIRS = flags.DEFINE_integer("pairs", 6, "Pairs of real images.", lower_bound=1)
_COLUMNS = flags.DEFINE_integer("columns", 9, "Images a row, both ends included.", lower_bound=2)
_WEIGHT = flags.DEFINE_enum("weight", "spherical", ["spherical", "linear"], "Between the latents.")


def main():
  seeds = None if _SEEDS.value is None else cli.seeds(_SEEDS.value)
  if seeds is not None and len(seeds) % 2:
    raise cli.UsageError(f"--seeds={_SEEDS.value}: expected pairs, got {len(seeds)} seeds")
  run = opened()
  process, grid, weights = run.process, run.grid, np.linspace(0, 1, _COLUMNS.value)

  if seeds is not None:
    latents = process.prior(sampling.keys_of(seeds), run.shape, grid[0])
    labels = sampling.default_labels(run.config, np.arange(len(seeds)) // 2)
  else:
    images, labels = real(run.config, _SPLIT.value)
    chosen = pairs_of(labels, len(images), _PAIRS.value)
    images, labels = images[chosen], None if labels is None else labels[chosen]
    invert = jax.jit(lambda v, x, labels: samplers.invert(run.bind(v, labels), process, x, grid))
    latents = invert(run.variables, jnp.asarray(images), labels)

  a, b = latents[::2], latents[1::2]
  between = editing.slerp if _WEIGHT.value == "spherical" else lambda a, b, w: (1 - w) * a + w * b
  states = jnp.stack([between(a, b, w) for w in weights])  # [columns, pairs, H, W, C]
  sample = jax.jit(lambda v, x, labels: samplers.heun(run.bind(v, labels), process, x, grid))
  labels = None if labels is None else labels[::2]
  made = np.stack([sample(run.variables, x, labels) for x in states])
  draw(list(made.swapaxes(0, 1)), [], [f"{w:.2f}" for w in weights])
  sizes = rms(states / process.sigma(grid[0]))
  moved = [float("nan"), *rms(made[1:] - made[:-1])]
  table(["weight", "latent_rms", "moved_rms"], [list(row) for row in zip(weights, sizes, moved)])


def pairs_of(labels, count: int, pairs: int) -> np.ndarray:
  """Indices (a, b, a, b, …) of pairs, of one class each: class by class, the first two of each, then the next."""
  if labels is None:
    return np.arange(min(2 * pairs, count - count % 2))
  found = [np.flatnonzero(labels == label) for label in np.unique(labels)]
  most = max(len(rows) for rows in found)
  ordered = [rows[k : k + 2] for k in range(0, most - 1, 2) for rows in found if len(rows) > k + 1]
  if not ordered:
    raise cli.UsageError(f"--split={_SPLIT.value}: no two images of one class")
  return np.concatenate(ordered[:pairs])


if __name__ == "__main__":
  cli.run(main)
