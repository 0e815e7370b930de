"""EDM on CIFAR-10: every row of the paper's Table 2.

  python experiments/prepare_data.py cifar-10-python.tar.gz --out=datasets/cifar10-32x32.zip
  python experiments/train.py --config=configs/edm_cifar10.py:cond-vp-F --workdir=runs/edm_cifar10_cond_vp
  python experiments/sample.py --workdir=runs/edm_cifar10_cond_vp --seeds=0-63

After the colon: cond or uncond, the network (vp: DDPM++, ve: NCSN++), the letter. The paper's FID at NFE 35, 50,000
images, the best of three blocks of seeds:

                                    cond-vp   cond-ve   uncond-vp   uncond-ve
  A  Song et al. 2021                 2.48      3.11       3.01        3.77
  B  hyper-parameters                 2.18      2.48       2.51        2.94
  C  capacity redistributed           2.08      2.52       2.31        2.83
  D  preconditioning                  2.09      2.64       2.29        3.10
  E  noise law and weight             1.88      1.86       2.05        1.99
  F  augmentation                     1.79      1.79       1.97        1.98

200 million images. Not trained here. Data: datasets/cifar10-32x32.zip, of the first command or EDM's own tools
(--config.data.path for another place).
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config(row="cond-vp-F"):
  classes, network, letter = presets.row(row, ("cond", "uncond"), ("vp", "ve"), presets.LETTERS)
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/cifar10-32x32.zip", resolution=32, channels=3)
  c.data.num_classes = 10 if classes == "cond" else 0
  tuned = {
    "train.batch_size": 512,
    "train.num_steps": 390_625,
    "optimizer.learning_rate": 1e-3,
    "network.channel_mult": (1, 2, 2, 2),
    "network.dropout": 0.13,
    "data.augment": 0.12,
  }
  presets.set_table2(c, network, letter, presets.SONG_BASELINE, tuned, channel_mult=(2, 2, 2))
  return c
