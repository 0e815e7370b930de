"""Decoupled diffusion on CIFAR-10, the rows of the paper's Table 4.

  python experiments/prepare_data.py cifar-10-python.tar.gz --out=datasets/cifar10-32x32.zip
  python experiments/train.py --config=configs/ddm_cifar10.py:constant --workdir=runs/ddm_cifar10
  python experiments/evaluate.py --workdir=runs/ddm_cifar10 --nfe=10,20,50,1000 --num_images=50000 \\
    --reference=cifar10-32x32.npz --inception=weights-inception-2015-12-05-6726825d.pth

After the colon the attenuation h_t. The paper's FID:

                 10      20      50     1000   2000 steps
  constant     13.92    8.92    5.09    2.40    2.19
  linear       15.17       -    9.69    3.15       -
  quadratic    22.43       -   11.05    4.59       -
  exponential  28.15       -   12.15    5.33       -
  sine         58.94       -   30.46       -       -

and in 10 steps with --config.decoupled.weight=ones 14.24, exponential 13.95; --config.decoupled.decoder=branch 15.13;
--config.decoupled.loss=l1 14.98.

DDPM++ with two decoders at the paper's width, blocks, batch, rate and number of updates; weight decay, clipping,
averages and the reconstruction loss are those of the published code, the latter's LPIPS with
--config.decoupled.reconstruction_lpips --config.lpips.weights="('vgg16-397923af.pth', 'vgg.pth')"; dropout is a choice.
Not trained here. Data: datasets/cifar10-32x32.zip, of the first command or EDM's own tools (--config.data.path for
another place).
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config(row="constant"):
  (attenuation,) = presets.row(row, presets.ATTENUATIONS)
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/cifar10-32x32.zip", resolution=32, channels=3, num_classes=0, flip=True)
  c.network.update(channels=192, channel_mult=(1, 2, 2, 2), num_blocks=3, attention_resolutions=(16, 8), dropout=0.1)
  c.optimizer.learning_rate = 1e-4
  c.train.update(batch_size=128, num_steps=800_000)
  c.ema.update(half_life_images=88_678, ramp_up=0.0, ramp_power=2 / 3)  # decay .999
  presets.set_decoupled(c, attenuation)
  c.decoupled.reconstruction_weight = 1.0
  return c
