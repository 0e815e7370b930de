"""The smallest run that has every part of a real one: a one-level U-Net with dropout, label dropout and flips."""

from diffusion_jax import config as config_lib


def get_config():
  c = config_lib.default()
  c.network.channels = 8
  c.network.channel_mult = (1,)
  c.network.num_blocks = 1
  c.network.attention_resolutions = ()
  c.network.dropout = 0.1
  c.label_dropout = 0.2
  c.data.flip = True
  c.optimizer.warmup_images = 100
  c.ema.half_life_images = 100
  c.train.batch_size = 8
  c.train.num_steps = 24
  c.train.log_every = 1
  c.train.checkpoint_every = 4
  c.train.sample_every = 1000
  c.sampling.num_steps = 3
  return c
