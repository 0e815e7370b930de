"""DDDM on scikit-learn's 8×8 digits, class-conditional, a few minutes on two CPU cores.

  python experiments/train.py --config=configs/dddm_digits.py --workdir=runs/dddm_digits
  python experiments/evaluate.py --workdir=runs/dddm_digits --nfe=1,2,5,10,20

Expect without classes (--config.data.num_classes=0 --config.label_dropout=0): Fréchet distance 19.1 ± .9 in one
iteration and 14.0 ± 3.3 in five, over three seeds of 500 images; after half of the updates
(--config.train.num_steps=500) 14.4 ± 1.2 and 10.0 ± 1.9.
"""

from diffusion_jax import presets


def get_config():
  c = presets.small()
  presets.set_dddm(c, "l1", (8, 4))
  c.optimizer.warmup_images = 10_000
  c.train.num_steps = 1_000
  c.train.checkpoint_every = 250
  c.train.sample_every = 500
  return c
