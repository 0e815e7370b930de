"""Editing by a trained denoiser: SDEdit, inpainting, interpolation of latents.

    SDEdit:    x_{t_i} = m(c, t_i) + σ(t_i)·z, then any sampler down from t_i            (1)
    RePaint, from t to s < t, h = 1 in the hole and 0 where the image is known:
      x_s = h·x_s^DDPM + (1 − h)·(α(s)·x_0 + σ(s)·z)                                     (2)
      and back up:  x_t = (α_t/α_s)·x_s + √(σ_t² − (α_t/α_s)²σ_s²)·z                     (3)
    Slerp of a and b at angle ω:  ‖·‖ = (1 − w)‖a‖ + w‖b‖,
      direction  [sin((1 − w)ω)·a/‖a‖ + sin(wω)·b/‖b‖]/sin ω                            (4)

In (2) x_s^DDPM is a draw of DDPM's transition, that of `samplers.ddpm`. One pass alone is the replacement method: the
hole is drawn before it sees the known part of its noise level, and fits it badly. Repeating (2) and (3) lets the two
agree.
Sources: Meng et al. 2022 (SDEdit), Lugmayr et al. 2022 (RePaint, Algorithm 1 and its jumps), Shoemake 1985 (slerp).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import samplers
from diffusion_jax.process import Gaussian, Process
from diffusion_jax.samplers import ancestral, loop
from diffusion_jax.types import Array, Denoise, Key, check_images, like, normal


def tail(grid, strength: float) -> np.ndarray:
  """The last round(strength·n) steps of a grid of n, one of them at least unless the strength is 0.

  Args:
    grid: [n+1] times, decreasing to 0; repeats (padding) do not count.
    strength: in [0, 1]; 1 is the whole grid, 0 no step: [0].

  Raises:
    ValueError: the strength is not in [0, 1].
  """
  if not 0 <= strength <= 1:  # NaN is neither
    raise ValueError(f"strength must be in [0, 1], got {strength}")
  grid = _without_repeats(np.asarray(grid))
  steps = max(round(strength * (len(grid) - 1)), int(strength > 0))
  return grid[len(grid) - 1 - steps :]


def tail_at(grid, process: Gaussian, noise_level: float) -> np.ndarray:
  """The grid's times below a noise level, that level's own time put before them.

  Args:
    grid: [n+1] times of `process`, decreasing to 0.
    process: a Gaussian process.
    noise_level: σ/α to start from, in (0, that of grid[0]].

  Raises:
    ValueError: the grid has no such noise level, or the process has none.
  """
  grid = _without_repeats(np.asarray(grid))
  highest = float(process.noise_level(grid[0]))
  if not 0 < noise_level <= highest * (1 + 1e-6):
    raise ValueError(f"noise_level must be in (0, {highest:g}], the grid's range, got {noise_level}")
  start = min(float(process.inverse(noise_level)), grid[0])
  return np.append(start, grid[grid < start * (1 - 1e-6)])


def sdedit(
  denoise: Denoise,
  process: Process,
  x: Array,
  grid: Array,
  keys: Key,
  *,
  strength: float,
  sampler: Callable = samplers.heun,
  **options,
):
  """SDEdit, equation (1): images near x that the model finds likely, the nearer the smaller the strength.

  Strength 1 starts at grid[0] from the noise of `process.prior` with the same keys, and differs from sampling by what
  is left of the image's signal there: nothing where α is 0, α/σ of it else.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: images to edit, [B, H, W, C] in about [−1, 1].
    grid: [n+1] times of `process`, decreasing to 0, known before compilation.
    keys: [B] PRNG keys, one an image: they draw z, what φ of decoupled processes has free, and the sampler's noise.
    strength: share of the grid's steps that is run, see `tail`. To start from a noise level, give `tail_at(...)` for
      the grid and 1 here.
    sampler: sampler(denoise, process, x, grid, keys, **options).
    **options: the sampler's own.

  Returns:
    Images [B, H, W, C], what the sampler returns; x itself at strength 0.

  Raises:
    ValueError: the strength is not in [0, 1], keys are missing, or an argument has the wrong shape.
  """
  loop.need_keys("sdedit", keys)
  check_images("x", x)
  if isinstance(grid, jax.core.Tracer):
    raise ValueError("sdedit takes a part of the grid, which must be known before compilation, got a traced one")
  x, grid = loop.prepare(x, grid, keys)
  grid = tail(grid, strength)
  if len(grid) == 1:
    return x
  start = process.signal(process.encode(keys, x), grid[0]) + process.prior(keys, x.shape[1:], grid[0]).astype(x.dtype)
  return sampler(denoise, process, start, grid, keys, **options)


def repaint_moves(num_steps: int, resample: int = 10, jump: int = 10) -> np.ndarray:
  """RePaint's way over a grid: [M, 2] of grid indices (from, to).

  Down a step at a time; wherever the number of steps left is 1 more than a multiple of `jump`, and the grid reaches
  `jump` higher, up again by `jump` steps at once, `resample` − 1 times. The last move is to 0, the index num_steps.

  Raises:
    ValueError: a number is below 1.
  """
  for name, value in (("num_steps", num_steps), ("resample", resample), ("jump", jump)):
    if not isinstance(value, int | np.integer) or value < 1:
      raise ValueError(f"{name} must be a positive whole number, got {value!r}")
  again = {left: resample - 1 for left in range(1, num_steps - jump + 1, jump)}
  moves, left = [], num_steps
  while left > 0:
    moves.append((left, left - 1))
    left -= 1
    if again.get(left):
      again[left] -= 1
      moves.append((left, left + jump))
      left += jump
  return num_steps - np.array(moves)


def inpaint(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  mask: Array,
  grid: Array,
  keys: Key,
  *,
  resample: int = 10,
  jump: int = 10,
  trajectory: bool = False,
):
  """RePaint, equations (2) and (3): fills holes by a denoiser that was trained without any.

  With resample = 1 the replacement method. For exact estimates the law of the hole tends to that given the known
  part as the number of steps and of repetitions grow together; the paper takes 250 steps, resample 10, jump 10.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the Gaussian process of x and t.
    x: images, [B, H, W, C] in about [−1, 1]; what they have in the holes is not looked at.
    mask: 1 or True in the holes, 0 where the image is known (as masks of task inpaint: white is a hole); [B, H, W, C],
      with 1 for B, for C or for both, or [H, W, C] with 1 for C.
    grid: [n+1] times of `process`, decreasing to 0.
    keys: [B] PRNG keys, one an image.
    resample: r, passes over each stretch of the grid.
    jump: j, steps of a stretch. A grid of j steps or fewer has no stretch to repeat.
    trajectory: also return the states after every move.

  Returns:
    Images [B, H, W, C], x itself where it is known; with trajectory, (images, states [M+1, B, H, W, C]) of the M moves
    of `repaint_moves`.

  Raises:
    ValueError: the mask or another argument has the wrong shape, the process is not Gaussian, keys are missing,
      resample or jump is below 1, or the grid does not decrease to 0.
  """
  loop.need_keys("inpaint", keys)
  check_images("x", x)
  hole = _hole(mask, jnp.shape(x))
  x, grid = loop.prepare(x, grid, keys)
  process.check_times(grid)
  if not isinstance(grid, jax.core.Tracer):
    grid = _without_repeats(grid)
  moves, times = repaint_moves(len(grid) - 1, resample, jump), jnp.asarray(grid)
  process.need_gaussian()
  known = process.encode(None, jnp.where(hole, 0, x))

  def down(state, z, t, s):
    r = ancestral.noise_ratio(process, t, s)
    sigma = process.sigma(s)
    eta = sigma * jnp.sqrt((1 - r) * (1 + r))
    filled = ancestral.transition(process, denoise(state, t), state, t, s, sigma * r, eta, z)
    return jnp.where(hole, filled, process.perturb(known, z, s))

  def up(state, z, t, s):
    r = ancestral.noise_ratio(process, s, t)
    return process.alpha(s) / process.alpha(t) * state + process.sigma(s) * jnp.sqrt((1 - r) * (1 + r)) * z

  def move(state, inputs):
    index, (begin, end) = inputs
    z = normal(keys, index, x.shape[1:], x.dtype)
    state = jax.lax.cond(end > begin, down, up, state, z, times[begin], times[end])
    return state, state if trajectory else None

  start = process.signal(known, times[0]) + process.prior(keys, x.shape[1:], times[0]).astype(x.dtype)
  state, states = jax.lax.scan(move, start, (jnp.arange(len(moves) - 1), jnp.asarray(moves[:-1])))
  end = ancestral.transition(process, denoise(state, times[-2]), state, times[-2], times[-1], 0.0)
  image = jnp.where(hole, end, x)
  return (image, jnp.concatenate([start[None], states, image[None]])) if trajectory else image


def slerp(a: Array, b: Array, weight) -> Array:
  """Spherical interpolation, equation (4): the norm goes linearly from that of a to that of b, each image by itself.

  Latents of a Gaussian prior lie close to a sphere, which the straight line leaves. Ends are exact. Parallel
  vectors have the linear limit; for opposite ones, which no great circle joins more than others, the line through 0
  stands in.

  Args:
    a: [B, ...].
    b: [B, ...].
    weight: w, scalar or [B]; 0 is a, 1 is b.

  Raises:
    ValueError: a and b differ in shape, or weight is neither a scalar nor [B].
  """
  if jnp.shape(a) != jnp.shape(b) or jnp.ndim(a) < 2:
    raise ValueError(f"a and b must be [B, ...] of one shape, got {list(jnp.shape(a))} and {list(jnp.shape(b))}")
  w = like(jnp.asarray(weight, jnp.result_type(a, b, float)), a)
  unit = lambda x: x / jnp.where(_norm(x) > 0, _norm(x), 1)
  u, v = unit(a), unit(b)
  apart, along = _norm(u - v), _norm(u + v)
  omega = 2 * jnp.arctan2(apart, along)  # has its digits at 0 and π, where arccos(u·v) loses them
  straight = (apart < 1e-4) | (along < 1e-4) | (_norm(a) == 0) | (_norm(b) == 0)
  safe = jnp.where(straight, 1.0, jnp.sin(omega))
  first = jnp.where(straight, 1 - w, jnp.sin((1 - w) * omega) / safe)
  second = jnp.where(straight, w, jnp.sin(w * omega) / safe)
  between = ((1 - w) * _norm(a) + w * _norm(b)) * (first * u + second * v)
  return jnp.where(w == 0, a, jnp.where(w == 1, b, between))


def _norm(x: Array) -> Array:
  """Of each image, [B, 1, ...]; its derivative is 0 at 0."""
  squares = jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True)
  return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _without_repeats(grid: np.ndarray) -> np.ndarray:
  return grid[np.append(True, grid[1:] != grid[:-1])]


def _hole(mask, shape: tuple[int, ...]) -> Array:
  """The mask as booleans that broadcast to images of this shape."""
  given = jnp.shape(mask)
  fits = len(given) in (3, 4) and all(
    have == want or (have == 1 and axis in (-1, -4)) for axis, (have, want) in
    zip(range(-1, -len(given) - 1, -1), zip(reversed(given), reversed(shape)))
  )  # fmt: skip
  if not fits:
    wanted = f"{list(shape)}, with 1 for the batch, for the channels or for both, or without the batch"
    raise ValueError(f"mask must be {wanted}, got shape {list(given)}")
  return jnp.asarray(mask) > 0.5
