"""Scores a trained run on its built-in data: Fréchet distance beside its references, and memorisation.

  python experiments/evaluate.py --workdir=runs/edm_digits --num_steps=18

Appends one JSON line to WORKDIR/evaluation.jsonl and draws the first images in WORKDIR/samples/evaluation.png.
"""

import json

import numpy as np
from absl import flags
from tqdm.auto import tqdm

from diffusion_jax import cli, sampling
from diffusion_jax import config as config_lib
from diffusion_jax.data import sources
from diffusion_jax.evaluation import digits, memorisation
from diffusion_jax.evaluation import images as images_lib

_NUM_IMAGES = flags.DEFINE_integer("num_images", 1797, "Number of images generated, seeds 0, 1, …")
model_flags = cli.ModelFlags(published=False)


def main():
  workdir = model_flags.folder()
  if _NUM_IMAGES.value < 2:
    raise cli.UsageError(f"--num_images={_NUM_IMAGES.value}: at least 2")
  config, method, variables, step, name = model_flags.open()
  if config.data.name != "digits":
    raise config_lib.wrong("data.name", config.data.name, "the built-in score is that of digits")

  with tqdm(total=_NUM_IMAGES.value, unit="img", desc="sample") as bar:
    images = sampling.generate(config, method, variables, np.arange(_NUM_IMAGES.value), progress=bar.update)
  folder = workdir / "samples"
  folder.mkdir(parents=True, exist_ok=True)
  images_lib.save_png(folder / "evaluation.png", images[:100], columns=10, scale=4, overwrite=True)
  train = sources.load("digits", "train")
  train = train.gather(np.arange(len(train)))["image"]
  references = digits.references()
  record = {
    "step": step,
    "sampling": dict(config.sampling),
    "nfe": sampling.evaluations(config.sampling, method),
    "num_images": len(images),
    "frechet": digits.score(images)["frechet"],
    "references": references,
    "memorised_share": memorisation.memorised_share(np.clip(images, -1, 1), train),
    "memorised_share_heldout": memorisation.heldout_share(),
  }
  with (workdir / "evaluation.jsonl").open("a") as file:
    file.write(json.dumps(record) + "\n")

  print(f"{name}, {config.sampling.sampler}, {record['nfe']} evaluations an image, {len(images)} images")
  print(f"  Fréchet distance to the 1,797 real digits   {record['frechet']:8.3f}")
  for name, text in [
    ("resampled", "the real digits, resampled"),
    ("halves", "one half of the real digits to the other"),
    ("noise", "noise"),
  ]:
    print(f"    {text:<42}{references[name]['mean']:8.3f} ± {references[name]['std']:.3f}")
  print(f"  closer to a training image than its neighbour{record['memorised_share']:7.1%}")
  print(f"    held-out real digits                      {record['memorised_share_heldout']:8.1%}")


if __name__ == "__main__":
  cli.run(main)
