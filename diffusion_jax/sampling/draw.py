"""From keys to images: one jitted function for all samplers.

Everything that a user varies is traced: keys, grid (padded to `MAX_STEPS`), churn, guidance scale and labels. Only
another sampler, batch size, image shape or the first use of guidance (of an option of it, of a classifier) compiles
anew.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import guidance as guidance_lib
from diffusion_jax import parameterization as par
from diffusion_jax import samplers, tiling, times
from diffusion_jax.methods import Method
from diffusion_jax.process import Process
from diffusion_jax.samplers import catalogue
from diffusion_jax.sampling.denoiser import compose
from diffusion_jax.types import Array, Key

MAX_STEPS = 64  # grids are padded to this many steps, or to the next power of two


def keys_of(seeds) -> Key:
  """One key a seed: seeds [B] of integers -> [B]. Image i of any sampler depends on seed i alone."""
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def sample(
  method: Method,
  variables,
  keys: Key,
  image_shape: tuple[int, int, int],
  grid,
  sampler: str = "heun",
  labels: Array | None = None,
  guidance: float | None = None,
  trajectory: bool = False,
  process: Process | None = None,
  ratio: tuple[Array, Array] | None = None,
  clip: float | None = None,
  classifier: guidance_lib.Classifier | None = None,
  condition: Array | None = None,
  tile: tuple[int, int] | None = None,
  guidance_interval: tuple[float, float] | None = None,
  guidance_rescale: float | None = None,
  clip_percentile: float | None = None,
  **options,
):
  """Draws images.

  Args:
    method: the triple of `methods.from_config`.
    variables: its parameters, see `training.state.inference_variables`.
    keys: [B] PRNG keys, one an image; see `keys_of`.
    image_shape: (H, W, C) of one image.
    grid: [n+1] times of `process`, decreasing to 0; any n up to MAX_STEPS shares one compilation. Noise levels that
      the network was not trained on are clamped with one warning.
    sampler: one of method.samplers.
    labels: [B] classes, -1 for none; None is unconditional.
    guidance: scale of classifier-free guidance; None evaluates the network once a step, any number twice. See
      `guidance_of` for this and its options.
    trajectory: return the states at every grid value too; of dddm its estimates.
    process: the Gaussian process to sample in, by `process.reframe`; the method's own by default.
    ratio: r of dual_output, (times [K] of method.process increasing, values [K]), see `ratio_of`; traced.
    clip: limit of estimated images, see `guidance.threshold`; None does not clip. See `clip_of`.
    classifier: guides towards the labels, after `guidance` and before `clip`, in the method's own process; -1 is not
      guided. None, or one with the number 0 for its scale, is not evaluated.
    condition: [B, h, w, c] in [−1, 1], what the images are made from, of a run with a task; None is none.
    tile: (window, overlap) for images larger than the network's: the window is its resolution, the condition has the
      images' size, at least a window. See `tiling.tiled`.
    guidance_interval: (lo, hi), noise levels at which `guidance` acts, which needs one evaluation at others; None is
      everywhere.
    guidance_rescale: φ in [0, 1] of `guidance.classifier_free`; None does not rescale.
    clip_percentile: in (0, 1), of `guidance.threshold`, with clip; None clips as it is.
    **options: the sampler's own, such as churn=Churn(...) or eta=0.5; numbers are traced, but for an order; booleans
      and strings are not.

  Returns:
    Images [B, H, W, C], not clipped; with trajectory, (images, states [n+1, B, H, W, C]); with rk45's count, (all that,
    evaluations [B]).

  Raises:
    ValueError: the method has no such sampler, a step of it uses more estimates than there are steps, guidance was
      asked for without labels, by a classifier too, an option of guidance or clipping is out of range or without it, or
      a condition is not one of this method or of these images, or is missing for a tile.
  """
  if sampler not in method.samplers:
    raise ValueError(f"sampler must be one of {', '.join(method.samplers)} for this method, got {sampler!r}")
  if guidance is not None and labels is None:
    raise ValueError("guidance needs labels [B], got None")
  guidance_lib.check(guidance_interval, guidance_rescale, clip_percentile)
  if guidance is None and not (guidance_interval is None and guidance_rescale is None):
    raise ValueError("guidance_interval and guidance_rescale need guidance, got None")
  if clip is None and clip_percentile is not None:
    raise ValueError("clip_percentile needs clip, its limit, got None")
  if classifier is not None and isinstance(classifier.scale, int | float) and classifier.scale == 0:
    classifier = None
  if classifier is not None and labels is None:
    raise ValueError("a classifier needs labels [B], got None")
  tile = None if tile is None else tuple(tile)
  if condition is not None:
    _check_condition(method, condition, keys, image_shape, tile)
  elif tile:
    raise ValueError(f"tile needs a condition [{len(keys)}, {image_shape[0]}, {image_shape[1]}, c], got None")
  judge = None if classifier is None else (classifier.logits, classifier.process, classifier.num_classes)
  guide = None if classifier is None else (classifier.variables, jnp.float32(classifier.scale))
  process = process or method.process
  if method.preconditioner is not None and not isinstance(grid, jax.Array):
    grid = _within(method.preconditioner, process, grid)
  steps = len(grid) - 1
  catalogue.check_steps(sampler, steps, options.get("order"))
  max_steps = max(MAX_STEPS, 1 << (steps - 1).bit_length())
  is_static = lambda name: name == "order" or isinstance(options[name], bool | str)
  static = tuple(sorted((name, value) for name, value in options.items() if is_static(name)))
  traced = {name: value for name, value in options.items() if not is_static(name)}
  padded = jnp.asarray(times.pad(grid, max_steps), jnp.float32)
  if sampler == "dddm":  # whose times are all equal: padding does not show
    traced.setdefault("iterations", steps)
  arrays = (
    keys, variables, padded, labels, guidance, guidance_interval, guidance_rescale, ratio, clip, clip_percentile, guide,
    condition, traced,
  )  # fmt: skip
  if isinstance(keys, jax.core.Tracer):  # part of a larger program, whose constants would be folded to other bits
    arrays = jax.lax.optimization_barrier(arrays)
  out = _sample(
    method.denoise, method.process, process, sampler, tuple(image_shape), trajectory, static, judge,
    method.encode, tile, *arrays,
  )  # fmt: skip
  if not trajectory:
    return out
  (images, states), *count = out if options.get("count") else (out,)
  images = images, jnp.concatenate([states[:steps], states[-1:]])
  return (images, *count) if count else images


def _within(preconditioner: par.Preconditioner, process: Process, grid) -> np.ndarray:
  """The grid with its noise levels clamped to those of the network; levels that coincide are passed over."""
  grid = np.asarray(grid, np.float64)
  with jax.ensure_compile_time_eval():  # where `sample` is traced
    levels = np.asarray(process.noise_level(grid[:-1]), np.float64)
    known = par.clamp(preconditioner, levels)
    moved = np.abs(known - levels) > 1e-5 * levels  # else the grid stays as it is, to the last digit
    return np.append(np.where(moved, process.inverse(known), grid[:-1]), 0.0) if moved.any() else grid


def _check_condition(method: Method, condition, keys, image_shape, tile):
  if method.encode is None:
    raise ValueError("condition must be None for this method, which was trained without a task")
  shape = jnp.shape(condition)
  if len(shape) != 4 or shape[0] != keys.shape[0]:
    raise ValueError(f"condition must be [{keys.shape[0]}, h, w, c] for {keys.shape[0]} keys, got shape {list(shape)}")
  if not jnp.issubdtype(jnp.result_type(condition), jnp.floating):
    raise ValueError(f"condition must be floating-point in [-1, 1], got {jnp.result_type(condition)}")
  if tile and (shape[1:3] != tuple(image_shape[:2]) or min(shape[1:3]) < tile[0]):
    expected = f"the images' {list(image_shape[:2])}, at least a window of {tile[0]}"
    raise ValueError(f"condition must have the size of {expected}, got shape {list(shape)}")


@functools.partial(jax.jit, static_argnums=range(10))
def _sample(
  denoise_fn, source, process, sampler, image_shape, trajectory, static, judge, encode, tile,
  keys, variables, grid, labels, scale, interval, rescale, ratio, clip, percentile, guide, condition, traced,
):  # fmt: skip
  cond = {name: value for name, value in (("label", labels), ("ratio", ratio)) if value is not None}
  if condition is not None and tile is None:
    cond["condition"] = encode(variables, condition)  # once, not at every step

  def given(**more):
    def plain(x, t, previous=None):
      before = {} if previous is None else {"previous": previous}
      return denoise_fn(variables, x, t, {**cond, **more, **before} or None)

    if tile is None:
      return plain
    part = lambda x, t, condition: denoise_fn(variables, x, t, {**cond, **more, "condition": condition})
    return tiling.tiled(part, condition, *tile)

  classifier = None
  if judge is not None:
    found = guidance_lib.Classifier(*judge, *guide)
    classifier = guidance_lib.reframe(found.log_prob(labels), found.process, source), found.scale
  unlabelled = None if scale is None else given(label=jnp.full_like(labels, -1))
  denoise = compose(given(), unlabelled, source, process, scale, interval, rescale, classifier, clip, percentile)
  x = process.prior(keys, image_shape, grid[0])
  return samplers.BY_NAME[sampler](denoise, process, x, grid, keys, trajectory=trajectory, **dict(static), **traced)
