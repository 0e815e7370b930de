"""What a run starts from: its first state and their shapes, and its keys."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax import config as config_lib
from diffusion_jax import mesh, methods
from diffusion_jax.methods import conditions
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Key, Params


def create_state(method: methods.Method, config) -> TrainState:
  """The state before the first update, its metrics window included; a pure function of the config."""
  init_key, _ = _keys(config)
  state = method.init(init_key, example_batch(config))
  # One device's share of a batch, mapped over the axis that an update may reduce over: for its metrics' names.
  share = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), example_batch(config, config.train.accumulation)
  )
  _, metrics = jax.eval_shape(_mapped(method.update), state, share, init_key)
  return state.replace(window={name: jnp.zeros(()) for name in (*metrics, "updates")})


@functools.lru_cache(maxsize=8)
def _mapped(update: Callable) -> Callable:
  """An update over mesh.AXIS, the same object for the same update, so that `jax.eval_shape` traces it once a run."""
  return jax.vmap(update, in_axes=(None, 0, None), axis_name=mesh.AXIS)


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
  batch = {"image": images, "label": numbers, "index": numbers, "slot": numbers}
  if data.name == config_lib.LATENTS:
    batch["log_variance"] = images
  if config.task.name:
    batch["condition"] = jax.ShapeDtypeStruct((batch_size, *conditions.condition_shape(config)), jnp.float32)
  return batch


def shapes(method: methods.Method, config) -> TrainState:
  """Shapes and types of a run's state."""
  return jax.eval_shape(lambda: create_state(method, config))


def average_shapes(method: methods.Method, config) -> dict[str, Params]:
  """Those of the averages alone, {role: parameters}; no update is traced for them."""
  return jax.eval_shape(lambda: method.init(_keys(config)[0], example_batch(config)).ema)
