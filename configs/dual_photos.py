"""Dual-Output diffusion on 16×16 RGB patches of scikit-learn's two photographs, unconditional.

  python experiments/train.py --config=configs/dual_photos.py:linear --workdir=runs/dual_photos
  python experiments/evaluate.py --workdir=runs/dual_photos --nfe=5,10,20,50

After the colon: linear (DDPM's chain of 1000 steps) or cosine (iDDPM's of 4000).
"""

from diffusion_jax import presets


def get_config(row="linear"):
  (process,) = presets.row(row, ("linear", "cosine"))
  c = presets.small()
  c.data.update(name="photos", resolution=16, channels=3, num_classes=0, flip=True)
  c.network.attention_resolutions = (8,)
  c.label_dropout = 0.0
  presets.set_dual(c, process)
  c.train.num_steps = 4_000
  c.train.checkpoint_every = 500
  c.train.sample_every = 1_000
  return c
