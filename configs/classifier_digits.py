"""A classifier of noisy 8×8 digits, for classifier guidance; a minute or two on a CPU core.

  python experiments/train.py --config=configs/classifier_digits.py:linear --workdir=runs/classifier_digits
  python experiments/classify.py --workdir=runs/classifier_digits
  python experiments/sample.py --workdir=runs/dual_digits --classifier=runs/classifier_digits --classifier_scale=1

After the colon: linear (DDPM's chain of 1000 steps) or cosine (iDDPM's of 4000); either guides runs of any method.
"""

from diffusion_jax import presets


def get_config(row="linear"):
  (process,) = presets.row(row, ("linear", "cosine"))
  c = presets.small()
  presets.set_classifier(c, process)
  c.optimizer.weight_decay = 0.05
  c.network.dropout = 0.1
  c.train.num_steps = 1_500
  c.train.checkpoint_every = 500
  return c
