"""Decoupled diffusion on scikit-learn's 8×8 digits, class-conditional, a few minutes on two CPU cores.

  python experiments/train.py --config=configs/ddm_digits.py:constant --workdir=runs/ddm_digits
  python experiments/evaluate.py --workdir=runs/ddm_digits --nfe=5,10,20

After the colon the attenuation h_t: constant, linear, quadratic, exponential or sine. The parts of the paper's Table 5:
--config.decoupled.decoder=branch, --config.decoupled.weight=ones or exponential, --config.decoupled.loss=l1.
"""

from diffusion_jax import presets


def get_config(row="constant"):
  (attenuation,) = presets.row(row, presets.ATTENUATIONS)
  c = presets.small()
  c.train.num_steps = 1_000
  c.train.checkpoint_every = 250
  c.train.sample_every = 500
  presets.set_decoupled(c, attenuation)
  return c
