"""Samplers that take the network's clean image as it is, in place of moving towards it.

    DPDM, Algorithm 2:  ĉ_k = denoise(x_k, t_k),  x_{k+1} = m(ĉ_k, t_{k+1}) + σ(t_{k+1})·z   (1)
    DDDM, Algorithm 2:  x̄_0^(k+1) = f_θ(x̄_0^(k), x_T, T),  x̄_0^(0) ~ N(0, I)                 (2)

In (1) each state is a fresh draw around the last estimate: nothing of the noise in x_k is kept. With the best denoiser
of some data (1) is biased, since E[x_0 | x_t] is a narrower law than the data's; it is right for a denoiser whose
estimates have the law of the data, which is what DPDM trains. In (2) x_T stays as it was drawn, and the estimate of the
image runs to a fixed point of the network. Sources: "Data Prediction Denoising Models", Algorithm 2; Zhang et al. 2024,
"Directly Denoising Diffusion Models", Algorithm 2.
"""

import jax
import jax.numpy as jnp

from diffusion_jax.process import Process
from diffusion_jax.samplers import loop
from diffusion_jax.types import Array, Denoise, Key, normal


def dpdm(denoise: Denoise, process: Process, x: Array, grid: Array, keys: Key, *, trajectory: bool = False):
  """DPDM's sampler, equation (1): N evaluations for a grid of N steps, each from fresh noise.

  Args:
    denoise: the pair of estimates at (x, t); only the clean one is used.
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C], for instance `process.prior(keys, shape, grid[0])`: Algorithm 2 starts from the
      clean image 0.
    grid: [N+1] times of `process`, decreasing to 0, for instance `times.dpdm_grid(N)`; N = 1 is one denoising.
    keys: [B] PRNG keys, one an image.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, or keys are missing.
  """
  loop.need_keys("dpdm", keys)
  x, grid = loop.prepare(x, grid, keys)
  process.check_times(grid)

  def step(x, index, t, s):
    z = normal(keys, index, x.shape[1:], x.dtype)
    return process.perturb(denoise(x, t).clean, z, s)

  def last(x, index, t, s):
    return process.decode(denoise(x, t).clean)

  return loop.run(step, last, x, grid, trajectory)


def dddm(
  denoise: Denoise,
  process: Process,
  x: Array,
  grid: Array,
  keys: Key,
  *,
  iterations: int | Array | None = None,
  clamp: float | Array | None = 1.0,
  trajectory: bool = False,
):
  """DDDM's sampler, equation (2): one evaluation an iteration, all of them at (x, grid[0]).

  Args:
    denoise: denoise(x, t, previous), the pair of estimates given the estimate before, [B, H, W, C]; only the clean one
      is used.
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C], for instance `process.prior(keys, shape, grid[0])`.
    grid: [n+1] times of `process`, decreasing to 0; n iterations, whatever lies between the ends.
    keys: [B] PRNG keys, one an image, of the first estimate; it is independent of the state that `process.prior` draws
      from them.
    iterations: 1 to n, in place of n: a padded grid serves every number of them. May be traced.
    clamp: every estimate but the first is clipped to [−clamp, clamp], as in the published code; None, as in the paper,
      does not clip. May be traced.
    trajectory: also return the estimates.

  Returns:
    The last estimate [B, H, W, C]; with trajectory, (it, estimates [n+1, B, H, W, C]): the first, and those after each
    iteration.

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, iterations or clamp is out of range,
      or keys are missing.
  """
  loop.need_keys("dddm", keys)
  x, grid = loop.prepare(x, grid, keys)
  process.check_times(grid)
  n, t = len(grid) - 1, jnp.asarray(grid[0])
  if iterations is None:
    iterations = n
  elif not isinstance(iterations, jax.core.Tracer) and not 1 <= iterations <= n:
    raise ValueError(f"iterations must be 1 to {n} for a grid of {n} steps, got {iterations}")
  if clamp is not None and not isinstance(clamp, jax.core.Tracer) and not clamp > 0:
    raise ValueError(f"clamp must be a positive number, or None for none, got {clamp}")

  def estimate(previous):
    image = process.decode(denoise(x, t, previous).clean)
    return (image if clamp is None else jnp.clip(image, -clamp, clamp)).astype(x.dtype)

  def body(image, index):
    image = jax.lax.cond(index < iterations, estimate, lambda image: image, image)
    return image, image if trajectory else None

  first = normal(keys, 0, x.shape[1:], x.dtype)
  image, images = jax.lax.scan(body, first, jnp.arange(n))
  return (image, jnp.concatenate([first[None], images])) if trajectory else image
