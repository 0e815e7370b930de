"""EDM on 16×16 RGB patches of scikit-learn's two photographs, unconditional.

  python experiments/train.py --config=configs/edm_photos.py --workdir=runs/edm_photos
"""

from diffusion_jax import config as config_lib


def get_config():
  c = config_lib.default()
  c.data.name = "photos"
  c.data.resolution = 16
  c.data.channels = 3
  c.data.num_classes = 0
  c.data.flip = True
  c.network.channels = 32
  c.network.channel_mult = (1, 2)
  c.network.num_blocks = 1
  c.network.attention_resolutions = (8,)
  c.network.dropout = 0.0
  c.optimizer.learning_rate = 2e-3
  c.optimizer.warmup_images = 10_000
  c.ema.half_life_images = 20_000
  c.train.batch_size = 32
  c.train.num_steps = 4_000
  c.train.log_every = 50
  c.train.checkpoint_every = 500
  c.train.sample_every = 1_000
  return c
