"""What a run needs, without training it (train.py --dry_run)."""

import math
import time

import jax
import numpy as np

from diffusion_jax.training import loop, start, update


def show(config, workdir=None):
  """Prints devices, batch, parameters and memory of a run; compiles its update, trains and writes nothing.

  Args:
    config: the run's.
    workdir: of a run that would go on, if there is one.

  Raises:
    ConfigError, WorkdirError, DataError: as `loop.train`.
  """
  run = loop.prepare(config, workdir)
  lines = describe(run)
  if jax.process_index() == 0:
    for line in lines:
      print(line)
  memory = compiled_memory(run)
  if jax.process_index() == 0:
    for line in memory:
      print(line)


def describe(run: loop.Prepared) -> list[str]:
  """Lines about devices, data, batch, parameters and state."""
  config, devices, train = run.config, jax.devices(), run.config.train
  local, hosts = jax.local_device_count(), jax.process_count()
  per_device = train.batch_size // len(devices)
  seen = train.num_steps * train.batch_size
  sizes = {role: sum(leaf.size for leaf in jax.tree.leaves(tree)) for role, tree in run.shapes.params.items()}
  lines = [
    f"devices      {len(devices)} × {devices[0].device_kind} ({devices[0].platform}), {local} on each of {hosts} hosts",
    f"mesh         {train.parallel} over {dict(run.layout.mesh.shape)}",
    f"data         {config.data.name} {config.data.split}: {len(run.source):,} images {run.source.image_shape}",
    f"batch        {train.batch_size} = {len(devices)} devices × {per_device}"
    + (f", in {train.accumulation} parts of {per_device // train.accumulation}" if train.accumulation > 1 else ""),
    f"steps        {train.num_steps:,}, {seen:,} images, {seen / len(run.source):,.1f} epochs",
  ]
  lines += [f"parameters   {role}: {size:,}" for role, size in sizes.items()]
  parts = {"parameters": run.shapes.params, "averages": run.shapes.ema, "optimizer": run.shapes.opt_state}
  whole = {name: _bytes(tree) for name, tree in parts.items()}
  shardings = run.layout.shardings(run.shapes)
  share = sum(
    math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf, sharding in zip(jax.tree.leaves(run.shapes), jax.tree.leaves(shardings))
  )
  whole_parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in whole.items())
  split = ", split" if share < sum(whole.values()) else ""
  lines.append(f"state        {share / 1e6:,.1f} MB a device: {whole_parts}{split}")
  return lines


def compiled_memory(run: loop.Prepared) -> list[str]:
  """Lines about the compiled update: the compiler's own account of one device's memory."""
  per_call, layout, size = run.config.train.updates_per_call, run.layout, run.config.train.batch_size
  rows = np.zeros(size // jax.process_count(), np.int32)
  image = np.zeros((len(rows), *run.source.image_shape), run.source.gather(np.arange(1))["image"].dtype)
  batch = layout.split([{"image": image, "label": rows, "index": rows, "slot": rows}] * per_call)
  state = layout.laid_shapes(run.shapes)
  call = layout.compile(update.windowed(run.method.update, run.config.train.log_every), per_call)
  begin = time.perf_counter()
  compiled = call.lower(state, batch, start.train_key(run.config), None).compile()
  lines = [f"compilation  {time.perf_counter() - begin:.1f} s"]
  try:
    stats = compiled.memory_analysis()
    held, scratch = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
  except (AttributeError, NotImplementedError, RuntimeError):
    return [*lines, "memory       this backend does not tell"]
  total = held + scratch + max(fresh, 0)
  limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
  of = f" of {limit / 1e6:,.0f} MB" if limit else ""
  lines.append(
    f"memory       {total / 1e6:,.1f} MB a device{of}: state and batch {held / 1e6:,.1f}, while computing "
    f"{scratch / 1e6:,.1f}"
  )
  return lines


def _bytes(tree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
