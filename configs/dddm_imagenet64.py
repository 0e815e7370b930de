"""DDDM on ImageNet at 64×64, class-conditional: the rows of the paper's Table 2.

  python experiments/prepare_data.py imagenet --resolution=64 --transform=center-crop --out=datasets/imagenet-64x64.zip
  python experiments/train.py --config=configs/dddm_imagenet64.py:plain --workdir=runs/dddm_imagenet64 --multihost
  python experiments/evaluate.py --workdir=runs/dddm_imagenet64 --nfe=1,2,1000 --num_images=50000 \\
    --reference=imagenet-64x64.npz --inception=weights-inception-2015-12-05-6726825d.pth

After the colon: plain, or deep for twice the blocks. The paper's FID, by iterations:

              1       2    1000
  plain    4.21    3.53    2.76
  deep     3.47    3.08    2.11

520 epochs. The buffer of estimates is 31 GB in float16, of which each device has its share. LPIPS needs two files in
the working directory: vgg16-397923af.pth, the weights of torchvision's VGG16, and vgg.pth, the linear layers of LPIPS
0.1 (--config.lpips.weights for other places). Not trained here. Data: datasets/imagenet-64x64.zip, of the first command
or EDM's own tools (--config.data.path for another place).
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config(row="plain"):
  (depth,) = presets.row(row, ("plain", "deep"))
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/imagenet-64x64.zip", resolution=64, channels=3, num_classes=1000)
  c.network.update(arch="adm", channels=192, channel_mult=(1, 2, 3, 4), num_blocks=6 if depth == "deep" else 3)
  c.network.update(attention_resolutions=(16, 8), dropout=0.0)
  presets.set_dddm(c, "pseudo_lpips", (16, 8))
  c.dddm.buffer_dtype = "float16"
  c.lpips.weights = ("vgg16-397923af.pth", "vgg.pth")
  c.optimizer.learning_rate = 1e-4
  c.ema.update(half_life_images=7_097_000, ramp_up=0.0)  # decay .9999
  c.train.batch_size = 1_024
  c.train.num_steps = 1_281_167 * 520 // 1_024
  return c
