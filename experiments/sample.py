"""Draws images from a trained run: a PNG grid and an .npz.

  python experiments/sample.py --workdir=runs/edm_digits --seeds=0-63 --num_steps=18 --label=3 --guidance=1.5
"""

import numpy as np
from absl import flags
from etils import epath

from diffusion_jax import cli, sampling
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.training import checkpoint

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
_SEEDS = flags.DEFINE_string("seeds", "0-63", "Seeds of the images: numbers and ranges.")
_LABEL = flags.DEFINE_integer("label", None, "Class of all images; by default seed modulo the number of classes.")
_OUT = flags.DEFINE_string("out", None, "Where to write OUT.png and OUT.npz; WORKDIR/samples/sample by default.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace OUT.png and OUT.npz if they are there.")
with_sampler_flags = cli.define_sampler()


def main():
  if not _WORKDIR.value:
    raise cli.UsageError("--workdir is missing: the folder of a trained run")
  seeds = np.array(cli.seeds(_SEEDS.value))
  out = epath.Path(_OUT.value or epath.Path(_WORKDIR.value) / "samples" / "sample")
  png, npz = out.parent / f"{out.name}.png", out.parent / f"{out.name}.npz"
  for path in (png, npz):
    if path.exists() and not _OVERWRITE.value:
      raise cli.UsageError(f"--out={out}: {path} is already there; pass --overwrite or another --out")
  config = with_sampler_flags(checkpoint.read_config(_WORKDIR.value))
  labels = sampling.default_labels(config, seeds)
  if _LABEL.value is not None:
    if not 0 <= _LABEL.value < config.data.num_classes:
      raise cli.UsageError(f"--label={_LABEL.value}: this run has {config.data.num_classes} classes")
    labels = np.full(len(seeds), _LABEL.value)
  method, variables, step = checkpoint.load_for_inference(_WORKDIR.value, _STEP.value, config)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cli.UsageError(f"--out={out}: {error}") from None
  images = sampling.generate(config, method, variables, seeds, labels)
  images_lib.save_png(png, images, scale=4, overwrite=True)
  with npz.open("wb") as file:
    np.savez(file, images=images_lib.to_uint8(images), seeds=seeds, **({} if labels is None else {"labels": labels}))
  nfe = sampling.evaluations(config.sampling)
  print(f"{len(images)} images of step {step} by {config.sampling.sampler}, NFE {nfe}: {png} and {npz}")


if __name__ == "__main__":
  cli.run(main)
