"""What a run needs, without training it (train.py --dry_run): on this machine, or on a TPU that is only described.

The memory is the compiler's own account of the compiled update. With a topology such as "v5e:2x4" the update is
compiled for those chips by libtpu, which needs none of them.
"""

import contextlib
import math
import os
import time

import jax

from diffusion_jax import mesh
from diffusion_jax.config import ConfigError
from diffusion_jax.training import loop, parallel, start, update


def show(config, workdir=None, topology: str | None = None):
  """Prints devices, batch, parameters and memory of a run; compiles its update, trains and writes nothing.

  Args:
    config: the run's.
    workdir: of a run that would go on, if there is one.
    topology: TPU chips, as jax.experimental.topologies names them; this machine's devices by default.

  Raises:
    ConfigError, WorkdirError, DataError: as `loop.train`, or there is no such topology.
  """
  layout, platform = described(config, topology) if topology else (None, contextlib.nullcontext())
  with platform:
    run = loop.prepare(config, workdir, layout)
    for line in (*description(run), *compiled(run)):
      if jax.process_index() == 0:
        print(line, flush=True)


def described(config, topology: str) -> tuple[parallel.Layout, contextlib.AbstractContextManager]:
  """The layout of a run over the chips of a topology, and the context in which its functions are traced for them."""
  from jax.experimental import topologies

  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for the machine that it would be on
  try:
    devices = topologies.get_topology_desc(topology, "tpu").devices
  except Exception as error:  # whatever libtpu raises
    raise ConfigError(f"--topology={topology}: {' '.join(str(error).split())} (needs: pip install libtpu)") from None
  split = config.train.parallel == "fsdp"  # pmap's memory is that of jit
  return parallel.Jit(split, devices), mesh.compiling_for("tpu")


def description(run: loop.Prepared) -> list[str]:
  """Lines about devices, data, batch, parameters and state."""
  config, train, devices = run.config, run.config.train, list(run.layout.mesh.devices.flat)
  hosts = len({device.process_index for device in devices})
  per_device = train.batch_size // len(devices)
  seen = train.num_steps * train.batch_size
  parts = f", in {train.accumulation} parts of {per_device // train.accumulation}" if train.accumulation > 1 else ""
  shapes = start.in_update(config, run.shapes)
  whole = {"parameters": _bytes(shapes.params), "averages": _bytes(shapes.ema), "optimizer": _bytes(shapes.opt_state)}
  if shapes.buffer:
    whole["estimates"] = _bytes(shapes.buffer)
  share = sum(
    math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(run.layout.shardings(shapes)))
  )
  split = ", split" if share < sum(whole.values()) else ""
  kind = f"{devices[0].device_kind} ({devices[0].platform})"
  return [
    f"devices      {len(devices)} × {kind}, {len(devices) // hosts} on each of {hosts} hosts",
    f"mesh         {train.parallel} over {dict(run.layout.mesh.shape)}",
    f"data         {config.data.name} {config.data.split}: {len(run.source):,} images {run.source.image_shape}",
    f"batch        {train.batch_size} = {len(devices)} devices × {per_device}{parts}",
    f"steps        {train.num_steps:,}, {seen:,} images, {seen / len(run.source):,.1f} epochs",
    *(
      f"parameters   {role}: {sum(leaf.size for leaf in jax.tree.leaves(tree)):,}"
      for role, tree in shapes.params.items()
    ),
    f"state        {share / 1e6:,.1f} MB a device: "
    + ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in whole.items())
    + split,
  ]


def compiled(run: loop.Prepared) -> list[str]:
  """Lines about the compiled update: the compiler's own account of one device's memory."""
  layout, train = run.layout, run.config.train
  one, batch = run.source.gather([0]), start.example_batch(run.config, train.batch_size)
  rows = lambda count: {k: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for k, x in one.items()}
  batch, data = {**batch, **rows(train.batch_size)}, None
  if run.config.data.cache == "device":
    batch = {name: shape for name, shape in batch.items() if name not in one}
    data = layout.everywhere_shapes(rows(len(run.source)))
  batch = layout.split_shapes(batch, train.updates_per_call)
  call = layout.compile(update.windowed(run.method.update, train.log_every), train.updates_per_call)
  key = jax.eval_shape(lambda: start.train_key(run.config))
  begin = time.perf_counter()
  program = call.lower(layout.laid_shapes(start.in_update(run.config, run.shapes)), batch, key, data).compile()
  lines = [f"compilation  {time.perf_counter() - begin:.1f} s"]
  try:
    stats = program.memory_analysis()
    held, scratch = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    fresh = max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
  except (AttributeError, NotImplementedError, RuntimeError):
    return [*lines, "memory       this backend does not tell"]
  device = layout.mesh.devices.flat[0]
  limit = (device.memory_stats() or {}).get("bytes_limit") if device in jax.local_devices() else None
  of = f" of {limit / 1e6:,.0f} MB" if limit else ""
  parts = f"state and data {held / 1e6:,.1f}, while computing {scratch / 1e6:,.1f}"
  return [*lines, f"memory       {(held + scratch + fresh) / 1e6:,.1f} MB a device{of}: {parts}"]


def _bytes(tree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
