"""What a run starts from: its first state and their shapes, and its keys."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax import config as config_lib
from diffusion_jax import mesh, methods
from diffusion_jax.methods import conditions
from diffusion_jax.training import parallel
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Array, Key, Params


def create_state(method: methods.Method, config) -> TrainState:
  """The state before the first update, its metrics window included; a pure function of the config."""
  init_key, _ = _keys(config)
  state = method.init(init_key, example_batch(config))
  if method.remember is not None:
    state = state.replace(buffer=method.remember(init_key))
  # One device's share of a batch, mapped over the axis that an update may reduce over: for its metrics' names.
  least = example_batch(config, config.train.accumulation * config_lib.slices(config))
  share = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), least)
  _, metrics = jax.eval_shape(_mapped(method.update), state, share, init_key)
  return state.replace(window={name: jnp.zeros(()) for name in (*metrics, "updates")})


def shardings(config, layout: parallel.Layout, shapes: TrainState) -> TrainState:
  """Where a run's state lies when it is made, saved and restored."""
  where = layout.shardings(shapes)
  if not config_lib.on_host(config):
    return where
  return where.replace(buffer=jax.tree.map(lambda _: mesh.host_sharding(), where.buffer))


def in_update(config, shapes: TrainState) -> TrainState:
  """The shapes of a state as `Method.update` takes and gives it: without a buffer that lies on the hosts."""
  if not config_lib.on_host(config):
    return shapes
  return shapes.replace(buffer={"written": example_batch(config, config.train.batch_size)["stored"]})


def nothing_written(config, layout: parallel.Layout) -> dict[str, Array]:
  """TrainState.buffer for the first update of a run whose buffer lies on the hosts."""
  shape = example_batch(config, config.train.batch_size)["stored"]
  sharding = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec(mesh.AXIS))
  return {"written": jax.jit(lambda: jnp.zeros(shape.shape, shape.dtype), out_shardings=sharding)()}


def make_state(method: methods.Method, config, shardings: TrainState) -> TrainState:
  """`create_state`, computed where it shall lie: a buffer on other devices than the rest."""
  fast = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None  # it runs once
  run = lambda create, where: jax.jit(create, out_shardings=where, compiler_options=fast)()
  state = run(lambda: create_state(method, config).replace(buffer={}), shardings.replace(buffer={}))
  if method.remember is None:
    return state
  return state.replace(buffer=run(lambda: method.remember(_keys(config)[0]), shardings.buffer))


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
  if config_lib.on_host(config):
    batch["stored"] = jax.ShapeDtypeStruct(images.shape, jnp.dtype(config.dddm.buffer_dtype))
  if config.task.name:
    batch["condition"] = jax.ShapeDtypeStruct((batch_size, *conditions.condition_shape(config)), jnp.float32)
  return batch


def shapes(method: methods.Method, config) -> TrainState:
  """Shapes and types of a run's state."""
  return jax.eval_shape(lambda: create_state(method, config))


def average_shapes(method: methods.Method, config) -> dict[str, Params]:
  """Those of the averages alone, {role: parameters}; no update is traced for them."""
  return jax.eval_shape(lambda: method.init(_keys(config)[0], example_batch(config)).ema)
