"""The rows A to F of EDM's Table 2 in small, on class-conditional 8×8 digits.

  python experiments/train.py --config=configs/ablations/table2_digits.py:vp-F --workdir=runs/table2_digits/vp_F
  python experiments/evaluate.py --workdir=runs/table2_digits/vp_F

After the colon: the network (vp: DDPM++, ve: NCSN++) and the letter. The changes are those of the paper; sizes, rates
and numbers of images are a CPU's.
"""

from diffusion_jax import presets


def get_config(row="vp-F"):
  network, letter = (row.split("-") + [""])[:2]
  c = presets.small()
  baseline = {"optimizer.learning_rate": 1e-3, "optimizer.clip_norm": 1.0, "ema.ramp_up": 0.0, "network.dropout": 0.1}
  tuned = {"network.dropout": 0.0, "data.augment": 0.12}
  presets.set_table2(c, network, letter, baseline, tuned, channel_mult=(2, 2))
  c.train.num_steps = 1_200
  c.train.checkpoint_every = 600
  c.train.sample_every = 1_200
  return c
