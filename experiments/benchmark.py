"""Measures a config on this machine: sampling, training, compilation, memory, and the share of the machine they use.

  python experiments/benchmark.py --config=configs/edm_digits.py --out=runs/benchmark_digits
  python experiments/benchmark.py --config=configs/edm_cifar10.py:cond-vp-E --config.train.batch_size=16 --only=update
  python experiments/benchmark.py --config=configs/edm_cifar10.py --input

Weights and images are random: a data set is not needed, and its reading is measured by --input alone. Everything is
measured in turns in one process, with median and quartiles over the turns: the machine's rate for a square matrix
product (the best size) and for one large convolution, in the config's dtype, then the network, the sampler, the update.
Operations are 2 a multiplication, in products and convolutions alone, padding included; an update is three evaluations'
worth. Of DPDM, whose update is nine, that of its teacher's plain training is measured beside it (the paper's Table 6),
of Dual-Output that of a network of noise alone, of DDDM's buffer that of the same network without one.
"""

import collections
import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from benchmark_input import measure as measure_input
from benchmark_input import show as show_input
from etils import epath

from diffusion_jax import cli, mesh, methods, sampling
from diffusion_jax import config as config_lib
from diffusion_jax.data import batching
from diffusion_jax.nets import layers
from diffusion_jax.training import parallel, start, update
from diffusion_jax.training import state as state_lib

get_config = cli.define_config()
_OUT = flags.DEFINE_string("out", None, "Writes OUT.json, and with --profile the folders OUT_network, OUT_update.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace OUT.json if it is there.")
_PROFILE = flags.DEFINE_bool("profile", False, "Write profiler traces under OUT and print the five largest costs.")
_SAMPLE_BATCH = flags.DEFINE_integer("sample_batch", 64, "Images that are sampled at a time, over all devices.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Turns; every one runs each case once.")
_INPUT = flags.DEFINE_bool("input", False, "Measure how fast the config's own data are read, and nothing else.")
_ONLY = flags.DEFINE_enum("only", None, ["sampler", "update"], "Leave the other of the two out.")

_EXAMPLES = 50_000  # that DDDM remembers, where the config does not say
_CONV = (16, 32, 256)  # images a device, their height and width, channels in and out


class Case(NamedTuple):
  """One thing that is timed: run() waits for its result."""

  run: Callable
  operations: float  # of a call, over all devices
  images: int = 0
  compiled: jax.stages.Compiled | None = None
  compile_seconds: float = 0.0


def compiled_case(function, args, operations: float, images: int = 0, chain: bool = False) -> Case:
  """Compiles a jitted or pmapped function, and runs it once.

  Args:
    function: what jax.jit or jax.pmap returned.
    args: its arguments.
    operations: of a call.
    images: of a call.
    chain: the first of the results is the first argument of the next call, which is donated.
  """
  begin = time.perf_counter()
  compiled = function.lower(*args).compile()
  compiling = time.perf_counter() - begin
  held = list(args)

  def run():
    out = jax.block_until_ready(compiled(*held))
    if chain:
      held[0] = out[0]

  run()
  return Case(run, operations, images, compiled, compiling)


def seconds_of(run: Callable) -> float:
  """Wall-clock time of run()."""
  begin = time.perf_counter()
  run()
  return time.perf_counter() - begin


def products(jaxpr) -> float:
  """Operations in the matrix products and convolutions of a jaxpr without loops."""
  total = 0.0
  for eqn in jaxpr.eqns:
    inner = [leaf for value in eqn.params.values() for leaf in (value if isinstance(value, tuple) else (value,))]
    total += sum(products(getattr(p, "jaxpr", p)) for p in inner if hasattr(getattr(p, "jaxpr", p), "eqns"))
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
    elif eqn.primitive.name == "conv_general_dilated":
      kernel = eqn.invars[1].aval
      total += 2 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
  return total


def matmul_case(dtype) -> Case:
  """The best of square products on every device, doubled in size until one takes 50 ms."""
  count, best, rate, size = jax.local_device_count(), None, 0.0, 1024
  while size <= 16384:
    x = mesh.spread(np.full((count, size, size), 1 / size, dtype))
    case = compiled_case(jax.jit(jnp.matmul), (x, x), 2 * count * size**3)
    seconds = min(seconds_of(case.run) for _ in range(3))
    if case.operations / seconds > rate:
      best, rate = case, case.operations / seconds
    if seconds > 0.05:
      break
    size *= 2
  return best


def conv_case(dtype) -> Case:
  """One large convolution on every device."""
  images, size, channels = _CONV
  images *= jax.local_device_count()
  x = mesh.spread(np.ones((images, size, size, channels), dtype))
  kernel = mesh.everywhere(np.ones((3, 3, channels, channels), dtype))
  return compiled_case(jax.jit(layers.conv3x3), (x, kernel), 18 * images * size**2 * channels**2)


def sampling_cases(config, method, variables, with_sampler: bool) -> tuple[dict[str, Case], int]:
  """The network of a config at --sample_batch, the sampler if wanted, and its evaluations an image."""
  batch = _SAMPLE_BATCH.value
  if batch < 1 or batch % jax.local_device_count():
    raise cli.UsageError(f"--sample_batch={batch}: must be a multiple of the {jax.local_device_count()} devices")
  setting, data = config.sampling, config.data
  grid = sampling.schedule_of(setting, method)[1]
  shape = (data.resolution, data.resolution, data.channels)
  labels = sampling.default_labels(config, np.arange(batch))
  labels = None if labels is None else mesh.spread(labels.astype(np.int32))
  keys = mesh.spread(sampling.keys_of(np.arange(batch)))
  variables = mesh.everywhere(variables)

  def network(variables, x, t, labels):
    cond = {} if labels is None else {"label": labels}
    if setting.sampler == "dddm":
      cond["previous"] = x
    return method.denoise(variables, x, t, cond or None).clean

  def sample(grid):
    chosen = {**sampling.arguments_of(setting, method), "grid": grid}
    images = sampling.sample(method, variables, keys, shape, labels=labels, **chosen)
    return jax.block_until_ready(images)

  x = jax.random.normal(jax.random.key(0), (batch, *shape))
  args = (variables, mesh.spread(x), mesh.everywhere(jnp.float32(1.0)), labels)
  work = products(jax.make_jaxpr(network)(*args).jaxpr)
  evaluations = sampling.evaluations(setting, method)
  if evaluations is None:
    raise cli.UsageError(f"--sampler={setting.sampler}: its evaluations depend on what the network says")
  network = compiled_case(jax.jit(network), args, work, batch)
  if not with_sampler:
    return {"network": network}, evaluations
  one_step = np.append(np.full(len(grid) - 1, grid[0]), 0.0)  # repeated times are passed over
  compiling = seconds_of(lambda: sample(one_step)) - seconds_of(lambda: sample(one_step))
  sampler = Case(lambda: sample(grid), evaluations * work, batch, None, compiling)
  sampler.run()
  return {"network": network, "sampler": sampler}, evaluations


def update_case(config, method, layout, state, network_operations: float) -> Case:
  """A call of the training loop's update: config.train.updates_per_call updates, each of its batch."""
  passes = 4 * config.dpdm.score_steps + 5 if config.method == "dpdm" else 3
  per_call, first_and_stop = config.train.updates_per_call, parallel.host_slots(config.train.batch_size)
  rows = np.arange(*first_and_stop, dtype=np.int32)
  index = rows
  if config_lib.remembers(config):
    examples = config.dddm.num_examples, config_lib.slices(config)
    index = batching.indices(0, 0, config.train.batch_size, *examples)[slice(*first_and_stop)].astype(np.int32)
  shapes, rng = start.example_batch(config, len(rows)), np.random.default_rng(0)
  batch = {"image": rng.uniform(-1, 1, shapes["image"].shape).astype(np.float32), "index": index, "slot": rows}
  if config_lib.on_host(config):
    batch["stored"] = np.zeros(shapes["stored"].shape, shapes["stored"].dtype)
  if config.data.name == config_lib.LATENTS:
    batch["log_variance"] = batch["image"]
  batch["label"] = rows % max(config.data.num_classes, 1)
  run = layout.compile(update.windowed(method.update, config.train.log_every), per_call)
  args = (state, layout.split([batch] * per_call), start.train_key(config), None)
  images = per_call * len(rows)
  return compiled_case(run, args, passes * images * network_operations, images, chain=True)


def first_state(config, method, layout):
  """A run's first state, laid for its update."""
  where = start.shardings(config, layout, start.shapes(method, config))
  state = start.make_state(method, config, where)
  if config_lib.on_host(config):
    state = state.replace(buffer=start.nothing_written(config, layout))
  return layout.lay(state)


def plain(config):
  """The config that a run is measured against: of DPDM its teacher's, of Dual-Output that of noise alone, of DDDM's
  buffer x̄_0 from noise; or None."""
  config = config.copy_and_resolve_references()
  if config.method == "dpdm":
    config.method, config.init_from = config.dpdm.diffusion, ""
  elif config.method == "dual_output" and config.dual.heads == "dual":
    config.dual.heads = "eps"
  elif config_lib.remembers(config):
    config.dddm.update(estimates="noise", buffer_refresh=0.0, buffer_writes="estimate", buffer_memory="device")
    config.dddm.consistency_weight = False
  else:
    return None
  return config


def state_bytes(config) -> int:
  """The size of a run's training state."""
  leaves = jax.tree.leaves(start.shapes(methods.from_config(config), config))
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def measure(cases: dict[str, Case], repeats: int) -> dict[str, dict]:
  """Times the cases in turns; {name: rates, compile seconds, memory}, times as (lower quartile, median, upper).

  A turn times one call; of cases under half a second, the best of three after another.
  """
  seconds = {name: [] for name in cases}
  for _ in range(repeats):
    for name, case in cases.items():
      first = seconds_of(case.run)
      quick = first < 0.5  # the first call after a large one pays for the memory and cache that the other held
      seconds[name].append(min(seconds_of(case.run) for _ in range(3)) if quick else first)
  results = {}
  for name, case in cases.items():
    quartiles = np.quantile(seconds[name], [0.25, 0.5, 0.75])
    results[name] = {
      "seconds": quartiles.tolist(),
      "turns": seconds[name],
      "gflops_per_second": (case.operations / quartiles[::-1] / 1e9).tolist(),
      "compile_seconds": case.compile_seconds,
      "memory_bytes": _compiled_memory(case.compiled),
    }
    if case.images:
      results[name]["images_per_second"] = (case.images / quartiles[::-1]).tolist()
      results[name]["gflops_per_image"] = case.operations / case.images / 1e9
      for machine in ("matmul", "convolution"):
        ratios = np.divide(seconds[machine], seconds[name]) * case.operations / cases[machine].operations
        results[name][f"utilisation_{machine}"] = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
  return results


def _compiled_memory(compiled) -> int | None:
  """Arguments, results and temporaries of one device; None where the compiler does not tell."""
  try:
    stats = compiled.memory_analysis()
    parts = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return int(parts - stats.alias_size_in_bytes)
  except (AttributeError, NotImplementedError, RuntimeError):
    return None


def _xla_operations(compiled) -> float | None:
  """XLA's own count for one device, of all arithmetic and without the padding; loops count once."""
  try:
    analysis = compiled.cost_analysis()
    return float((analysis[0] if isinstance(analysis, list) else analysis)["flops"])
  except (KeyError, TypeError, IndexError, NotImplementedError, RuntimeError):
    return None


def peak_memory() -> dict[str, int | None]:
  """Bytes at the peak: of the first local device (None where it does not count), and of this process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
  return {"device": stats.get("peak_bytes_in_use"), "process": resident}


def profile(case: Case, folder: epath.Path) -> list[tuple[str, float]] | None:
  """Writes a trace of one call; its operations by their share of the summed time, the largest first.

  An operation's name is that of the JAX primitive at the end of a fusion. None where the trace holds no times.
  """
  with jax.profiler.trace(str(folder)):
    case.run()
  traces = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
  if not traces or not hasattr(jax.profiler, "ProfileData"):
    return None
  names = dict(re.findall(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', case.compiled.as_text(), re.M))
  totals = collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(str(traces[-1])).planes:
    for event in (event for line in plane.lines for event in line.events):
      operation = dict(event.stats).get("hlo_op")
      if operation:
        path = names.get(operation, operation)
        kind = re.sub(r"[.\d]+$", "", path.rsplit("/", 1)[-1])
        totals[f"{kind}, backward" if "transpose(" in path else kind] += event.duration_ns
  total = sum(totals.values())
  return [(name, value / total) for name, value in totals.most_common()] if total else None


def show(record: dict):
  """Prints a record as a table."""
  print(f"{record['devices']} × {record['device']}, {record['dtype']}, jax {record['jax']}")
  columns = "{:13}{:>10}{:>10}{:>18}{:>11}{:>9}{:>10}{:>10}"
  print(columns.format("", "images/s", "GFLOP/s", "quartiles", "of matmul", "of conv", "compile", "memory"))
  share = lambda result, key: f"{result[key][1]:.1%}" if key in result else ""
  for name, result in record["cases"].items():
    low, middle, high = result["gflops_per_second"]
    images = f"{result['images_per_second'][1]:.4g}" if "images_per_second" in result else ""
    shares = share(result, "utilisation_matmul"), share(result, "utilisation_convolution")
    compiling, memory = f"{result['compile_seconds']:.1f} s", result["memory_bytes"]
    memory = "" if memory is None else f"{memory / 1e6:.0f} MB"
    print(columns.format(name, images, f"{middle:.4g}", f"{low:.4g} – {high:.4g}", *shares, compiling, memory))
  if "sampler" in record["cases"]:
    print(f"sampler: NFE {record['nfe']}, time over NFE evaluations of the network {record['sampler_overhead'][1]:.3f}")
  if "over_plain_update" in record:
    low, middle, high = record["over_plain_update"]
    mine, its = record["state_bytes"].values()
    times = f"{middle:.2f} of its time ({low:.2f} – {high:.2f})"
    print(f"update over plain update: {times}, training state {mine / 1e6:.1f} MB, {mine / its:.2f} of its")
  device = record["peak_memory_bytes"]["device"]
  counted = "not counted" if device is None else f"{device / 1e6:.0f} MB"
  print(f"peak memory: device {counted}, process {record['peak_memory_bytes']['process'] / 1e6:.0f} MB")
  for name, costs in record["profile"].items():
    if costs is None:
      print(f"{name}: this backend's trace holds no times of operations")
    else:
      print(f"{name}: " + ", ".join(f"{kind} {share:.1%}" for kind, share in costs[:5]))


def main():
  config = get_config()
  if config.method == "dddm":
    config.dddm.num_examples = config.dddm.num_examples or _EXAMPLES
  config_lib.check(config, jax.device_count())
  if _REPEATS.value < 1:
    raise cli.UsageError(f"--repeats={_REPEATS.value}: at least 1")
  if _INPUT.value and (_PROFILE.value or _ONLY.value):
    raise cli.UsageError("--input goes without --profile and --only")
  if _PROFILE.value and not _OUT.value:
    raise cli.UsageError("--profile needs --out: where the traces go")
  out = epath.Path(_OUT.value) if _OUT.value else None
  path = out and out.parent / f"{out.name}.json"
  if path and path.exists() and not _OVERWRITE.value:
    raise cli.UsageError(f"--out={out}: {path} is already there; pass --overwrite or another --out")
  if _INPUT.value:
    record = measure_input(config, parallel.host_slots(config.train.batch_size), _REPEATS.value)
    show_input(record)
    return write(record, path)
  if config.data.name == config_lib.LATENTS and not config.latent.scale:
    config.latent.scale = 1.0  # what is timed reads no data
  layout = parallel.from_config(config.train.parallel)
  method = methods.from_config(config, layout.axis_name)
  if method.denoise is None:
    raise cli.UsageError(f"--config: method {config.method!r} draws no images, of which sampling could be timed")
  if config.sampling.classifier_scale:
    raise cli.UsageError("--config.sampling.classifier_scale: guidance by a classifier is not timed here")
  sampling.schedule_of(config.sampling, method)

  state = first_state(config, method, layout)
  variables = state_lib.inference_variables(layout.whole(state.ema))
  cases, evaluations = sampling_cases(config, method, variables, _ONLY.value != "update")
  if _ONLY.value != "sampler":
    work = cases["network"].operations / cases["network"].images
    cases["update"] = update_case(config, method, layout, state, work)
    if (other := plain(config)) is not None:
      plainly = methods.from_config(other, layout.axis_name)
      cases["plain update"] = update_case(other, plainly, layout, first_state(other, plainly, layout), work)
  dtype = jnp.dtype(config.network.dtype)
  cases = {"matmul": matmul_case(dtype), "convolution": conv_case(dtype), **cases}
  results = measure(cases, _REPEATS.value)

  device = jax.local_devices()[0]
  record = {
    "config": config.to_dict(),
    "device": device.device_kind,
    "platform": device.platform,
    "devices": jax.local_device_count(),
    "dtype": dtype.name,
    "jax": jax.__version__,
    "repeats": _REPEATS.value,
    "sample_batch": _SAMPLE_BATCH.value,
    "nfe": evaluations,
    "cases": results,
    "xla_operations": {name: _xla_operations(cases[name].compiled) for name in ("convolution", "network")},
    "peak_memory_bytes": peak_memory(),
    "profile": {},
  }
  if "plain update" in results:
    ratios = np.divide(results["update"]["turns"], results["plain update"]["turns"])
    record["over_plain_update"] = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    record["state_bytes"] = {"update": state_bytes(config), "plain update": state_bytes(plain(config))}
  if "sampler" in results:
    overhead = np.divide(results["sampler"]["turns"], results["network"]["turns"]) / evaluations
    record["sampler_overhead"] = np.quantile(overhead, [0.25, 0.5, 0.75]).tolist()
  if _PROFILE.value:
    for name in ("network", "update"):
      if name in cases:
        record["profile"][name] = profile(cases[name], out.parent / f"{out.name}_{name}")
  show(record)
  write(record, path)


def write(record: dict, path: epath.Path | None):
  """Writes a record as JSON, if a path is given."""
  if path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
  cli.run(main)
