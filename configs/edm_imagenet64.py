"""EDM on ImageNet at 64×64, class-conditional, with the ADM network.

  python experiments/prepare_data.py imagenet --resolution=64 --transform=center-crop --out=datasets/imagenet-64x64.zip
  python experiments/train.py --config=configs/edm_imagenet64.py --workdir=runs/edm_imagenet64 --multihost
  python experiments/sample.py --workdir=runs/edm_imagenet64 --seeds=0-63

The paper's FID: 1.36 at NFE 511 with churn, as below (--churn=0 --num_steps=40 for its deterministic sampler, NFE 79).
2,500 million images. Not trained here. Data: datasets/imagenet-64x64.zip, of the first command or EDM's own tools
(--config.data.path for another place).
"""

from diffusion_jax import config as config_lib


def get_config():
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/imagenet-64x64.zip", resolution=64, channels=3, num_classes=1000)
  c.network.update(arch="adm", channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3, dropout=0.10)
  c.network.attention_resolutions = (32, 16, 8)
  c.network.dtype = "float16"
  c.optimizer.learning_rate = 1e-4
  c.optimizer.loss_scale = 100.0
  c.ema.half_life_images = 50_000_000
  c.train.batch_size = 4_096
  c.train.num_steps = 610_352
  c.sampling.update(num_steps=256, churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003)
  return c
