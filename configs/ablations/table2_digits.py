"""The rows A to F of EDM's Table 2 in small, on class-conditional 8×8 digits.

  python experiments/train.py --config=configs/ablations/table2_digits.py:vp-F --workdir=runs/table2_digits/vp_F
  python experiments/evaluate.py --workdir=runs/table2_digits/vp_F

After the colon: the network (vp: DDPM++, ve: NCSN++) and the letter. The changes are those of the paper; sizes, rates
and numbers of images are a CPU's.
"""

from diffusion_jax import presets


def get_config(row="vp-F"):
  network, letter = presets.row(row, ("vp", "ve"), presets.LETTERS)
  c = presets.small()
  presets.set_table2(c, network, letter, presets.SMALL_BASELINE, presets.SMALL_TUNED, channel_mult=(2, 2))
  c.data.flip = False  # a mirrored digit is none
  c.train.num_steps = 2_400
  c.train.checkpoint_every = 600
  c.train.sample_every = 1_200
  return c
