"""Where and when a config.sampling samples: the process and its times."""

import math

import numpy as np

from diffusion_jax import parameterization as par
from diffusion_jax import process as process_lib
from diffusion_jax import samplers, times
from diffusion_jax.config import choose, wrong
from diffusion_jax.methods import Method
from diffusion_jax.process import Process

# Noise levels [σ_min, σ_max] of each grid where a config names none.
_RANGES = {
  "edm": (0.002, 80.0),
  "vp": tuple(times.vp_grid(2)[1::-1].tolist()),
  "ve": (0.02, 100.0),
  "iddpm": (0.002, 81.0),
  "dpdm": (1e-4, 80.0),
}


def schedule_of(config, method: Method) -> tuple[Process, np.ndarray]:
  """The process that a config.sampling samples in, and its times [n+1] (EDM's Table 1, any process with any grid).

  The range is the config's or else the grid's own, within what the network was trained on: a range that was asked for
  is clamped to it with a warning. VP's β_d and β_min are solved anew, so that its noise level has this range. Where
  networks know only a table of noise levels (iDDPM), the grid takes the nearest; levels that coincide become one. The
  grids "respaced", "decoupled" and "dddm" are made of the method's own t, and have no range to choose.

  Raises:
    ConfigError: there is no such grid or process, or no such grid with this range and number of steps.
  """
  choose("sampling.grid", config.grid, (*_RANGES, "respaced", "decoupled", "dddm"))
  if config.grid == "respaced":
    return _respaced(config, method.process)
  if config.grid == "decoupled":
    return _decoupled(config, method.process)
  if config.grid == "dddm":
    return _repeated(config, method.process)
  if not method.process.is_gaussian:
    raise wrong("sampling.grid", config.grid, f"must be 'decoupled': {method.process.attenuation} has no noise levels")
  lo, hi = _range(config, method.preconditioner)
  vp = process_lib.VP.from_range(lo, hi)
  if "vp" in (config.grid, config.process) and vp.beta_d + vp.beta_min < 0:
    raise wrong("sampling.sigma_min", config.sigma_min, f"too large for vp up to {hi:g}: its noise must grow")
  try:
    levels = {
      "edm": lambda n: times.edm_grid(n, lo, hi, config.rho),
      "vp": lambda n: times.vp_grid(n, vp.beta_d, vp.beta_min),
      "ve": lambda n: times.ve_grid(n, lo, hi),
      "iddpm": lambda n: times.iddpm_grid(n, lo, hi),
      "dpdm": lambda n: times.dpdm_grid(n, lo, hi),
    }[config.grid](config.num_steps)
  except ValueError as error:
    raise wrong("sampling.num_steps", config.num_steps, str(error)) from None
  table = None if method.preconditioner is None else method.preconditioner.levels()
  if table is not None:
    nearest = table[np.argmin(np.abs(table - levels[:-1, None]), axis=1)]
    levels = np.append(nearest[np.append(True, np.diff(nearest) < 0)], 0.0)
  process = _process(config, method.process, vp)
  return process, np.asarray(process.inverse(levels))


def with_sampler(config, name: str):
  """A copy of a run's config with another sampler, on a grid that goes with it.

  The DPDM sampler takes DPDM's grid (but in place of a decoupled one), the DDDM sampler takes DDDM's, and others take
  EDM's in place of these. The adaptive one takes the ends of a grid of noise levels alone, two steps. The run's own
  sampler leaves all as it is, and what config.sampling has of sigma_min and the rest stays in any case.
  """
  config = config.copy_and_resolve_references()
  if name != config.sampling.sampler:
    config.sampling.sampler = name
    if name == "dddm" or (name == "dpdm" and config.sampling.grid != "decoupled"):
      config.sampling.grid = name
    elif config.sampling.grid in ("dpdm", "dddm"):
      config.sampling.grid = "edm"
    if samplers.KINDS.get(name) and samplers.KINDS[name].cost is None and config.sampling.grid in _RANGES:
      config.sampling.num_steps = 2
  return config


def _process(config, own: Process, vp: process_lib.VP) -> Process:
  choices = {"own": own, "edm": process_lib.EDM(), "vp": vp, "ve": process_lib.VE()}
  return choose("sampling.process", config.process, choices)


def _respaced(config, chain: Process) -> tuple[Process, np.ndarray]:
  """`schedule_of` for the grid "respaced"; a process other than the chain has the same noise levels."""
  if not isinstance(chain, process_lib.Discrete):
    raise wrong("sampling.grid", "respaced", "needs a method whose process is a chain t = 1, ..., T: dual_output")
  _no_range(config)
  try:
    grid = times.respaced(chain.num_steps, config.num_steps)
  except ValueError as error:
    raise wrong("sampling.num_steps", config.num_steps, str(error)) from None
  known = par.Unconditioned(chain)
  process = _process(config, chain, process_lib.VP.from_range(known.sigma_min, known.sigma_max))
  return process, grid if process == chain else np.asarray(process.inverse(chain.noise_level(grid)))


def _repeated(config, chain: Process) -> tuple[Process, np.ndarray]:
  """`schedule_of` for the grid "dddm": t = T for every iteration, then 0."""
  if not isinstance(chain, process_lib.Discrete):
    raise wrong("sampling.grid", "dddm", "needs a method whose process is a chain t = 1, ..., T: dddm")
  _no_range(config)
  _no_process(config)
  return chain, np.append(np.full(config.num_steps, float(chain.num_steps)), 0.0)


def _no_range(config):
  for name in ("sigma_min", "sigma_max"):
    if config[name]:
      raise wrong(f"sampling.{name}", config[name], f"must be 0 for the grid {config.grid}, which is one of times")


def _no_process(config):
  if config.process != "own":
    raise wrong("sampling.process", config.process, f"must be 'own' for the grid {config.grid}")


def _decoupled(config, own: Process) -> tuple[Process, np.ndarray]:
  """`schedule_of` for the grid "decoupled": uniform steps of t from 1."""
  if not isinstance(own, process_lib.Decoupled):
    raise wrong("sampling.grid", "decoupled", "needs a method whose process is decoupled")
  _no_range(config)
  _no_process(config)  # t = 1 has no noise level
  return own, times.decoupled_grid(config.num_steps, config.power)


def _range(config, preconditioner: par.Preconditioner | None) -> tuple[float, float]:
  """[σ_min, σ_max] of the grid: what was asked for, clamped with a warning, or else the grid's own."""
  own = _RANGES[config.grid]
  if config.grid == "dpdm":
    own = times.dpdm_sigma_min(config.num_steps) if config.num_steps > 1 else own[1], own[1]
  asked = {0: config.sigma_min, 1: config.sigma_max}
  ends = []
  for i, name in enumerate(("sigma_min", "sigma_max")):
    if not math.isfinite(asked[i]):
      raise wrong(f"sampling.{name}", asked[i], "must be finite")
    end = np.float64(asked[i] or own[i])
    if preconditioner is not None:
      fitted = end.clip(preconditioner.sigma_min, preconditioner.sigma_max)
      end = par.clamp(preconditioner, end) if asked[i] else fitted
    ends.append(float(end))
  if ends[1] < ends[0]:
    raise wrong("sampling.sigma_max", ends[1], f"must be at least sigma_min = {ends[0]:g}")
  return tuple(ends)
