"""EDM on scikit-learn's 8×8 handwritten digits, class-conditional: the demo, a few minutes on two CPU cores.

  python experiments/train.py --config=configs/edm_digits.py --workdir=runs/edm_digits
  python experiments/evaluate.py --workdir=runs/edm_digits

Expect, after 1,000 steps at NFE 35: Fréchet distance .942 (two halves of the real digits: .762 ± .202).
"""

from diffusion_jax import presets


def get_config():
  c = presets.small()
  c.train.num_steps = 1_000
  c.train.checkpoint_every = 250
  c.train.sample_every = 500
  return c
