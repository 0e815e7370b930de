"""A classifier of noisy 8×8 digits, for classifier guidance; a minute or two on two CPU cores.

  python experiments/train.py --config=configs/classifier_digits.py:linear --workdir=runs/classifier_digits
  python experiments/classify.py --workdir=runs/classifier_digits
  python experiments/sample.py --workdir=runs/dual_digits --classifier=runs/classifier_digits --classifier_scale=1

After the colon: linear (DDPM's chain of 1000 steps) or cosine (iDDPM's of 4000); either guides runs of any method.
Expect of linear, on the 297 held-out digits, accuracy .98, .93, .77, .53, .32, .20, … for t = 1-100, 101-200, …; on
those that it learned from .99, .95, .77, .55, .36, .24, …. Of 300 digits by a Dual-Output run without classes (400
updates, 10 steps of DDIM), 62 % are of the class that was asked for with the scale 1 and 84 % with 3, as the classifier
of the Fréchet distance sees them; unguided 10 %.
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
