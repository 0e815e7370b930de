"""EDM on AFHQv2 at 64×64, unconditional: every row of the paper's Table 2.

  python experiments/prepare_data.py afhqv2 --resolution=64 --transform=resize --out=datasets/afhqv2-64x64.zip
  python experiments/train.py --config=configs/edm_afhqv2_64.py:vp-F --workdir=runs/edm_afhqv2_64_vp
  python experiments/sample.py --workdir=runs/edm_afhqv2_64_vp --seeds=0-63

After the colon: the network (vp: DDPM++, ve: NCSN++) and the letter. The paper's FID at NFE 79, 50,000 images, the best
of three blocks of seeds:

                                      vp      ve
  A  Song et al. 2021               2.58   18.52
  B  hyper-parameters               2.43   23.12
  C  capacity redistributed         2.54   15.04
  D  preconditioning                2.79    3.81
  E  noise law and weight           2.29    2.28
  F  augmentation                   1.96    2.16

200 million images. Not trained here. Data: datasets/afhqv2-64x64.zip, of the first command or EDM's own tools
(--config.data.path for another place). The paper's text leaves open what A to C are at 64×64: here A takes CIFAR-10's
batch and schedule, and A and B have channels 128 × 1,1,2,2,2.
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config(row="vp-F"):
  network, letter = presets.row(row, ("vp", "ve"), presets.LETTERS)
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/afhqv2-64x64.zip", resolution=64, channels=3, num_classes=0)
  c.sampling.num_steps = 40
  tuned = {**presets.TUNED_64, "network.dropout": 0.25}
  presets.set_table2(c, network, letter, presets.SONG_BASELINE_64, tuned, channel_mult=(1, 2, 2, 2))
  return c
