"""What a run is made of between two steps, and the keys of an example."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from diffusion_jax.types import Array, Key, Params


@flax.struct.dataclass
class TrainState:
  """Everything that training carries; saved whole, so that a resumed run goes on bit for bit.

  Attributes:
    step: number of updates done, skipped ones included; int32.
    params: {role: parameters}. A method with one network calls its role "net".
    ema: {role: averaged parameters} of the one network that samplers use.
    opt_state: {role: optimizer state}.
    skipped: updates skipped because loss or gradient was not finite, int32.
    skipped_in_row: those since the last good one, int32.
    window: sums of the metrics since the last log line, and their number.
    buffer: what the method remembers of every example, arrays [slices, rows, ...] that are split over the devices by
      their first axis, see training/memory.py; {} of most methods. Where that lies on the hosts, between updates what
      the last one has for them, [B, ...], split likewise.
  """

  step: Array
  params: dict[str, Params]
  ema: dict[str, Params]
  opt_state: dict[str, Any]
  skipped: Array
  skipped_in_row: Array
  window: dict[str, Array] = flax.struct.field(default_factory=dict)
  buffer: dict[str, Array] = flax.struct.field(default_factory=dict)


def create(params: dict[str, Params], opt_state: dict[str, Any], averaged: str = "net") -> TrainState:
  """The state before the first update; the averages of the role `averaged` start at its parameters."""
  zero = jnp.zeros((), jnp.int32)
  ema = {averaged: jax.tree.map(jnp.copy, params[averaged])}
  return TrainState(zero, params, ema, opt_state, zero, zero)


def example_keys(key: Key, step: Array, slot: Array) -> Key:
  """One key an example, [B]: of the run's key, the step and the example's slot in the global batch, nothing else.

  All randomness of an example comes from its key, so a run does not depend on how its batch lies on devices and hosts.
  """
  key = jax.random.fold_in(key, step)
  return jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slot)


def inference_variables(ema: dict[str, Params]) -> dict[str, Params]:
  """What `Method.denoise` takes: the parameters of the one network whose averages are kept."""
  (params,) = ema.values()
  return {"params": params}
