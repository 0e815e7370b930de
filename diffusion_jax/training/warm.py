"""Fine-tuning: a run that starts from the weights of another, or of a published checkpoint (config.init_from)."""

import functools

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from diffusion_jax import config as config_lib
from diffusion_jax import methods
from diffusion_jax.interop import edm_checkpoint
from diffusion_jax.training import checkpoint as checkpoint_lib
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Params


def resolve(config, workdir):
  """The config with the Fourier frequencies of the weights it starts from: constants that they were trained with.

  A run that exists keeps those of its own config.json, so that it goes on where the source is gone.

  Raises:
    ConfigError: config.init_from cannot be read.
  """
  if not config.init_from or config.network.freqs:
    return config
  if (epath.Path(workdir) / "config.json").exists():
    freqs = checkpoint_lib.read_config(workdir).network.freqs
  else:
    freqs = _source(config.init_from)[0]
  config = config.copy_and_resolve_references()
  config.network.freqs = freqs
  return config


def take(state: TrainState, config) -> TrainState:
  """The first state of a run with the averaged parameters of config.init_from, in every role that both have.

  Raises:
    ConfigError: it cannot be read, or it holds another network or another preconditioner than the run's.
  """
  _, preconditioner, params = _source(config.init_from)
  if preconditioner not in ("", config.edm.preconditioner):
    raise config_lib.wrong("edm.preconditioner", config.edm.preconditioner, f"init_from has {preconditioner!r}")
  roles = [role for role in params if role in state.params]
  common = {role: _fitted(config.init_from, params[role], state.params[role]) for role in roles}
  if not common:
    raise config_lib.wrong("init_from", config.init_from, f"holds {', '.join(params)}, not {', '.join(state.params)}")
  copy = lambda: jax.tree.map(np.copy, common)
  return state.replace(params={**state.params, **copy()}, ema={**state.ema, **copy()})


@functools.lru_cache(maxsize=1)
def _source(path: str) -> tuple[tuple[float, ...], str, dict[str, Params]]:
  """(Fourier frequencies, preconditioner, {role: averaged parameters}) of a workdir or a published pickle."""
  try:
    if path.endswith(".pkl"):
      denoise, params = edm_checkpoint.load(path)
      return denoise.network.freqs or (), edm_checkpoint.column(denoise), {"net": params}
    source = checkpoint_lib.read_config(path)
    method = methods.from_config(source)
    state = checkpoint_lib.restore(path, method, source)
  except ValueError as error:
    raise config_lib.wrong("init_from", path, str(error)) from None
  return source.network.freqs, source.edm.preconditioner if source.method == "edm" else "", state.ema


def _fitted(path: str, source: Params, target: Params) -> Params:
  """`source` if it has the structure and shapes of `target`; a ConfigError that names the first difference else."""
  flat = lambda tree: {"/".join(names): leaf.shape for names, leaf in traverse_util.flatten_dict(tree).items()}
  have, want = flat(source), flat(target)
  for name in sorted(have.keys() | want.keys()):
    if have.get(name) != want.get(name):
      shown = lambda shape: "no such parameter" if shape is None else f"shape {list(shape)}"
      raise config_lib.wrong("init_from", path, f"{name}: {shown(have.get(name))} there, {shown(want.get(name))} here")
  return source
