"""Dual-Output diffusion on scikit-learn's 8×8 digits, class-conditional, a few minutes on two CPU cores.

  python experiments/train.py --config=configs/dual_digits.py:linear --workdir=runs/dual_digits
  python experiments/evaluate.py --workdir=runs/dual_digits --nfe=5,10,20,50

After the colon: linear (DDPM's chain of 1000 steps) or cosine (iDDPM's of 4000). The heads alone: --ratio=0 is the
noise's, --ratio=1 the image's; --ratio=mean mixes them by the mean of r at each t.
"""

from diffusion_jax import presets


def get_config(row="linear"):
  (process,) = presets.row(row, ("linear", "cosine"))
  c = presets.small()
  presets.set_dual(c, process)
  c.train.num_steps = 1_000
  c.train.checkpoint_every = 250
  c.train.sample_every = 500
  return c
