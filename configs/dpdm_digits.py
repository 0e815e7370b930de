"""DPDM on scikit-learn's 8×8 digits: a pupil of the EDM demo that samples in 5 evaluations.

  python experiments/train.py --config=configs/dpdm_digits.py --workdir=runs/dpdm_digits \\
    --init_config=configs/edm_digits.py
  python experiments/evaluate.py --workdir=runs/dpdm_digits --nfe=4,5,8

The first command trains the teacher, runs/edm_digits, if it is not there. What to expect, over three seeds with longer
training of both: experiments/results/dpdm.
"""

from diffusion_jax import presets


def get_config():
  c = presets.small()
  presets.set_dpdm(c, "runs/edm_digits", learning_rate=1e-4)
  c.edm.p_mean = 0.0  # noisier than the teacher's law: sampling starts at σ = 80
  c.sampling.sigma_min_search = True  # the published values are CIFAR-10's
  c.train.num_steps = 2_000
  c.train.checkpoint_every = 500
  c.train.sample_every = 500
  return c
