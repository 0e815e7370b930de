"""Dual-Output diffusion on CIFAR-10, the linear and the cosine rows of the paper's Table 1.

  python experiments/prepare_data.py cifar-10-python.tar.gz --out=datasets/cifar10-32x32.zip
  python experiments/train.py --config=configs/dual_cifar10.py:linear --workdir=runs/dual_cifar10_linear
  python experiments/evaluate.py --workdir=runs/dual_cifar10_linear --nfe=5,10,20,50,100 --num_images=50000 \\
    --reference=cifar10-32x32.npz --inception=weights-inception-2015-12-05-6726825d.pth

After the colon: linear, of DDPM's hyper-parameters, or cosine, of iDDPM's, whose reverse variance is learned too. The
paper's FID by DDIM:

                         5      10      20      50     100 steps
  linear  dual         35.12  11.68    8.62    6.68    5.54
          --ratio=mean 38.50  12.08    8.71    6.89    5.57
          --ratio=0    41.99  12.30    8.74    7.11    6.01
          --ratio=1    45.53  24.27   16.93   12.47    7.39
  cosine  dual           -    18.25   12.54    5.59    5.10
          --ratio=mean   -    19.60   13.93    7.24    6.17
          --ratio=0      -    36.78   17.08    8.85    6.72
          --ratio=1    45.75  19.75   13.21    7.13    5.93

The networks are DDPM++ and ADM of the sizes of DDPM's and iDDPM's. Not trained here. Data: datasets/cifar10-32x32.zip,
of the first command or EDM's own tools (--config.data.path for another place).
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config(row="linear"):
  (process,) = presets.row(row, ("linear", "cosine"))
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/cifar10-32x32.zip", resolution=32, channels=3, num_classes=0, flip=True)
  c.update_from_flattened_dict(presets.SONG_BASELINE)
  if process == "linear":
    c.network.num_blocks = 2
    c.train.num_steps = 800_000
    presets.set_dual(c, "linear")
  else:
    c.network.update(arch="adm", num_blocks=3, attention_resolutions=(16, 8), dropout=0.3)
    c.optimizer.update(learning_rate=1e-4, warmup_images=0, clip_norm=0.0)
    c.train.num_steps = 500_000
    presets.set_dual(c, "cosine", vlb_weight=0.001)
  return c
