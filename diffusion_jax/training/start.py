"""What a run starts from: its first state and their shapes, and its keys."""

import jax
import jax.numpy as jnp

from diffusion_jax import methods
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Key


def create_state(method: methods.Method, config) -> TrainState:
  """The state before the first update, its metrics window included; a pure function of the config."""
  init_key, _ = _keys(config)
  state = method.init(init_key, example_batch(config))
  single = methods.from_config(config)  # the update of one device, for the names of its metrics
  batch = example_batch(config, config.train.accumulation)
  _, metrics = jax.eval_shape(single.update, state, batch, init_key)
  return state.replace(window={name: jnp.zeros(()) for name in (*metrics, "updates")})


def train_key(config) -> Key:
  """The key of every update of a run; steps and examples are folded into it."""
  return _keys(config)[1]


def _keys(config) -> tuple[Key, Key]:
  return jax.random.split(jax.random.key(config.seed))


def example_batch(config, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch, for `Method.init`."""
  data = config.data
  numbers = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
  images = jax.ShapeDtypeStruct((batch_size, data.resolution, data.resolution, data.channels), jnp.float32)
  return {"image": images, "label": numbers, "index": numbers, "slot": numbers}


def shapes(method: methods.Method, config) -> TrainState:
  """Shapes and types of a run's state."""
  return jax.eval_shape(lambda: create_state(method, config))
