"""Decoupled diffusion in the 8×8×3 latents of configs/ae_photos.py, decoded to 32×32 RGB patches of two photographs.

  python experiments/train.py --config=configs/ae_photos.py --workdir=runs/ae_photos
  python experiments/encode.py --config=configs/ae_photos.py --autoencoder=runs/ae_photos --flip \\
    --out=datasets/photos_latents
  python experiments/train.py --config=configs/ddm_photos_latent.py --workdir=runs/ddm_photos_latent
  python experiments/evaluate.py --workdir=runs/ddm_photos_latent --nfe=5,10,20
"""

from diffusion_jax import presets


def get_config():
  c = presets.small()
  c.data.update(name="latents", path="datasets/photos_latents", resolution=8, channels=3, num_classes=0)
  c.latent.autoencoder = "runs/ae_photos"
  c.label_dropout = 0.0
  c.train.num_steps = 4_000
  c.train.checkpoint_every = 500
  c.train.sample_every = 1_000
  presets.set_decoupled(c, "constant")
  c.sampling.refit = 0.0  # latents have no range
  return c
