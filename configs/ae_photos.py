"""A small autoencoder of 32×32 RGB patches of scikit-learn's two photographs, for diffusion in its 8×8×3 latents.

  python experiments/train.py --config=configs/ae_photos.py --workdir=runs/ae_photos
  python experiments/encode.py --config=configs/ae_photos.py --autoencoder=runs/ae_photos --out=datasets/photos_latents
  python experiments/reconstruct.py --config=configs/ae_photos.py --autoencoder=runs/ae_photos --split=test

Eleven minutes of one CPU core. Expect PSNR 31.9 dB on the 6,534 held-out patches, most of which are smooth: fine
texture, as of foliage, is lost, for want of a perceptual loss. Fréchet distance in pixels 6.0e5.
"""

from diffusion_jax import config as config_lib


def get_config():
  c = config_lib.default()
  c.method = "autoencoder"
  c.data.update(name="photos", resolution=32, channels=3, num_classes=0, flip=True)
  c.autoencoder.update(channels=16, channel_mult=(1, 2, 2), num_blocks=1, latent_channels=3)
  c.optimizer.update(learning_rate=2e-3, warmup_images=1_600, decay_power=1.0, clip_norm=1.0)
  c.train.update(batch_size=16, num_steps=3_000, log_every=50, checkpoint_every=500)
  c.ema.update(half_life_images=2_000)
  return c
