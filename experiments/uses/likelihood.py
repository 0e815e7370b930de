"""Bits a dimension of a run's images, by the probability flow: those it was trained on, and others.

  python experiments/uses/likelihood.py --workdir=runs/edm_digits --out=results/likelihood --levels=17
  python experiments/uses/likelihood.py --workdir=RUN --out=OUT --splits=test --num_images=1000 --trace=exact

Images get uniform noise as wide as one of their --levels (256 for bytes, 17 for scikit-learn's digits); the numbers
bound the code length of the discrete images from above. The likelihood is of images with the noise of the grid's
σ_min: --sigma_min, to be kept well below a level. OUT.csv has a row a split, with the standard error over images.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import model_flags, opened, real, table  # noqa: F401  the flags

from diffusion_jax import cli, likelihood, sampling

_SPLITS = flags.DEFINE_list("splits", ["train", "test"], "Of the run's data.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", None, "The first images of each split; all by default.", lower_bound=1)
_LEVELS = flags.DEFINE_integer("levels", 256, "Values that a pixel can have.", lower_bound=2)
_TRACE = flags.DEFINE_enum("trace", "hutchinson", likelihood.TRACES, "How the divergence is computed.")
_PROBES = flags.DEFINE_integer("probes", 1, "Of hutchinson, a step.", lower_bound=1)
_NOISE = flags.DEFINE_enum("noise", "rademacher", likelihood.NOISES, "Law of the probes.")
_BATCH = flags.DEFINE_integer("batch_size", 100, "Images at a time.", lower_bound=1)


def main():
  run = opened()
  found = {split: real(run.config, split, _NUM_IMAGES.value) for split in _SPLITS.value}
  options = {"trace": _TRACE.value, "probes": _PROBES.value, "noise": _NOISE.value}

  @jax.jit
  def bits(variables, x, labels, seeds):
    keys = sampling.keys_of(seeds)
    x = likelihood.dequantise(keys, x, _LEVELS.value)
    denoise = run.bind(variables, labels)
    log_p = likelihood.log_likelihood(denoise, run.process, x, run.grid, keys, **options)
    return likelihood.bits_per_dimension(log_p, x[0].size, _LEVELS.value)

  rows = []
  for split, (images, labels) in found.items():
    start, values = time.perf_counter(), []
    for first in range(0, len(images), _BATCH.value):
      rows_of = (np.arange(_BATCH.value) + first) % len(images)  # full batches: one compilation
      part = None if labels is None else jnp.asarray(labels[rows_of])
      values.append(cli.checked(bits, run.variables, jnp.asarray(images[rows_of]), part, rows_of))
    values = np.concatenate(values)[: len(images)]
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    rows.append([split, len(images), np.mean(values), error, time.perf_counter() - start])
  table(["split", "images", "bits_per_dimension", "standard_error", "seconds"], rows)


if __name__ == "__main__":
  cli.run(main)
