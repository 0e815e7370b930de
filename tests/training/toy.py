"""A network that compiles in a second, in place of the U-Net.

As a config file (experiments/train.py --config=tests/training/toy.py) it is tiny.py's run with this network.
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.methods import base
from diffusion_jax.nets import layers

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import tiny


class Toy(nn.Module):
  """Two convolutions, dropout, noise level and labels; `poison` is added to the output."""

  poison: float = 0.0

  @nn.compact
  def __call__(self, x, c_noise, labels=None, augment=None, dropout_keys=None):
    labels = jnp.zeros((len(x), 10)) if labels is None else labels
    emb = layers.Linear(8, name="labels")(labels) + layers.Linear(8, name="noise")(c_noise[:, None])
    h = nn.silu(layers.Conv(8, name="conv0")(x) + emb[:, None, None])
    h = layers.dropout(h, 0.1, dropout_keys, self.path)
    return {"out": layers.Conv(x.shape[-1], name="conv1")(h) + self.poison}


def get_config():
  base.network_from_config = lambda config, heads: Toy()
  return tiny.get_config()
