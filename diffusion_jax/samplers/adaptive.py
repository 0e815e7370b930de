"""An adaptive solver of the probability flow: steps of each image's own, as long as a tolerance lets them be.

    y = x/r,  r = √(α² + σ²),  λ = log(α/σ):  dy/dλ = −ασ/r²·w,  w of multistep.py, (2)   (1)
    Dormand & Prince's pair of orders 5 and 4: y_s of the fifth, e the difference of the two            (2)
    error = RMS over the image of e/(atol + rtol·max(|y_t|, |y_s|));  accepted if <= 1                   (3)
    h ← h·clip(.9·error^(−1/5), .2, 5)                                                   (4)

Time and step are [B], so that an image does not depend on those beside it, as it would on a step that they share.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process import Gaussian
from diffusion_jax.samplers import loop
from diffusion_jax.samplers.ancestral import transition
from diffusion_jax.samplers.exponential import log_snr
from diffusion_jax.samplers.multistep import rotation
from diffusion_jax.types import Array, Denoise, Key, like

# Dormand & Prince 1980: stage i is evaluated at λ + c_i·h, y + h·Σ_j a_ij·k_j; the last row is the step of fifth order.
_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (
  (1 / 5,),
  (3 / 40, 9 / 40),
  (44 / 45, -56 / 15, 32 / 9),
  (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
  (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
  (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
_ERROR = tuple(np.subtract((*_A[-1], 0.0), _FOURTH).tolist())
MAX_TRIALS = 2000  # steps of an interval, the refused ones included
_FIRST = 0.05  # of an interval, the first step that is tried


def rk45(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  rtol: float | Array = 1e-3,
  atol: float | Array = 1e-3,
  count: bool = False,
  trajectory: bool = False,
):
  """Dormand's and Prince's adaptive method, equations (1) to (4): as many evaluations as the tolerance asks for.

  The grid's positive values are hit, and each interval takes 1 + 6k evaluations, k its tries; a grid (t_0, t_min, 0)
  leaves all to the tolerance. The network works on the whole batch until its last image is done. Reverse-mode
  derivatives do not pass through.

  Args:
    denoise: the pair of estimates at (x, t), t [B].
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0.
    keys: unused: nothing is drawn.
    rtol: relative tolerance of y. May be traced.
    atol: absolute tolerance of y, whose scale is that of noise and images. May be traced.
    count: also return the evaluations, int32 [B]; an image's own, not those that the batch goes on for.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C], NaN where the tolerance was not met in MAX_TRIALS steps or estimates are not finite; with
    trajectory, (x_0, states [N+1, B, H, W, C]); with count, that or x_0, and the evaluations.

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, a tolerance is not positive, or the
      process has no noise levels.
  """
  process.need_gaussian()
  x, grid = loop.prepare(x, grid, keys)
  process.check_times(grid)
  for name, value in (("rtol", rtol), ("atol", atol)):
    if not isinstance(value, jax.core.Tracer) and not value > 0:
      raise ValueError(f"{name} must be positive, got {value}")

  def rate(y, level):  # dy/dλ at λ [B]
    t = process.inverse(jnp.exp(-level))
    alpha, sigma, (r, _) = process.alpha(t), process.sigma(t), process.polar(t)
    x = like(r, y) * y
    return like(-alpha * sigma / r**2, y) * rotation(process, denoise(x, t), x, t)

  def step(state, index, t, s):
    x, evaluations = state
    y, spent = _integrate(rate, x / process.polar(t)[0], log_snr(process, t), log_snr(process, s), rtol, atol)
    return process.polar(s)[0] * y, evaluations + spent

  def last(state, index, t, s):
    x, _ = state
    return process.image(transition(process, denoise(x, t), x, t, s, process.sigma(s)))

  none = jnp.zeros(len(x), jnp.int32)
  out, evaluations = loop.run(step, last, x, grid, trajectory, memory=none, return_memory=True)
  return (out, evaluations + 1) if count else out


def _integrate(rate, y: Array, start, end, rtol, atol) -> tuple[Array, Array]:
  """y [B, ...] taken from λ = start to end by equations (2) to (4), and the evaluations of each image [B]."""
  span = end - start

  def trial(state):
    level, h, y, slope, tries = state
    h_image, slopes = like(h, y), [slope]
    for c, row in zip(_C, _A):
      y_stage = y + h_image * sum(a * k for a, k in zip(row, slopes))
      slopes.append(rate(y_stage, level + c * h))
    y_new = y_stage  # of the last row, which is the step
    e = h_image * sum(a * k for a, k in zip(_ERROR, slopes))
    error = _rms(e / (atol + rtol * jnp.maximum(jnp.abs(y), jnp.abs(y_new))))
    working = level < end  # others stand still
    accepted = working & (error <= 1)
    move = lambda new, old: jnp.where(like(accepted, y), new, old)
    reached = jnp.where(h >= end - level, end, level + h)  # the end itself, whatever its rounding
    level = jnp.where(accepted, reached, level)
    factor = jnp.clip(0.9 * jnp.maximum(error, 1e-10) ** -0.2, 0.2, 5.0)
    h = jnp.minimum(h * jnp.where(jnp.isfinite(factor), factor, 0.2), jnp.maximum(end - level, 0))
    return level, h, move(y_new, y), move(slopes[-1], slope), tries + working

  def unfinished(state):
    level, _, _, slope, tries = state
    sound = jnp.all(jnp.isfinite(slope), axis=tuple(range(1, slope.ndim)))  # else no step, however short, is accepted
    return jnp.any((level < end) & (tries < MAX_TRIALS) & sound)

  level = jnp.full(len(y), start)
  state = (level, jnp.full(len(y), _FIRST * span), y, rate(y, level), jnp.zeros(len(y), jnp.int32))
  level, _, y, _, tries = jax.lax.while_loop(unfinished, trial, state)
  return jnp.where(like(level < end, y), jnp.nan, y), 1 + 6 * tries


def _rms(x: Array) -> Array:
  """Root mean square of each image, [B]."""
  return jnp.sqrt(jnp.mean(x**2, axis=tuple(range(1, x.ndim))))
