"""ADM's classifier of noisy 128×128 ImageNet, which guides configs/dual_imagenet128.py (Dhariwal & Nichol 2021).

  python experiments/train.py --config=configs/classifier_imagenet128.py --workdir=runs/classifier_imagenet128 \\
    --multihost
  python experiments/classify.py --workdir=runs/classifier_imagenet128

The network, rate, weight decay, batch and number of updates are ADM's, 42.6M parameters. ADM also crops at random, lets
the rate fall linearly to 0, and takes the final weights; here the rate is constant, images are those of the diffusion
run, mirrored, and weights are averaged. Not trained
here. Data: datasets/imagenet-128x128.zip (--config.data.path for another place).
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config():
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/imagenet-128x128.zip", resolution=128, channels=3, num_classes=1000)
  c.data.flip = True
  c.network.update(arch="adm", channels=128, channel_mult=(1, 1, 2, 3, 4), num_blocks=2, dropout=0.0)
  c.network.attention_resolutions = (32, 16, 8)
  c.network.dtype = "float16"
  c.optimizer.update(learning_rate=3e-4, warmup_images=0, weight_decay=0.05)
  c.optimizer.update(loss_scale=65536.0, loss_scale_growth=2_000)
  c.ema.update(half_life_images=1_774_000, ramp_up=0.0)  # decay .9999
  c.train.batch_size = 256
  c.train.num_steps = 300_000
  presets.set_classifier(c, "linear")
  return c
