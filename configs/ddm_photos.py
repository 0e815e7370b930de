"""Decoupled diffusion on 16×16 RGB patches of scikit-learn's two photographs, unconditional.

  python experiments/train.py --config=configs/ddm_photos.py:constant --workdir=runs/ddm_photos
  python experiments/evaluate.py --workdir=runs/ddm_photos --nfe=5,10,20

After the colon the attenuation h_t: constant, linear, quadratic, exponential or sine.
"""

from diffusion_jax import presets


def get_config(row="constant"):
  (attenuation,) = presets.row(row, presets.ATTENUATIONS)
  c = presets.small()
  c.data.update(name="photos", resolution=16, channels=3, num_classes=0, flip=True)
  c.network.attention_resolutions = (8,)
  c.label_dropout = 0.0
  c.train.num_steps = 4_000
  c.train.checkpoint_every = 500
  c.train.sample_every = 1_000
  presets.set_decoupled(c, attenuation)
  return c
