"""The rows A to F of EDM's Table 2 in small, on 16×16 patches of two photographs.

  python experiments/train.py --config=configs/ablations/table2_photos.py:vp-F --workdir=runs/table2_photos/vp_F
  python experiments/sample.py --workdir=runs/table2_photos/vp_F

After the colon: the network (vp: DDPM++, ve: NCSN++) and the letter. The changes are those of the paper; sizes, rates
and numbers of images are a CPU's.
"""

from diffusion_jax import presets


def get_config(row="vp-F"):
  network, letter = presets.row(row, ("vp", "ve"), presets.LETTERS)
  c = presets.small()
  c.data.update(name="photos", resolution=16, channels=3, num_classes=0)
  c.network.attention_resolutions = (8,)
  c.label_dropout = 0.0
  presets.set_table2(c, network, letter, presets.SMALL_BASELINE, presets.SMALL_TUNED, channel_mult=(2, 2))
  c.train.num_steps = 2_400
  c.train.checkpoint_every = 600
  c.train.sample_every = 1_200
  return c
