"""What else a config.sampling says: the sampler's options, guidance, clipping, r of dual_output; and what it costs."""

import numpy as np

from diffusion_jax import process as process_lib
from diffusion_jax import samplers
from diffusion_jax.config import ratios, wrong
from diffusion_jax.methods import Method
from diffusion_jax.samplers import catalogue
from diffusion_jax.sampling.schedule import schedule_of


def arguments_of(config, method: Method) -> dict:
  """All keyword arguments of `sample` that a config.sampling says.

  Raises:
    ConfigError: as `schedule_of`, `options_of` and `ratio_of`.
  """
  process, grid = schedule_of(config, method)
  return {
    "grid": grid,
    "sampler": config.sampler,
    "process": process,
    "ratio": ratio_of(config, method),
    "clip": clip_of(config),
    "clip_percentile": config.clip_percentile or None,
    **guidance_of(config),
    **options_of(config, method),
  }


def options_of(config, method: Method) -> dict:
  """The keyword arguments of the sampler that a config.sampling names.

  Raises:
    ConfigError: the sampler has no such order, or none in so few steps.
  """
  name, options = config.sampler, {}
  check_order(config, method)
  if config.order:  # else the sampler's own
    options["order"] = config.order
  if config.churn:
    table = None if method.preconditioner is None else method.preconditioner.levels()
    options["churn"] = samplers.Churn(config.churn, config.s_min, config.s_max, config.s_noise, table)
  if config.eta:
    options["eta"] = config.eta
  if name == "decoupled" and config.refit:
    options["refit"] = config.refit
  own = {
    "ddpm": {"variance": config.variance},
    "predictor_corrector": {"snr": config.snr},
    "dddm": {"clamp": config.clip or None},
    "unipc": {"variant": config.variant},
    "dpmpp_2m_sde": {"tau": config.tau},
    "sa_solver": {"tau": config.tau, "s_min": config.tau_min, "s_max": config.tau_max},
    "rk45": {"rtol": config.rtol, "atol": config.atol},
  }
  return options | own.get(name, {})


def check_order(config, method: Method):
  """Raises ConfigError where the sampler of a config.sampling has no such order, or none in so few steps."""
  kind, steps = samplers.KINDS[config.sampler], len(schedule_of(config, method)[1]) - 1
  if not kind.has_order:
    if config.order:
      raise wrong("sampling.order", config.order, f"must be 0 for the sampler {config.sampler}, which has but one")
    if steps < kind.history:
      expected = f"must be at least {kind.history} for the sampler {config.sampler}, whose steps use as many estimates"
      raise wrong("sampling.num_steps", config.num_steps, expected)
    return
  if config.order and config.order not in kind.orders:
    known = ", ".join(str(order) for order in sorted(kind.orders))
    raise wrong("sampling.order", config.order, f"must be 0 or one of {known} for the sampler {config.sampler}")
  if config.order > steps:
    raise wrong("sampling.order", config.order, f"must be at most the number of steps ({steps})")


def clip_of(config) -> float | None:
  """The limit to which a config.sampling has `guidance.threshold` bring images; None: not, as dddm clips by itself."""
  return None if config.sampler == "dddm" and not config.clip_percentile else config.clip or None


def guidance_of(config) -> dict:
  """The keyword arguments of `sample` by which a config.sampling guides without a classifier; of what is on alone."""
  if config.guidance == 1:
    return {}
  out, interval = {"guidance": config.guidance}, (config.guidance_sigma_min, config.guidance_sigma_max)
  if interval[0] > 0 or interval[1] < process_lib.MAX_NOISE_LEVEL:
    out["guidance_interval"] = interval
  if config.guidance_rescale:
    out["guidance_rescale"] = config.guidance_rescale
  return out


def ratio_of(config, method: Method) -> tuple[np.ndarray, np.ndarray] | None:
  """What a config.sampling says of dual_output's r: (times [K] of the method's process, values [K]); None: r_θ.

  With `switch` the image head is used at the times of the first so many steps, the noise head from the next one on.

  Raises:
    ConfigError: r is not in [0, 1], or its means are asked for and have not been put in.
  """
  if config.ratio == "mean":
    expected = "has to be measured before: by experiments/r_table.py, or evaluate.py and sample.py, for a trained run"
    raise wrong("sampling.ratio", "mean", expected)
  numbers = ratios(config.ratio)
  if config.switch:
    process, grid = schedule_of(config, method)
    if config.switch >= len(grid):
      raise wrong("sampling.switch", config.switch, f"must be at most the number of steps ({len(grid) - 1})")
    ends = grid[[config.switch, config.switch - 1]]
    if process != method.process:
      ends = method.process.inverse(process.noise_level(ends))
    return np.asarray(ends, np.float32), np.float32([0, 1])
  if numbers is None:
    return None
  numbers = numbers * 2 if len(numbers) == 1 else numbers
  knots = method.process.num_steps * np.arange(1, len(numbers) + 1) / len(numbers)
  return knots.astype(np.float32), np.float32(numbers)


def evaluations(config, method: Method) -> int | None:
  """Network evaluations an image of a config.sampling, classifier-free guidance included; those of a classifier not.

  None of an adaptive sampler, see `generation.mean_evaluations`.

  Raises:
    ConfigError: the sampler has no such order, or none in so few steps.
  """
  check_order(config, method)
  count = catalogue.evaluations(config.sampler, len(schedule_of(config, method)[1]) - 1)
  return None if count is None else count * (1 if config.guidance == 1 else 2)
