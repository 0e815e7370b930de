"""The loop that every sampler runs in: one scan over the grid, flat in memory, indifferent to padding."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array

# step(x, index, t, s): the state at grid value s from the state at t; `index` counts the true steps from 0.
Step = Callable[[Array, Array, Array, Array], Array]


def prepare(x: Array, grid, keys=None) -> tuple[Array, Array | np.ndarray]:
  """Checks a sampler's arguments and gives state and grid one floating-point type, float32 at least.

  Raises:
    ValueError: x is not a batch, the grid is not [n+1] with n >= 1, or (where its values are known before
      compilation) it does not decrease to 0, or keys is not one key an image.
  """
  if jnp.ndim(x) < 2:
    raise ValueError(f"x must be a batch of images [B, H, W, C], got shape {list(jnp.shape(x))}")
  if np.ndim(grid) != 1 or len(grid) < 2:  # NumPy's, which takes lists
    raise ValueError(f"grid must be [n+1] with n >= 1, got shape {list(np.shape(grid))}")
  if keys is not None and keys.shape[0] != x.shape[0]:
    raise ValueError(f"keys must hold one key an image [{x.shape[0]}], got shape {list(keys.shape)}")
  dtype = jnp.promote_types(jnp.result_type(x), jnp.float32)
  if isinstance(grid, jax.core.Tracer):
    return jnp.asarray(x, dtype), grid.astype(dtype)
  grid = np.asarray(grid, dtype)  # stays on the host: its padding can be seen before compilation
  if not (np.all(grid[:-1] > 0) and grid[-1] == 0 and np.all(np.diff(grid) <= 0) and np.isfinite(grid[0])):
    raise ValueError(f"grid must decrease from a finite t to 0, got {grid}")
  return jnp.asarray(x, dtype), grid


def need_keys(name: str, keys):
  """Raises ValueError if the noise-drawing sampler `name` was given no keys."""
  if keys is None:
    raise ValueError(f"{name} draws noise: keys must hold one PRNG key an image, got None")


def num_steps(grid) -> Array:
  """True number of steps of a grid that may be padded by `times.pad`."""
  return jnp.sum(grid[1:] != grid[:-1])


def run(
  step: Step, last: Step, x: Array, grid: Array, trajectory: bool = False, memory=None, return_memory: bool = False
):
  """Applies `step` between the grid's positive values by lax.scan, and `last` from the smallest of them to 0.

  Repeated values (padding) cost nothing: a branch passes over their step.

  Args:
    step: for t -> s with s > 0.
    last: for t -> 0.
    x: state at grid[0], [B, ...].
    grid: [n+1].
    trajectory: return the states too.
    memory: pytree of arrays that each step leaves to the next: `step` then takes and returns (state, memory) in place
      of the state, and `last` takes it.
    return_memory: return that of the last `step` too.

  Returns:
    The state at 0 [B, ...]; with `trajectory`, also the states at all grid values [n+1, B, ...]; with `return_memory`,
    (all that, memory).
  """
  end, states = _between(step, x if memory is None else (x, memory), grid[:-1], trajectory)
  if memory is not None and trajectory:
    states = states[0]
  x0 = last(end, num_steps(grid) - 1, jnp.asarray(grid[-2]), jnp.zeros((), grid.dtype))
  out = (x0, jnp.concatenate([x[None], states, x0[None]])) if trajectory else x0
  return (out, end[1]) if return_memory else out


def rise(step: Step, first: Callable[[Array, Array], Array], x0: Array, grid: Array, trajectory: bool = False):
  """`run` upward: `first` from 0 to the grid's smallest positive value, then `step` between them to grid[0].

  Args:
    step: for t -> s with s > t > 0.
    first: first(x0, s), for 0 -> s.
    x0: state at 0, [B, ...].
    grid: [n+1], decreasing to 0 as for `run`, which may be padded.
    trajectory: return the states too.

  Returns:
    The state at grid[0] [B, ...]; with `trajectory`, also the states at all grid values [n+1, B, ...], in its order.
  """
  x_min = first(x0, jnp.asarray(grid[-2]))
  x, states = _between(step, x_min, grid[-2::-1], trajectory)
  return (x, jnp.concatenate([x0[None], x_min[None], states])[::-1]) if trajectory else x


def _between(step: Step, x: Array, values, trajectory: bool):
  """Takes x at values[0] to values[-1] by a scan; returns the last state and (with `trajectory`) all but the first."""
  padded = isinstance(values, jax.core.Tracer) or np.any(values[1:] == values[:-1])

  def body(x, inputs):
    index, t, s = inputs
    if padded:
      x = jax.lax.cond(s == t, lambda x: x, lambda x: step(x, index, t, s), x)
    else:
      x = step(x, index, t, s)
    return x, x if trajectory else None

  index = jnp.arange(len(values) - 1)
  return jax.lax.scan(body, x, (index, jnp.asarray(values[:-1]), jnp.asarray(values[1:])))
