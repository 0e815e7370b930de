"""Dual-Output's way from noise to image, step by step by DDIM, and what its network says along it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import guidance, sampling
from diffusion_jax.methods import Method, dual_output
from diffusion_jax.samplers import ancestral


class Step(NamedTuple):
  """One of a walk: its number from 1, its time, x̂_0 [B, H, W, C] and the network's r [B, H, W, 1] there."""

  number: int
  t: float
  clean: np.ndarray
  r: np.ndarray


def stepper(config, method: Method, variables) -> Callable:
  """(x, t, s, cond) -> (x_s by DDIM, x̂_0 as the sampler sees it, r [B, H, W, 1] as the network says), compiled once.

  Args:
    config: of a run of dual_output with all heads; of its sampling `clip` alone counts.
    method: its method.
    variables: its parameters.
  """
  heads, clip = dual_output.heads_from_config(config), config.sampling.clip

  @jax.jit
  def step(x, t, s, cond):
    denoise = lambda x, t: method.denoise(variables, x, t, cond)
    pred = (guidance.threshold(denoise, method.process, clip) if clip else denoise)(x, t)
    r = jax.nn.sigmoid(heads(variables, x, t, cond)["r"])  # compiled, the network runs once for both
    return ancestral.transition(method.process, pred, x, t, s, method.process.sigma(s)), pred.clean, r

  return step


def walk(config, method: Method, step: Callable, seeds) -> Iterator[Step]:
  """The steps from the noise of seeds [B], each of its default class; the last x̂_0 is the image.

  Args:
    config: its sampling has the grid, of the method's own times, and r.
    method: its method.
    step: of `stepper`.
    seeds: [B] integers.
  """
  data, (_, grid) = config.data, sampling.schedule_of(config.sampling, method)
  cond = {"label": sampling.default_labels(config, seeds), "ratio": sampling.ratio_of(config.sampling, method)}
  cond = {name: value for name, value in cond.items() if value is not None}
  shape = (data.resolution, data.resolution, data.channels)
  x = method.process.prior(sampling.keys_of(seeds), shape, jnp.float32(grid[0]))
  for number, (t, s) in enumerate(zip(grid, grid[1:]), 1):
    x, clean, r = step(x, jnp.float32(t), jnp.float32(s), cond)
    yield Step(number, float(t), np.asarray(clean), np.asarray(r))
