"""Decoupled diffusion on CelebA-HQ 256×256, in the 64×64×3 latents of the published KL-f4.

  python experiments/prepare_data.py celeba-hq --transform=resize --resolution=256 --out=datasets/celebahq-256x256.zip
  python experiments/encode.py --data=zip:datasets/celebahq-256x256.zip --autoencoder=kl-f4.ckpt --flip \\
    --out=datasets/celebahq256_latents
  python experiments/train.py --config=configs/ddm_celebahq256_latent.py --workdir=runs/ddm_celebahq256_latent
  python experiments/evaluate.py --workdir=runs/ddm_celebahq256_latent --nfe=10 --num_images=30000 \\
    --inception=weights-inception-2015-12-05-6726825d.pth

kl-f4.ckpt: the weights of latent diffusion's autoencoder of that name (--config.latent.autoencoder and --autoencoder
for another place). The paper's width, blocks, batch, rate and number of updates; z is drawn from the posterior and
multiplied by .165, as published for this data set (--config.latent.scale=0 takes what was measured). Weight decay,
clipping and averages are those of the published code; attention and dropout are choices. Not trained here.
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config():
  c = config_lib.default()
  c.data.update(name="latents", path="datasets/celebahq256_latents", resolution=64, channels=3, num_classes=0)
  c.latent.update(autoencoder="kl-f4.ckpt", scale=0.165)
  c.network.update(channels=96, channel_mult=(1, 2, 3, 4), num_blocks=3, attention_resolutions=(16, 8), dropout=0.0)
  c.optimizer.learning_rate = 5e-5
  c.train.update(batch_size=48, num_steps=800_000)
  c.ema.update(half_life_images=33_254, ramp_up=0.0, ramp_power=2 / 3)  # decay .999
  presets.set_decoupled(c, "constant")
  c.sampling.refit = 0.0  # latents have no range
  return c
