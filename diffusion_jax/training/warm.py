"""Fine-tuning: a run that starts from the weights of another, or of a published checkpoint (config.init_from)."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from diffusion_jax import config as config_lib
from diffusion_jax import methods
from diffusion_jax.interop import edm_checkpoint
from diffusion_jax.parameterization import Preconditioner
from diffusion_jax.training import checkpoint as checkpoint_lib
from diffusion_jax.training import start
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Params


class Source(NamedTuple):
  """What a run starts from.

  Attributes:
    params: {role: averaged parameters} as NumPy arrays.
    freqs: the Fourier frequencies that they were trained with, constants of the network; () for none of its own.
    preconditioner: the one that they were trained in, if any.
  """

  params: dict[str, Params]
  freqs: tuple[float, ...]
  preconditioner: Preconditioner | None


def load(config, workdir) -> Source | None:
  """The weights of config.init_from; None without it, and for a run that has a checkpoint of its own to go on from.

  Raises:
    ConfigError: config.init_from cannot be read.
  """
  path = config.init_from
  if not path or checkpoint_lib.has_checkpoint(workdir):
    return None
  try:
    if path.endswith(".pkl"):
      denoise, params = edm_checkpoint.load(path)
      return Source({"net": jax.device_get(params)}, denoise.network.freqs or (), denoise.preconditioner)
    source = checkpoint_lib.read_config(path)
    method = methods.from_config(source)
    params = jax.device_get(checkpoint_lib.restore(path, method, source).ema)
  except ValueError as error:
    raise config_lib.wrong("init_from", path, str(error)) from None
  return Source(params, source.network.freqs, method.preconditioner)


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


def fit(source: Source, method: methods.Method, config) -> dict[str, Params]:
  """The source's parameters of every role that the run has too; nothing compiles.

  Raises:
    ConfigError: they are of another network or preconditioner than the run's; names the first difference.
  """
  if source.preconditioner is not None and source.preconditioner != method.preconditioner:
    expected = f"init_from was trained with {source.preconditioner}, this run has {method.preconditioner}"
    raise config_lib.wrong("edm.preconditioner", config.edm.preconditioner, expected)
  target = jax.eval_shape(lambda: start.create_state(method, config)).params
  roles = [role for role in source.params if role in target]
  if not roles:
    raise config_lib.wrong("init_from", config.init_from, f"holds {', '.join(source.params)}, not {', '.join(target)}")
  for role in roles:
    have, want = _shapes(source.params[role]), _shapes(target[role])
    for name in sorted(have.keys() | want.keys()):
      if have.get(name) != want.get(name):
        there, here = (f"shape {list(s[name])}" if name in s else "no such parameter" for s in (have, want))
        raise config_lib.wrong("init_from", config.init_from, f"{name}: {there} there, {here} here")
  return {role: source.params[role] for role in roles}


def take(state: TrainState, params: dict[str, Params]) -> TrainState:
  """The first state of a run with these parameters, in their averages too."""
  copy = lambda: jax.tree.map(np.copy, params)
  return dataclasses.replace(state, params={**state.params, **copy()}, ema={**state.ema, **copy()})


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
  return {"/".join(names): leaf.shape for names, leaf in traverse_util.flatten_dict(params).items()}
