"""Encodes a data set once, for diffusion in the latent space of an autoencoder.

  python experiments/encode.py --config=configs/ae_photos.py --autoencoder=runs/ae_photos --out=datasets/photos_latents
  python experiments/encode.py --data=zip:celebahq-256x256.zip --autoencoder=kl-f4.ckpt --flip --out=celebahq256_latents

The autoencoder is a run of method autoencoder, its newest checkpoint, or published weights of latent diffusion
(.ckpt, .pt, .pth), whose network is config.autoencoder, by default KL-f4. Writes the posterior's mean and log-variance
of every image, what else the data give, and latents.json: where all that comes from, and the scale, one over the
standard deviation of z over the data. Config fields for training on it are printed.
"""

import functools
import shlex

import jax
import numpy as np
from absl import flags
from tqdm.auto import tqdm

from diffusion_jax import cli, mesh
from diffusion_jax import config as config_lib
from diffusion_jax.data import latents
from diffusion_jax.nets import autoencoder
from diffusion_jax.training import autoencoders

_OUT = flags.DEFINE_string("out", None, "The folder, which a config names as data.path.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the latents that are there.")
_FLIP = flags.DEFINE_bool("flip", False, "Add the mirrored images: their latents are not the mirrored latents.")
_PIXELS = 1 << 20  # of the images that a device encodes at a time
autoencoder_flags = cli.AutoencoderFlags()


def main():
  if not _OUT.value:
    raise cli.UsageError(f"--out is missing: {flags.FLAGS['out'].help}")
  try:
    latents.check_free(_OUT.value, _OVERWRITE.value)
  except ValueError as error:
    raise cli.UsageError(f"--out={error}") from None
  config, source = autoencoder_flags.images()
  found, params = autoencoder_flags.open(config)
  batch_size = max(1, _PIXELS // config.data.resolution**2) * jax.local_device_count()
  data = {name: value for name, value in config.data.items() if name not in ("cache", "flip", "augment")}
  with tqdm(total=len(source) * (1 + _FLIP.value), unit="img") as bar:
    encode, provenance = encoder(found, params, batch_size), found.provenance()
    options = {"flip": _FLIP.value, "batch_size": batch_size, "overwrite": _OVERWRITE.value, "progress": bar.update}
    about = cli.checked(latents.write, _OUT.value, source, encode, provenance, data, dict(config.task), **options)
  report(about)


def encoder(found: autoencoders.Found, params, batch_size: int) -> latents.Encode:
  """images [n, H, W, C] -> (mean, log_variance), in batches of one size over the local devices.

  Grey images have three equal channels for an autoencoder of colours.
  """
  params = mesh.everywhere(params)
  run = jax.jit(functools.partial(autoencoder.encode, network=found.network))

  def encode(images):
    images = np.broadcast_to(images, (*images.shape[:3], found.network.image_channels))
    parts = [run(params, mesh.spread(images[rows])) for rows in mesh.batches(len(images), batch_size)]
    return tuple(np.concatenate([np.asarray(part) for part in each])[: len(images)] for each in zip(*parts))

  return encode


def report(about: dict):
  """Prints what was written, and the flags with which it is trained on."""
  _, (_, height, width, channels) = about["arrays"]["mean"]
  print(f"{_OUT.value}: {about['num_examples']} latents, {height}×{width}×{channels}, scale {about['scale']:.4f}")
  fields = {"data.name": config_lib.LATENTS, "data.path": _OUT.value, "data.resolution": height}
  fields |= {"data.channels": channels, "data.num_classes": about["num_classes"]}
  fields |= {"latent.autoencoder": autoencoder_flags.path, "task.name": about["task"]["name"]}
  options = [shlex.quote(f"--config.{name}={value}") for name, value in fields.items() if value != ""]
  print("train with " + " ".join(options))


if __name__ == "__main__":
  cli.run(main)
