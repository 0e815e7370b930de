"""How well an autoencoder gives images back: PSNR, Fréchet distance to the images themselves, and a picture.

  python experiments/reconstruct.py --config=configs/ae_photos.py --autoencoder=runs/ae_photos --split=test
  python experiments/reconstruct.py --data=zip:celebahq-256x256.zip --autoencoder=kl-f4.ckpt --out=kl_f4 \\
    --inception=weights-inception-2015-12-05-6726825d.pth

The images are coded by the posterior's mean, and decoded. Writes OUT.json, and OUT.png: pairs of an image and what
became of it, evenly spaced in the data. OUT is reconstruct_SPLIT in the workdir of the autoencoder by default.
"""

import functools
import json

import jax
import numpy as np
from absl import flags
from etils import epath
from tqdm.auto import tqdm

from diffusion_jax import cli, mesh
from diffusion_jax.data import latents
from diffusion_jax.evaluation import bench, paired, scoring
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.nets import autoencoder

_INCEPTION = flags.DEFINE_string("inception", None, "Weights: weights-inception-2015-12-05-6726825d.pth; else pixels.")
_OUT = flags.DEFINE_string("out", None, "Where to write OUT.json and OUT.png.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace them if they are there.")
_PIXELS = 1 << 20  # of the images that a device takes at a time
_PAIRS = 32  # of the picture
autoencoder_flags = cli.AutoencoderFlags()


def main():
  config, source = autoencoder_flags.images()
  found, params = autoencoder_flags.open(config)
  if not _OUT.value and found.step is None:
    raise cli.UsageError(f"--out is missing: {flags.FLAGS['out'].help}")
  out = epath.Path(_OUT.value or epath.Path(autoencoder_flags.path) / f"reconstruct_{config.data.split}")
  paths = [out.with_name(f"{out.name}{suffix}") for suffix in (".json", ".png")]
  for path in paths:
    if path.exists() and not _OVERWRITE.value:
      raise cli.UsageError(f"--out={out}: {path} is already there; pass --overwrite or another --out")
  files = {"inception": _INCEPTION.value}
  (scorer,) = cli.checked(bench.scorers_for, config, ["frechet"], None, files, whole=False)

  back = jax.jit(functools.partial(reconstructed, network=found.network))
  params, decibels = mesh.everywhere(params), np.zeros(len(source))
  size = max(1, _PIXELS // int(np.prod(source.image_shape[:2]))) * jax.local_device_count()

  def draw(indices):
    images = latents.in_unit(source.gather(indices)["image"])
    parts = [back(params, mesh.spread(images[rows])) for rows in mesh.batches(len(images), size)]
    images_back = np.concatenate([np.asarray(part) for part in parts])[: len(images)].clip(-1, 1)
    decibels[indices] = paired.psnr(images_back, images)
    return images_back

  with tqdm(total=len(source), unit="img") as bar:
    (scores,) = cli.checked(scoring.score_block, draw, np.arange(len(source)), [scorer], progress=bar.update)
  record = {
    "autoencoder": found.provenance(),
    "data": f"{source.name} {source.split}",
    "num_images": len(source),
    "psnr": float(decibels.mean()),
    "frechet": float(scores["frechet"]),
    "extractor": scorer.extractor.name,
  }
  paths[0].parent.mkdir(parents=True, exist_ok=True)
  paths[0].write_text(json.dumps(record, indent=1) + "\n")
  shown = np.linspace(0, len(source) - 1, min(_PAIRS, len(source))).astype(int)
  pairs = np.stack([latents.in_unit(source.gather(shown)["image"]), draw(shown)], 1)
  images_lib.save_png(paths[1], pairs.reshape(-1, *source.image_shape), columns=8, scale=2, overwrite=True)
  print(
    f"{record['data']}, {len(source):,} images: PSNR {record['psnr']:.2f} dB, Fréchet distance "
    f"({record['extractor']}) {record['frechet']:.3f}; in {paths[0]} and {paths[1]}"
  )


def reconstructed(params, images, network: autoencoder.Autoencoder):
  """Images [B, H, W, C] by way of their posteriors' means."""
  mean, _ = autoencoder.encode(params, images, network)
  return autoencoder.decode(params, mean, network)


if __name__ == "__main__":
  cli.run(main)
