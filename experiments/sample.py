"""Draws images from a trained run or a published EDM checkpoint: a PNG grid and an .npz.

  python experiments/sample.py --workdir=runs/edm_digits --seeds=0-63 --num_steps=18 --label=3 --guidance=1.5
  python experiments/sample.py --workdir=runs/dual_digits --classifier=runs/classifier_digits --classifier_scale=1
  python experiments/sample.py --checkpoint=edm-cifar10-32x32-cond-vp.pkl --seeds=0-63 --out=cifar10
"""

import jax
import numpy as np
from absl import flags
from etils import epath

from diffusion_jax import cli, sampling
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.training import autoencoders, classifiers

_SEEDS = flags.DEFINE_string("seeds", "0-63", "Seeds of the images: numbers and ranges.")
_LABEL = flags.DEFINE_integer("label", None, "Class of all images; by default seed modulo the number of classes.")
_OUT = flags.DEFINE_string("out", None, "Where to write OUT.png and OUT.npz; by default WORKDIR/samples/sample.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace OUT.png and OUT.npz if they are there.")
model_flags = cli.ModelFlags(latents=True)
start_hosts = cli.define_hosts()


def main():
  start_hosts()
  seeds = np.array(cli.seeds(_SEEDS.value))
  png, npz = outputs(model_flags.folder())
  model = model_flags.open(search=False)  # what is wrong is said before that
  config, method, variables, _, name = model
  classifier, decoder = classifiers.from_config(config), autoencoders.from_config(config)
  labels = sampling.default_labels(config, seeds, classifier)
  if _LABEL.value is not None:
    classes = config.data.num_classes or (classifier.num_classes if classifier else 0)
    if not 0 <= _LABEL.value < classes:
      raise cli.UsageError(f"--label={_LABEL.value}: this model has {classes} classes")
    labels = np.full(len(seeds), _LABEL.value)
  try:
    png.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cli.UsageError(f"--out={png.parent}: {error}") from None
  config = model_flags.measured(model).config
  images = sampling.generate_together(config, method, variables, seeds, labels, classifier=classifier, decoder=decoder)
  if jax.process_index() != 0:
    return
  images_lib.save_png(png, images, scale=4 if images.shape[1] < 32 else 1, overwrite=True)
  with npz.open("wb") as file:
    np.savez(file, images=images_lib.to_uint8(images), seeds=seeds, **({} if labels is None else {"labels": labels}))
  some = None if labels is None else labels[:64]
  nfe = sampling.mean_evaluations(config, method, variables, seeds[:64], some, classifier)
  print(f"{len(images)} images of {name} by {config.sampling.sampler}, NFE {nfe}: {png} and {npz}")


def outputs(folder: epath.Path) -> tuple[epath.Path, epath.Path]:
  """OUT.png and OUT.npz, which must not exist unless they may be replaced."""
  out = epath.Path(_OUT.value or folder / "samples" / "sample")
  png, npz = out.parent / f"{out.name}.png", out.parent / f"{out.name}.npz"
  for path in (png, npz):
    if path.exists() and not _OVERWRITE.value:
      raise cli.UsageError(f"--out={out}: {path} is already there; pass --overwrite or another --out")
  return png, npz


if __name__ == "__main__":
  cli.run(main)
