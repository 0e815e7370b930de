"""EDM on 16×16 RGB patches of scikit-learn's two photographs, unconditional.

  python experiments/train.py --config=configs/edm_photos.py --workdir=runs/edm_photos
"""

from diffusion_jax import presets


def get_config():
  c = presets.small()
  c.data.update(name="photos", resolution=16, channels=3, num_classes=0, flip=True)
  c.network.attention_resolutions = (8,)
  c.label_dropout = 0.0
  c.edm.sigma_data = 0.65  # as measured
  c.train.num_steps = 4_000
  c.train.checkpoint_every = 500
  c.train.sample_every = 1_000
  return c
