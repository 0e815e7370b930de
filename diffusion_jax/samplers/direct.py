"""Samplers that take the network's clean image as it is, in place of moving towards it.

    DPDM, Algorithm 2:  ĉ_k = denoise(x_k, t_k),  x_{k+1} = m(ĉ_k, t_{k+1}) + σ(t_{k+1})·z   (1)

Each state is a fresh draw around the last estimate: nothing of the noise in x_k is kept. With the best denoiser of some
data (1) is biased, since E[x_0 | x_t] is a narrower law than the data's; it is right for a denoiser whose estimates
have the law of the data, which is what DPDM trains. Source: "Data Prediction Denoising Models", Algorithm 2.
"""

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
