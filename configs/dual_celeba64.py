"""Dual-Output diffusion on CelebA at 64×64, the CelebA rows of the paper's Table 1.

  python experiments/prepare_data.py tfds:celeb_a --resolution=64 --transform=center-crop \\
    --out=datasets/celeba-64x64.zip
  python experiments/train.py --config=configs/dual_celeba64.py --workdir=runs/dual_celeba64
  python experiments/evaluate.py --workdir=runs/dual_celeba64 --nfe=5,10,20,50,100 --num_images=50000 \\
    --reference=celeba-64x64.npz --inception=weights-inception-2015-12-05-6726825d.pth

The paper's FID by DDIM:

                  5      10      20      50     100 steps
  dual          26.22  14.96    8.74    5.54    4.07
  --ratio=mean  32.64  16.19    8.85    6.20    4.44
  --ratio=0     64.82  27.53   12.64    9.03    8.68
  --ratio=1     29.79  16.03    9.18    6.57    4.23

DDPM++ of the size of DDIM's network. The paper trains with "the same hyperparameters" as DDIM, and prints none: batch,
rate and averages are those of DDPM's CIFAR-10 network, the 500,000 updates a choice. Not trained here. Data:
datasets/celeba-64x64.zip (--config.data.path for another place).
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config():
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/celeba-64x64.zip", resolution=64, channels=3, num_classes=0, flip=True)
  c.update_from_flattened_dict(presets.SONG_BASELINE)
  c.network.update(channel_mult=(1, 2, 2, 2, 4), num_blocks=2)
  c.train.num_steps = 500_000
  presets.set_dual(c, "linear")
  return c
