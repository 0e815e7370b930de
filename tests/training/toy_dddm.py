"""DDDM with a network that compiles in a second, as a config file: test_memory.py's run."""

import sys
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.methods import dddm
from diffusion_jax.nets import layers

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import tiny


class Toy(nn.Module):
  """Two convolutions of x and x̄_0, with dropout."""

  @nn.compact
  def __call__(self, x, c_noise, labels=None, augment=None, dropout_keys=None, context=None):
    h = layers.Conv(8, name="conv0")(jnp.concatenate([x, context], -1))
    h = nn.silu(h + layers.Linear(8, name="noise")(c_noise[:, None] / 1000)[:, None, None])
    return {"out": layers.Conv(x.shape[-1], name="conv1")(layers.dropout(h, 0.1, dropout_keys, self.path))}


def config_of(**fields):
  """The config with fields by their names, two underscores for a dot."""
  c = tiny.get_config()
  c.method = "dddm"
  c.data.update(split="test", num_classes=0)
  c.label_dropout = 0.0
  c.dddm.update(conditioning="concat", buffer_refresh=0.2)
  c.sampling.update(sampler="dddm", grid="dddm", num_steps=2)
  c.train.update(batch_size=64, num_steps=12, checkpoint_every=6)
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


def get_config():
  dddm.network_from_config = lambda config: Toy()
  return config_of()
