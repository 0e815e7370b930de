"""The original samplers of score-based SDEs, kept as baselines: stochastic, one step a grid interval.

    Forward SDE     dx = f·x dt + g dw,   f = α'/α,   g² = (σ²)' − 2fσ² = 2α²·n·n',   n = σ/α         (1)
    Reverse SDE     dx = [f·x − g²·∇log p] dt + g dw̄ = [d + αn'·ε̂] dt + g dw̄,   ∇log p = −ε̂/σ        (2)
    Euler–Maruyama  x_s = x_t + (s − t)(d + αn'·ε̂) + √(t − s)·g·z                                     (3)
    Predictor       x_s = (2 − a)·x_t − b²·ε̂/σ_t + b·z,   a = α_t/α_s,   b² = σ_t² − a²σ_s²           (4)
    Corrector       x_t ← x_t − ε·ε̂/σ_t + √(2ε)·z,   ε = 2a²(r‖z‖/‖ε̂/σ_t‖)²                          (5)
    Last step       x_0 = m(ĉ, 0), without noise                                                      (6)

d = f·x + ½g²·ε̂/σ is the velocity of the probability flow, and g²/(2σ) = αn', so that (2) divides by neither α nor σ.
(4) reverses the chain x_t = a·x_s + b·z as if its drift were the same at both ends; with a² = 1 − β it is Song et al.'s
predictor in VE and VP alike, and a² in (5) is their α_i: 1 in VE, 1 − β in VP.

(6) is where the last noise-free step of both originals leads (exactly in VE; in VP as t → 0). The mean of (3) itself
would be m(ĉ, 0) − σε̂ in a process whose noise level is linear in t at 0 (EDM, DDPM, Cosine): as noisy as x_t.

Sources: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", Algorithms 2 to
5; g as in Karras et al. 2022, Appendix B.
"""

import jax
import jax.numpy as jnp

from diffusion_jax.process import Gaussian
from diffusion_jax.samplers import loop
from diffusion_jax.samplers.ancestral import noise_ratio, transition
from diffusion_jax.types import Array, Denoise, Key, normal


def _rates(process: Gaussian, t) -> tuple[Array, Array]:
  """αn' and g = α√(2nn') at t > 0."""
  n, dn = jax.jvp(process.noise_level, (t,), (jnp.ones_like(t),))
  return process.alpha(t) * dn, process.alpha(t) * jnp.sqrt(2 * n * dn)


def euler_maruyama(
  denoise: Denoise, process: Gaussian, x: Array, grid: Array, keys: Key, *, trajectory: bool = False
):
  """Euler–Maruyama on the reverse SDE, equations (3) and (6): N evaluations, weak order 1.

  The original sampler of VP, there with N = 1000 uniform steps from t = 1 to 1e-3. Where α = 0 (a decoupled process at
  t = 1) g is infinite; noise_level saturates there, which makes that step the ODE's: a start with the same marginals.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0.
    keys: [B] PRNG keys, one an image.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, or keys are missing.
  """
  loop.need_keys("euler_maruyama", keys)
  x, grid = loop.prepare(x, grid, keys)

  def step(x, index, t, s):
    pred, (rate, g) = denoise(x, t), _rates(process, t)
    mean = x + (s - t) * (process.velocity(pred, t) + rate * pred.eps)
    return mean + jnp.sqrt(t - s) * g * normal(keys, index, x.shape[1:], x.dtype)

  def last(x, index, t, s):
    return transition(process, denoise(x, t), x, t, s, process.sigma(s))

  return loop.run(step, last, x, grid, trajectory)


def predictor_corrector(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key,
  *,
  snr: float = 0.16,
  corrector_steps: int = 1,
  trajectory: bool = False,
):
  """Reverse-diffusion predictor with annealed Langevin correctors: (1 + corrector_steps)·N evaluations.

  At each positive time of the grid, the correctors (5) and then the predictor (4), or (6) from the last of them: the
  order of the published code (the paper's listings correct after predicting). The original sampler of VE, there with
  N = 1000 and one corrector. The published code averages the norms in (5) over the batch; here they are each image's
  own, since image i must depend on key i alone. With the exact score, repeated corrections keep the mean α·m of
  N(αm, v) and inflate v by the factor 1 + a²r² (in many dimensions).

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0.
    keys: [B] PRNG keys, one an image.
    snr: r, the ratio of a correction's length to its noise's; .16 is the paper's for VE on CIFAR-10.
    corrector_steps: corrections at each time, >= 0; 0 is the predictor alone.
    trajectory: also return the states at all grid values, before their correction.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, or keys are missing.
  """
  loop.need_keys("predictor_corrector", keys)
  x, grid = loop.prepare(x, grid, keys)

  def draw(index, j):  # j = 0 is the predictor's
    return normal(keys, index * (1 + corrector_steps) + j, x.shape[1:], x.dtype)

  def corrected(x, index, t, s):
    a, sigma = process.alpha(t) / process.alpha(s), process.sigma(t)

    def correct(j, x):
      eps, z = denoise(x, t).eps, draw(index, 1 + j)
      ratio = a * snr * _norm(z) / _norm(eps)  # √(ε/2)/σ_t
      return x + 2 * ratio * sigma * (z - ratio * eps)

    return jax.lax.fori_loop(0, corrector_steps, correct, x)

  def step(x, index, t, s):
    x = corrected(x, index, t, s)
    r = noise_ratio(process, t, s)
    share = (1 - r) * (1 + r)  # b²/σ_t²
    sigma = process.sigma(t)
    mean = (2 - process.alpha(t) / process.alpha(s)) * x - share * sigma * denoise(x, t).eps
    return mean + sigma * jnp.sqrt(share) * draw(index, 0)

  def last(x, index, t, s):
    x = corrected(x, index, t, s)
    return transition(process, denoise(x, t), x, t, s, process.sigma(s))

  return loop.run(step, last, x, grid, trajectory)


def _norm(x: Array) -> Array:
  """‖x_i‖ of each image, [B, 1, 1, 1]."""
  return jnp.sqrt(jnp.sum(x**2, axis=range(1, x.ndim), keepdims=True))
