"""EDM on FFHQ at 64×64, unconditional: every row of the paper's Table 2.

  python experiments/prepare_data.py ffhq --resolution=64 --transform=resize --out=datasets/ffhq-64x64.zip
  python experiments/train.py --config=configs/edm_ffhq64.py:vp-F --workdir=runs/edm_ffhq64_vp
  python experiments/sample.py --workdir=runs/edm_ffhq64_vp --seeds=0-63

After the colon: the network (vp: DDPM++, ve: NCSN++) and the letter. The paper's FID at NFE 79, 50,000 images, the best
of three blocks of seeds:

                                      vp      ve
  A  Song et al. 2021               3.39   25.95
  B  hyper-parameters               3.13   22.53
  C  capacity redistributed         2.78   41.62
  D  preconditioning                2.94    3.39
  E  noise law and weight           2.60    2.81
  F  augmentation                   2.39    2.53

200 million images. Not trained here. Data: datasets/ffhq-64x64.zip, of the first command or EDM's own tools
(--config.data.path for another place). The paper's text leaves open what A to C are at 64×64: here A takes CIFAR-10's
batch and schedule, and A and B have channels 128 × 1,1,2,2,2.
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config(row="vp-F"):
  network, letter = presets.row(row, ("vp", "ve"), presets.LETTERS)
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/ffhq-64x64.zip", resolution=64, channels=3, num_classes=0)
  c.sampling.num_steps = 40
  tuned = {**presets.TUNED_64, "network.dropout": 0.05}
  presets.set_table2(c, network, letter, presets.SONG_BASELINE_64, tuned, channel_mult=(1, 2, 2, 2))
  return c
