"""Fine-tuning: a run that starts from the weights of another, or of a published checkpoint (config.init_from).

Published are NVIDIA's EDM pickles (.pkl), and OpenAI's guided-diffusion files (.pt) for Dual-Output with arch "adm".
Every network of the run starts from the one that the source samples from; without config.init_only it must be like
that one. With config.init_only, parameters are taken whose path, such as "net/enc_8x8_block0/conv0/kernel", matches one
of its patterns (* stands for anything) and whose shape is that of the run's; workdir/init_from.json says of every
parameter whether it was taken, and why not.
"""

import difflib
import fnmatch
import json
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import traverse_util

from diffusion_jax import config as config_lib
from diffusion_jax import mesh, methods
from diffusion_jax import parameterization as par
from diffusion_jax import process as process_lib
from diffusion_jax.interop import adm_weights, edm_checkpoint, tensor_reader
from diffusion_jax.nets import swin
from diffusion_jax.training import checkpoint as checkpoint_lib
from diffusion_jax.training import start, update
from diffusion_jax.training.state import TrainState, inference_variables
from diffusion_jax.types import Params


class Source(NamedTuple):
  """What a run starts from.

  Attributes:
    params: the averaged parameters of the network that samplers use, as NumPy arrays.
    method: the method that trained them; "edm" for a published pickle.
    data: of config.data, what the network's input and output depend on.
    freqs: the Fourier frequencies that they were trained with, constants of the network; () for none of its own.
    preconditioner: the one that they were trained in, if any.
    network: of config.network, what shapes do not tell, or tell badly.
    dddm: of config.dddm, the same.
  """

  params: Params
  method: str
  data: dict[str, int]
  freqs: tuple[float, ...]
  preconditioner: par.Preconditioner | None
  network: dict[str, Any] = {}
  dddm: dict[str, Any] = {}


class Fit(NamedTuple):
  """What a run takes from a source.

  Attributes:
    taken: {path: array}; a path is role/module/.../name.
    reasons: {path: why not, "" if it is taken} of every parameter here or there.
  """

  taken: dict[str, np.ndarray]
  reasons: dict[str, str]


def load(config, workdir) -> Source | None:
  """The weights of config.init_from; None without it, and for a run that has a checkpoint of its own to go on from.

  Raises:
    ConfigError: config.init_from cannot be read, or is of another method or architecture.
  """
  path = config.init_from
  if not path or mesh.from_first_host(lambda: "yes" if checkpoint_lib.has_checkpoint(workdir) else "no") == "yes":
    return None
  guided_diffusion = path.endswith((".pt", ".pth"))
  if guided_diffusion and config.method != "dual_output":
    raise config_lib.wrong("init_from", path, f"a guided-diffusion file starts dual_output, not {config.method}")
  if guided_diffusion and config.network.arch != "adm":
    raise config_lib.wrong("network.arch", config.network.arch, "must be 'adm' for the guided-diffusion file init_from")
  try:
    if guided_diffusion:
      return _of_adm(path, config)
    if path.endswith(".pkl"):
      denoise, params = edm_checkpoint.load(path)
      data = _data(edm_checkpoint.as_run(denoise)[0])
      freqs, heads = denoise.network.freqs or (), {"num_heads": denoise.network.num_heads}
      return Source(jax.device_get(params), "edm", data, freqs, denoise.preconditioner, heads)
    averages, source = checkpoint_lib.load_averages(path)
  except ValueError as error:
    raise config_lib.wrong("init_from", path, str(error)) from None
  params = jax.device_get(inference_variables(averages)["params"])
  return _of_run(params, source)


def to_come(config) -> Source:
  """The weights that a run of a config will have: shapes in place of arrays, for `fit`."""
  return _of_run(inference_variables(_first_shapes(methods.from_config(config), config).ema)["params"], config)


def _first_shapes(method: methods.Method, config) -> TrainState:
  return jax.eval_shape(method.init, jax.random.key(0), start.example_batch(config))


def _of_run(params: Params, config) -> Source:
  preconditioner = methods.from_config(config).preconditioner
  heads = {"num_heads": config.network.num_heads}
  dddm = {name: config.dddm[name] for name in ("conditioning", "positions")} if config.method == "dddm" else {}
  return Source(params, config.method, _data(config), config.network.freqs, preconditioner, heads, dddm)


def _of_adm(path: str, config) -> Source:
  """The weights of a guided-diffusion file; what it does not say of its network is the config's, where that can be.

  Raises:
    ValueError: the file cannot be read, or holds another network.
  """
  tensors = adm_weights.read(path)
  found = adm_weights.architecture(tensors)
  resolution, mults, wanted = config.data.resolution, config.network.channel_mult, config.network.attention_resolutions
  levels = tuple(level for level in range(len(mults)) if resolution >> level in wanted)
  if (len(mults), levels) != (len(found.channel_mult), found.attention_levels):
    resolution = found.usual_resolution or resolution
  num_heads = found.published.num_heads if found.published else config.network.num_heads
  chain = found.published.chain if found.published else process_lib.DDPM()
  network = found.network(resolution, num_heads)
  params = adm_weights.from_state_dict(tensors, network)
  data = {"resolution": resolution, "channels": found.image_channels, "num_classes": found.num_classes}
  fields = {name: getattr(network, name) for name in ("channels", "channel_mult", "num_blocks", "num_heads")}
  return Source(params, "dual_output", data, (), par.Unconditioned(chain), fields)


def _data(config) -> dict[str, int]:
  return {name: config.data[name] for name in ("resolution", "channels", "num_classes")}


def resolve(config, source: Source | None, workdir):
  """The config with the Fourier frequencies of the weights that the run starts, or once started, from."""
  if not config.init_from or config.network.arch != "ncsnpp":
    return config
  freqs = checkpoint_lib.read_config(workdir).network.freqs if source is None else source.freqs
  if config.network.freqs not in ((), freqs):
    raise config_lib.wrong("network.freqs", config.network.freqs, "must be () or those of init_from")
  config = config.copy_and_resolve_references()
  config.network.freqs = freqs
  return config


def fit(source: Source, method: methods.Method, config) -> Fit:
  """Which of the source's parameters the run takes; nothing compiles.

  Raises:
    ConfigError: without config.init_only, a parameter, the images, the classes or the preconditioner differ (names the
      first difference), or dpdm's teacher is no diffusion model; with it, nothing fits. Attention that is taken has
      another number of heads.
  """
  params = _first_shapes(method, config).params
  here, there = _flat(params), _flat({role: source.params for role in method.initial})
  if config.init_only:
    reasons = {path: _reason(path, there, here, config.init_only) for path in sorted(here.keys() | there.keys())}
    _check_patterns("init_only", config.init_only, reasons)
    if all(reasons.values()):
      expected = f"no parameter matches and fits; {config.init_from} has {', '.join(sorted(there)[:3])}, ..."
      raise config_lib.wrong("init_only", config.init_only, expected)
    taken = {path: there[path] for path, reason in reasons.items() if not reason}
    if any("/qkv/" in path for path in taken):
      _check_fields(config, "network", {name: n for name, n in source.network.items() if name == "num_heads"})
    return Fit(taken, reasons)
  if config.method == "dpdm" and source.method != config.dpdm.diffusion:
    expected = f"dpdm's teacher must be a run of config.dpdm.diffusion = {config.dpdm.diffusion!r}, not {source.method}"
    raise config_lib.wrong("init_from", config.init_from, expected)
  _check_fields(config, "data", source.data)
  _check_fields(config, "network", source.network)
  _check_fields(config, "dddm", source.dddm)
  if source.preconditioner is not None and source.preconditioner != method.preconditioner:
    diffusion = config.dpdm.diffusion if config.method == "dpdm" else config.method
    chains = {"dual_output": ("dual", "process"), "classifier": ("classifier", "process")}
    part, field = chains.get(diffusion, ("edm", "preconditioner"))
    expected = f"init_from was trained with {source.preconditioner}, this run has {method.preconditioner}"
    raise config_lib.wrong(f"{part}.{field}", config[part][field], expected)
  for path in sorted(there.keys() | {path for path in here if path.split("/")[0] in method.initial}):
    reason = _reason(path, there, here, ("*",))
    if reason:
      raise config_lib.wrong("init_from", config.init_from, f"{path}: {reason}")
  return Fit(there, {path: "" if path in there else "its network starts by itself" for path in here})


def with_encoder(fitting: Fit | None, method: methods.Method, config, workdir) -> Fit | None:
  """`fitting` and the published weights of config.condition, if it names them; None for a run that goes on.

  Raises:
    ConfigError: they cannot be read, or are of another network.
  """
  path = config.condition.weights
  if not path or mesh.from_first_host(lambda: "yes" if checkpoint_lib.has_checkpoint(workdir) else "no") == "yes":
    return fitting
  try:
    weights = swin.from_state_dict(tensor_reader.read_state_dict(path), config.condition.encoder.removeprefix("swin_"))
  except ValueError as error:
    raise config_lib.wrong("condition.weights", path, str(error)) from None
  taken = {f"net/encoder/swin/{name}": np.asarray(value) for name, value in _flat(weights).items()}
  if fitting is None:
    paths = _flat(_first_shapes(method, config).params)
    fitting = Fit({}, {path: "its network starts by itself" for path in paths})
  return Fit({**fitting.taken, **taken}, {**fitting.reasons, **dict.fromkeys(taken, "")})


def _check_fields(config, part: str, fields: dict[str, Any]):
  for name, value in fields.items():
    if config[part][name] != value:
      raise config_lib.wrong(f"{part}.{name}", config[part][name], f"init_from was trained with {value}")


def check_frozen(config, params: dict[str, Params]):
  """Raises ConfigError where a pattern of config.optimizer.frozen matches no parameter, or all match."""
  paths, patterns = list(_flat(params)), config.optimizer.frozen
  _check_patterns("optimizer.frozen", patterns, paths)
  if all(update.frozen(config.optimizer, path) for path in paths):
    raise config_lib.wrong("optimizer.frozen", patterns, "no parameter is left to train")


def _check_patterns(field: str, patterns: tuple[str, ...], paths):
  for pattern in patterns:
    if not fnmatch.filter(paths, pattern):
      near = difflib.get_close_matches(pattern, paths, 1, 0.0)
      raise config_lib.wrong(field, patterns, f"{pattern!r} matches no parameter; nearest: {near[0]}")


def _reason(path: str, there: dict, here: dict, patterns: tuple[str, ...]) -> str:
  """Why a parameter is not taken; "" if it is."""
  if path not in here or path not in there:
    return "not in this network" if path in there else "not in that network"
  if not any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
    return "matches no pattern"
  if here[path].shape != there[path].shape:
    return f"shape {list(there[path].shape)} there, {list(here[path].shape)} here"
  return ""


def take(state: TrainState, fitting: Fit) -> TrainState:
  """The first state of a run with what was taken put in, in its averages too; it lies where the state does."""

  def put(path, mine):
    value = fitting.taken.get(path)
    return mine if value is None else jax.make_array_from_callback(mine.shape, mine.sharding, lambda i: value[i])

  def put_all(params):
    return traverse_util.unflatten_dict({path: put(path, x) for path, x in _flat(params).items()}, sep="/")

  return state.replace(params=put_all(state.params), ema=put_all(state.ema))


def report(fitting: Fit, config, workdir):
  """Writes workdir/init_from.json, and says in a line what was taken; on the first host."""
  if jax.process_index() != 0:
    return
  taken = [path for path, reason in fitting.reasons.items() if not reason]
  left = {path: reason for path, reason in fitting.reasons.items() if reason}
  record = {"init_from": config.init_from, "init_only": list(config.init_only), "taken": taken, "not_taken": left}
  if config.condition.weights:
    record["condition.weights"] = config.condition.weights
  origin = " and ".join(filter(None, (config.init_from, config.condition.weights)))
  (epath.Path(workdir) / "init_from.json").write_text(json.dumps(record, indent=1) + "\n")
  counts = ", ".join(f"{sum(r == reason for r in left.values())} {reason}" for reason in sorted(set(left.values()))[:4])
  counts = f" ({counts})" if counts else ""
  logging.warning("%d parameters are taken from %s, %d are not%s", len(taken), origin, len(left), counts)


def _flat(params: dict[str, Params]) -> dict:
  return traverse_util.flatten_dict(params, sep="/")
