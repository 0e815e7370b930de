"""Log-likelihood of images under the probability flow of any denoiser in a Gaussian process.

    y = x/r,  r = √(α² + σ²),  θ = arctan(σ/α):  dy/dθ = v = (dx/dt·dt/dθ − dr/dθ·y)/r   (1)
    d log p_θ(y)/dθ = −∇·v                                                              (2)
    log p_0(x) = log N(y(θ_1); cos θ_1·μ, sin²θ_1·I) + ∫_{θ_0}^{θ_1} ∇·v dθ + D·log cos θ_0,
      y(θ_0) = cos θ_0·x                                                                (3)
    ∇·v = Σ_k ∂v_k/∂y_k  exactly, or E[zᵀ(∂v/∂y)z],  E[zzᵀ] = I                         (4)
    bits a dimension of images in L levels, 2/(L − 1) apart in [−1, 1]:
      −log p(x + u)/(D·ln 2) − log₂(2/(L − 1)),  u uniform in a cube as wide as a level  (5)

For a pair that agrees v = cos θ·ε̂ − sin θ·x̂_0: bounded, where dx/dt and t itself may not be (σ' at 0 of decoupled
processes, σ → ∞ of VE), and the same in every Gaussian process. θ_1 is that of the grid's first time and θ_0 > 0 that
of its last positive one. (3) puts the clean image into the law of what still has noise of level n = tan θ_0, scaled to
the image's size: it is the density of x_0 + n·ε at x, hence log p_0(x) + O(n²) where the data have a density that is
smooth at the scale n, and a number that depends on n where they have none (a pixel that is always black).
At θ_1 the signal is taken as spent, with μ = 0 as by `process.prior`: then (3) is the density of what the flow
makes of that prior. The density of the data differs from it by about z·E[x_0]/σ_max nats, z ~ N(0, I), which is 0 on
average over the data; with μ = E[x_0] only terms of O(D·Var[x_0]/σ_max²) are left.

Each interval of the grid is one step of the classical Runge–Kutta method in θ. Sources: Chen et al. 2018 (2),
Grathwohl et al. 2019 (4, FFJORD), Song et al. 2021 (the flow's likelihood), Theis et al. 2016 (5, Jensen's bound).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.process import Gaussian
from diffusion_jax.samplers import loop
from diffusion_jax.samplers.multistep import rotation
from diffusion_jax.types import Array, Denoise, Key, check_images, normal

TRACES = ("hutchinson", "exact")
NOISES = ("rademacher", "gaussian")
_NODES, _WEIGHTS = (0, 0.5, 0.5, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6)  # of the classical Runge–Kutta method
_LEVEL_STREAM = 2**31 - 3  # of an image's draws: its place inside its level


def log_likelihood(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  trace: str = "hutchinson",
  probes: int = 1,
  noise: str = "rademacher",
  mean: Array | float = 0.0,
) -> Array:
  """log p_0(x) in nats by equations (1) to (4): 4(N − 1) evaluations for a grid of N steps, each with a gradient.

  Memory is that of one evaluation and its gradient, whatever N, `probes` and the number of dimensions. "exact"
  takes D = H·W·C gradients an evaluation. "hutchinson" takes `probes` of them and is unbiased: each step has draws of
  its own, so that their errors average over the grid. Its variance is that of Σ_k h_k·zᵀ(∂v/∂y)z / probes: with
  Rademacher draws the diagonal of ∂v/∂y does not contribute, with Gaussian ones it does.

  Args:
    denoise: the pair of estimates at (x, t), of image i from image i alone.
    process: the Gaussian process of its x and t.
    x: images x_0, [B, H, W, C] in about [−1, 1].
    grid: [N+1] times of `process`, decreasing to 0, as for sampling. The last positive one is the noise that stays
      in the density, see the module's head.
    keys: [B] PRNG keys, one an image; needed for "hutchinson".
    trace: one of TRACES.
    probes: draws z a step and image, of "hutchinson".
    noise: law of z, one of NOISES.
    mean: μ of equation (3), a number or an image [H, W, C].

  Returns:
    [B], the logarithm of the density per unit of x (not of a pixel's level, see `bits_per_dimension`).

  Raises:
    ValueError: the process is not Gaussian, `trace`, `probes` or `noise` is none of these, keys are missing, an
      argument has the wrong shape, or the grid does not decrease to 0.
  """
  if trace not in TRACES:
    raise ValueError(f"trace must be one of {', '.join(TRACES)}, got {trace!r}")
  if noise not in NOISES:
    raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
  if not isinstance(probes, int) or probes < 1:
    raise ValueError(f"probes must be a positive whole number, got {probes!r}")
  if trace == "hutchinson":
    loop.need_keys("log_likelihood with trace='hutchinson'", keys)
  check_images("x", x)
  x, grid = loop.prepare(x, grid, keys)
  process.check_times(grid)
  last = len(grid) - 3  # the steps are numbered from grid[0], so that padding moves none

  def step(state, index, t, s):
    y, gained = state
    (sin_t, cos_t), (sin_s, cos_s) = (_direction(process, u) for u in (t, s))
    h = jnp.arctan2(sin_s * cos_t - cos_s * sin_t, cos_s * cos_t + sin_s * sin_t)
    middle = process.inverse((sin_t + sin_s) / (cos_t + cos_s))  # at the mean of both angles
    number = last - index

    def draw(probe):
      return _probe(keys, number * probes + probe, x.shape[1:], x.dtype, noise)

    def stage(carry, inputs):  # in a loop, so that the network is compiled once
      k, end, gained = carry
      u, node, weight = inputs
      flow = _flow(denoise, process, u)
      k, divergence = _with_divergence(flow, y + node * h * k, None if trace == "exact" else draw, probes)
      return (k, end + weight * h * k, gained + weight * h * divergence), None

    stages = jnp.stack([t, middle, middle, s]), *(jnp.asarray(c, x.dtype) for c in (_NODES, _WEIGHTS))
    (_, end, gained), _ = jax.lax.scan(stage, (jnp.zeros_like(y), y, gained), stages)
    return end, gained

  def first(x, t):
    _, cos = _direction(process, t)
    return cos * x, jnp.full(x.shape[0], math.prod(x.shape[1:]), x.dtype) * jnp.log(cos)

  y, gained = loop.rise(step, first, x, grid)
  sin, cos = _direction(process, jnp.asarray(grid[0]))
  return gained + jnp.sum(jax.scipy.stats.norm.logpdf(y, cos * mean, sin), axis=(1, 2, 3))


def dequantise(keys: Key, x: Array, levels: int = 256) -> Array:
  """x + u of equation (5), [B, H, W, C]: each value anywhere in its level, uniformly.

  Args:
    keys: [B] PRNG keys, one an image.
    x: images [B, H, W, C] of values 2k/(levels − 1) − 1, k = 0..levels − 1: bytes are 2k/255 − 1.
    levels: 256 for bytes; 17 for scikit-learn's digits.

  Returns:
    Images of values in [−1 − w/2, 1 + w/2], w = 2/(levels − 1).
  """
  check_images("x", x)
  draw = lambda key: jax.random.uniform(jax.random.fold_in(key, _LEVEL_STREAM), x.shape[1:], x.dtype, -0.5, 0.5)
  return x + _width(levels) * jax.vmap(draw)(keys)


def bits_per_dimension(log_density: Array, dimensions: int, levels: int = 256) -> Array:
  """Equation (5) of `log_likelihood` in nats: for bytes −log p/(D·ln 2) + log₂ 127.5.

  Of images that `dequantise` moved, its mean bounds the code length of the discrete images, −log₂ P/D, from above.

  Args:
    log_density: of images in [−1, 1], [B].
    dimensions: D = H·W·C.
    levels: as for `dequantise`.
  """
  return -log_density / (dimensions * math.log(2)) - math.log2(_width(levels))


def _width(levels: int) -> float:
  if not isinstance(levels, int) or levels < 2:
    raise ValueError(f"levels must be a whole number of at least 2, got {levels!r}")
  return 2 / (levels - 1)


def _direction(process: Gaussian, t) -> tuple[Array, Array]:
  """(sin θ, cos θ) = (σ, α)/r, in which angles near π/2 keep their digits."""
  alpha, sigma = process.alpha(t), process.sigma(t)
  r = jnp.sqrt(alpha**2 + sigma**2)
  return sigma / r, alpha / r


def _flow(denoise: Denoise, process: Gaussian, t) -> Callable[[Array], Array]:
  """y -> v at time t, equation (1)."""
  r, _ = process.polar(t)
  return lambda y: rotation(process, denoise(r * y, t), r * y, t)


def _with_divergence(flow, y: Array, draw, probes: int) -> tuple[Array, Array]:
  """v [B, ...] and ∇·v [B] by equation (4): of draw(0), ..., draw(probes − 1), or exactly where draw is None."""
  v, pull = jax.vjp(flow, y)  # by rows: the transposes are what networks are laid out for, see nets.layers.conv3x3_cpu
  flat = lambda x: x.reshape(len(y), -1)

  def by_dimension(total, k):
    basis = jnp.zeros(y[0].size, y.dtype).at[k].set(1)
    (row,) = pull(jnp.broadcast_to(basis.reshape(y.shape[1:]), y.shape))
    return total + flat(row)[:, k], None

  def by_probe(total, k):
    z = draw(k)
    (row,) = pull(z)
    return total + jnp.sum(flat(z * row), axis=1) / probes, None

  body, count = (by_dimension, y[0].size) if draw is None else (by_probe, probes)
  total, _ = jax.lax.scan(body, jnp.zeros(len(y), y.dtype), jnp.arange(count))
  return v, total


def _probe(keys: Key, stream, shape: tuple[int, ...], dtype, noise: str) -> Array:
  if noise == "gaussian":
    return normal(keys, stream, shape, dtype)
  return jax.vmap(lambda key: jax.random.rademacher(jax.random.fold_in(key, stream), shape, dtype))(keys)
