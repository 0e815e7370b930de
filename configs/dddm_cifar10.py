"""DDDM on CIFAR-10, unconditional: the rows of the paper's Tables 1 and 3.

  python experiments/prepare_data.py cifar-10-python.tar.gz --out=datasets/cifar10-32x32.zip
  python experiments/train.py --config=configs/dddm_cifar10.py:1000 --workdir=runs/dddm_cifar10
  python experiments/evaluate.py --workdir=runs/dddm_cifar10 --nfe=1,2,1000 --num_images=50000 \\
    --reference=cifar10-32x32.npz --inception=weights-inception-2015-12-05-6726825d.pth

After the colon T, which is the number of epochs too, and "-deep" for twice the blocks. The paper's FID, by iterations:

                    1       2    1000
  1000           2.90    2.79    1.87
  2000           2.86       -       -
  4000           2.83       -       -
  8000           2.82       -    1.74
  1000-deep      2.57    2.33    1.79

LPIPS needs two files in the working directory: vgg16-397923af.pth, the weights of torchvision's VGG16, and vgg.pth, the
linear layers of LPIPS 0.1 (--config.lpips.weights for other places). Not trained here. Data:
datasets/cifar10-32x32.zip, of the first command or EDM's own tools (--config.data.path for another place).
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config(row="1000"):
  t, *depth = presets.row(row, ("1000", "2000", "4000", "8000"), *[("deep",)] * row.endswith("-deep"))
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/cifar10-32x32.zip", resolution=32, channels=3, num_classes=0)
  c.network.update(arch="adm", channels=128, channel_mult=(1, 2, 2, 2), num_blocks=6 if depth else 3)
  c.network.update(attention_resolutions=(16, 8), dropout=0.3)
  presets.set_dddm(c, "pseudo_lpips", (16, 8), int(t))
  c.lpips.weights = ("vgg16-397923af.pth", "vgg.pth")
  c.optimizer.learning_rate = 2e-4
  c.ema.update(half_life_images=7_097_000, ramp_up=0.0)  # decay .9999
  c.train.batch_size = 1_024
  c.train.num_steps = 50_000 * int(t) // 1_024
  return c
