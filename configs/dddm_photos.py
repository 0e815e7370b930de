"""DDDM on 16×16 RGB patches of scikit-learn's two photographs, unconditional.

  python experiments/train.py --config=configs/dddm_photos.py --workdir=runs/dddm_photos
  python experiments/evaluate.py --workdir=runs/dddm_photos --nfe=1,2,5,10,20
"""

from diffusion_jax import presets


def get_config():
  c = presets.small()
  c.data.update(name="photos", resolution=16, channels=3, num_classes=0, flip=True)
  c.network.attention_resolutions = (8,)
  c.label_dropout = 0.0
  presets.set_dddm(c, "pseudo_huber", (16, 8))
  c.train.num_steps = 4_000
  c.train.checkpoint_every = 500
  c.train.sample_every = 1_000
  return c
