"""Dual-Output diffusion on ImageNet at 128×128, class-conditional, with the ADM network: the paper's Table 2.

  python experiments/prepare_data.py imagenet --resolution=128 --transform=center-crop-dhariwal \\
    --out=datasets/imagenet-128x128.zip
  python experiments/train.py --config=configs/dual_imagenet128.py --workdir=runs/dual_imagenet128 --multihost
  python experiments/evaluate.py --workdir=runs/dual_imagenet128 --nfe=25,50 --num_images=50000 \\
    --reference=imagenet-128x128.npz --inception=weights-inception-2015-12-05-6726825d.pth

Guided by ADM's classifier (the paper's scales are 0 and 1):

  python experiments/train.py --config=configs/classifier_imagenet128.py --workdir=runs/classifier_imagenet128 \\
    --multihost
  python experiments/evaluate.py --workdir=runs/dual_imagenet128 --nfe=25,50 --num_images=50000 \\
    --classifier=runs/classifier_imagenet128 --classifier_scale=1 --out=runs/dual_imagenet128/guided \\
    --reference=imagenet-128x128.npz --inception=weights-inception-2015-12-05-6726825d.pth

The paper starts from the pretrained encoder of ADM, OpenAI's 128x128_diffusion.pt (guided-diffusion, MIT licence), and
trains 80,000 updates; to train.py's command add

  --config.init_from=128x128_diffusion.pt --config.init_only="('net/enc_*','net/map_*')"

and --config.optimizer.frozen="('net/enc_*','net/map_*')" to train the rest alone, as the paper's text can be read. The
network is that file's, with its 4 attention heads. With --config.dual.heads=eps and without init_only all of it is
taken, which is ADM itself; it samples with --clip=1.

FID in the paper by DDIM at 25 and 50 steps, without classifier guidance: dual 27.7, 25.3; --ratio=0 51.3, 49.1;
--ratio=1 29.5, 27.4. Not trained here. Data: datasets/imagenet-128x128.zip (--config.data.path for another place).
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config():
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/imagenet-128x128.zip", resolution=128, channels=3, num_classes=1000)
  c.data.flip = True
  c.network.update(arch="adm", channels=256, channel_mult=(1, 1, 2, 3, 4), num_blocks=2, dropout=0.0)
  c.network.update(attention_resolutions=(32, 16, 8), num_heads=4)
  c.network.dtype = "float16"
  c.optimizer.update(learning_rate=1e-4, warmup_images=0, loss_scale=65536.0, loss_scale_growth=2_000)
  c.ema.update(half_life_images=1_774_000, ramp_up=0.0)  # decay .9999
  c.train.batch_size = 256
  c.train.num_steps = 80_000
  presets.set_dual(c, "linear", vlb_weight=0.001)
  c.sampling.num_steps = 25
  return c
