"""From seeds to images: one jitted entry point for scripts, notebooks and the training loop.

Everything that a user varies is traced: seeds, grid (padded to `max_steps`), churn, guidance scale and labels. Only
another sampler, batch size, image shape or the first use of guidance (or of a classifier) compiles anew.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import guidance as guidance_lib
from diffusion_jax import latent, mesh, samplers, tiling, times
from diffusion_jax import parameterization as par
from diffusion_jax import process as process_lib
from diffusion_jax.config import LATENTS, choose, ratios, wrong
from diffusion_jax.methods import Method
from diffusion_jax.process import Process
from diffusion_jax.types import Array, Key

MAX_STEPS = 64  # grids are padded to this many steps, or to the next power of two

# Noise levels [σ_min, σ_max] of each grid where a config names none.
_RANGES = {
  "edm": (0.002, 80.0),
  "vp": tuple(times.vp_grid(2)[1::-1].tolist()),
  "ve": (0.02, 100.0),
  "iddpm": (0.002, 81.0),
  "dpdm": (1e-4, 80.0),
}


def keys_of(seeds) -> Key:
  """One key a seed: seeds [B] of integers -> [B]. Image i of any sampler depends on seed i alone."""
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def schedule_of(config, method: Method) -> tuple[Process, np.ndarray]:
  """The process that a config.sampling samples in, and its times [n+1] (EDM's Table 1, any process with any grid).

  The range is the config's or else the grid's own, within what the network was trained on: a range that was asked for
  is clamped to it with a warning. VP's β_d and β_min are solved anew, so that its noise level has this range. Where
  networks know only a table of noise levels (iDDPM), the grid takes the nearest; levels that coincide become one. The
  grids "respaced" and "decoupled" are made of the method's own t, and have no range to choose.

  Raises:
    ConfigError: there is no such grid or process, or no such grid with this range and number of steps.
  """
  choose("sampling.grid", config.grid, (*_RANGES, "respaced", "decoupled"))
  if config.grid == "respaced":
    return _respaced(config, method.process)
  if config.grid == "decoupled":
    return _decoupled(config, method.process)
  if isinstance(method.process, process_lib.Decoupled) and not method.process.is_gaussian:
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

  The DPDM sampler takes DPDM's grid (but in place of a decoupled one), and others take EDM's in place of DPDM's. The
  run's own sampler leaves all as it is, and what config.sampling has of num_steps, sigma_min and the rest stays in any
  case.
  """
  config = config.copy_and_resolve_references()
  if name != config.sampling.sampler:
    config.sampling.sampler = name
    if name == "dpdm" and config.sampling.grid != "decoupled":
      config.sampling.grid = "dpdm"
    elif config.sampling.grid == "dpdm":
      config.sampling.grid = "edm"
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


def _no_range(config):
  for name in ("sigma_min", "sigma_max"):
    if config[name]:
      raise wrong(f"sampling.{name}", config[name], f"must be 0 for the grid {config.grid}, which is one of times")


def _decoupled(config, own: Process) -> tuple[Process, np.ndarray]:
  """`schedule_of` for the grid "decoupled": uniform steps of t from 1."""
  if not isinstance(own, process_lib.Decoupled):
    raise wrong("sampling.grid", "decoupled", "needs a method whose process is decoupled")
  _no_range(config)
  if config.process != "own":  # t = 1 has no noise level
    raise wrong("sampling.process", config.process, "must be 'own' for the grid decoupled")
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


def options_of(config, method: Method) -> dict:
  """The keyword arguments of the sampler that a config.sampling names."""
  if config.churn:
    table = None if method.preconditioner is None else method.preconditioner.levels()
    return {"churn": samplers.Churn(config.churn, config.s_min, config.s_max, config.s_noise, table)}
  if config.sampler == "ddpm":
    return {"variance": config.variance}
  if config.sampler == "predictor_corrector":
    return {"snr": config.snr}
  if config.sampler == "decoupled":
    return {"refit": config.refit} if config.refit else {}
  return {"eta": config.eta} if config.eta else {}


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


def evaluations(config, method: Method) -> int:
  """Network evaluations an image of a config.sampling, classifier-free guidance included; those of a classifier not."""
  steps = len(schedule_of(config, method)[1]) - 1
  count = {"heun": 2 * steps - 1, "predictor_corrector": 2 * steps}.get(config.sampler, steps)
  return count * (1 if config.guidance == 1 else 2)


def default_labels(config, seeds, classifier: guidance_lib.Classifier | None = None) -> np.ndarray | None:
  """Seed modulo the number of classes, the run's or else the classifier's; None where neither has any."""
  classes = config.data.num_classes or (classifier.num_classes if classifier else 0)
  return np.asarray(seeds) % classes if classes else None


def generate(
  config,
  method: Method,
  variables,
  seeds,
  labels=None,
  batch_size: int = 256,
  progress=None,
  classifier: guidance_lib.Classifier | None = None,
  condition=None,
  decoder: latent.Decoder | None = None,
) -> np.ndarray:
  """Draws one image a seed by the sampler of config.sampling, in batches laid over the local devices.

  Args:
    config: a run's config.
    method: its method.
    variables: its parameters.
    seeds: [N] integers; image i depends on seed i (and its label) alone.
    labels: [N] classes, -1 for none; `default_labels` if None.
    batch_size: images at a time.
    progress: called with the number of images of each batch done.
    classifier: `training.classifiers.from_config(config)`, that of config.sampling.
    condition: [N, h, w, c] uint8 or in [−1, 1], what each image is made from, for a run with a task.
    decoder: `training.autoencoders.from_config(config)`, of a run in latent space.

  Returns:
    [N, H, W, C] float32, not clipped.

  Raises:
    ValueError: config.sampling has a classifier_scale, or the data are latents, and there is no classifier or decoder;
      or a run with a task has no condition for each seed.
  """
  _check_conditions(config, condition, seeds)
  setting, seeds = config.sampling, np.asarray(seeds)
  if setting.classifier_scale and classifier is None:
    expected = "needs generate(..., classifier=training.classifiers.from_config(config))"
    raise ValueError(f"config.sampling.classifier_scale = {setting.classifier_scale:g} {expected}")
  if config.data.name == LATENTS and decoder is None:
    raise ValueError("latents need generate(..., decoder=training.autoencoders.from_config(config)); sample gives them")
  if setting.grid == "dpdm" and not setting.sigma_min:
    times.dpdm_grid(setting.num_steps)  # warns where the paper has no σ_min
  labels = default_labels(config, seeds, classifier) if labels is None else np.asarray(labels)
  shape = (config.data.resolution, config.data.resolution, config.data.channels)
  variables = mesh.everywhere(variables)
  if classifier is not None:
    classifier = classifier._replace(variables=mesh.everywhere(classifier.variables))
  (process, grid), options = schedule_of(setting, method), options_of(setting, method)
  ratio = ratio_of(setting, method)
  images = []
  for rows in mesh.batches(len(seeds), batch_size):
    images.append(
      sample(
        method,
        variables,
        mesh.spread(keys_of(seeds[rows])),
        shape,
        grid,
        setting.sampler,
        process=process,
        labels=None if labels is None else mesh.spread(labels[rows]),
        guidance=None if setting.guidance == 1 else setting.guidance,
        ratio=ratio,
        clip=setting.clip or None,
        classifier=classifier,
        condition=None if condition is None else mesh.spread(in_range(condition[rows])),
        **options,
      )
    )
    if decoder is not None:
      images[-1] = decoder(images[-1])
    if progress:
      jax.block_until_ready(images[-1])
      progress(min(len(rows), len(seeds) - int(rows[0])))
  return np.concatenate([np.asarray(batch) for batch in images])[: len(seeds)]


def generate_together(
  config,
  method: Method,
  variables,
  seeds,
  labels=None,
  progress=None,
  classifier: guidance_lib.Classifier | None = None,
  condition=None,
  decoder: latent.Decoder | None = None,
) -> np.ndarray:
  """`generate` by all hosts, each of which draws its share and gets all images; they are those of one host."""
  _check_conditions(config, condition, seeds)
  seeds = np.asarray(seeds)
  labels = default_labels(config, seeds, classifier) if labels is None else np.asarray(labels)
  rows = mesh.host_share(len(seeds))
  labels = None if labels is None else labels[rows]
  condition = None if condition is None else np.asarray(condition)[rows]
  more = {"classifier": classifier, "condition": condition, "decoder": decoder}
  images = generate(config, method, variables, seeds[rows], labels, progress=progress, **more)
  return mesh.gather_hosts(images)[: len(seeds)]


def generate_large(config, method: Method, variables, seed: int, condition, overlap: int) -> np.ndarray:
  """One image from a condition of any size, by the sampler of config.sampling.

  In windows of config.data.resolution where it is larger, see `tiling.tiled`; where it is smaller, of its continuation,
  mirrored at the right and below. Every size of image compiles anew.

  Args:
    config: a run's config, with a task whose condition has the image's size.
    method: its method.
    variables: its parameters.
    seed: of the image.
    condition: [H, W, c] uint8 or in [−1, 1].
    overlap: pixels that windows share at least.

  Returns:
    [H, W, C] float32, not clipped.

  Raises:
    ConfigError: the run's condition has another size than its image.
  """
  setting, window = config.sampling, config.data.resolution
  if config.condition.resolution not in (0, window):
    expected = f"must be that of the image, {window}, for windows of larger images"
    raise wrong("condition.resolution", config.condition.resolution, expected)
  height, width = condition.shape[:2]
  more = [(0, max(window - side, 0)) for side in (height, width)]
  condition = np.pad(in_range(condition), (*more, (0, 0)), mode="symmetric")[None]
  (process, grid), options = schedule_of(setting, method), options_of(setting, method)
  image = sample(
    method,
    variables,
    keys_of([seed]),
    (*condition.shape[1:3], config.data.channels),
    grid,
    setting.sampler,
    process=process,
    ratio=ratio_of(setting, method),
    clip=setting.clip or None,
    condition=jnp.asarray(condition),
    tile=(window, overlap),
    **options,
  )
  return np.asarray(image)[0, :height, :width]


def _check_conditions(config, condition, seeds):
  if bool(config.task.name) != (condition is not None) or (condition is not None and len(condition) != len(seeds)):
    wanted = f"must hold {len(seeds)} images, one a seed," if config.task.name else "must be None"
    given = None if condition is None else f"shape {list(np.shape(condition))}"
    raise ValueError(f"condition {wanted} for config.task.name = {config.task.name!r}, got {given}")


def in_range(images) -> np.ndarray:
  """Images in bytes as float32 in [−1, 1]; others are as they are."""
  images = np.asarray(images)
  return images.astype(np.float32) / 127.5 - 1 if images.dtype == np.uint8 else images


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
    guidance: scale of classifier-free guidance; None evaluates the network once a step, any number twice.
    trajectory: return the states at every grid value too.
    process: the Gaussian process to sample in, by `process.reframe`; the method's own by default.
    ratio: r of dual_output, (times [K] of method.process increasing, values [K]), see `ratio_of`; traced.
    clip: limit of estimated images, see `guidance.threshold`; None does not clip.
    classifier: guides towards the labels, after `guidance` and before `clip`, in the method's own process; -1 is not
      guided. None, or one with the number 0 for its scale, is not evaluated.
    condition: [B, h, w, c] in [−1, 1], what the images are made from, of a run with a task; None is none.
    tile: (window, overlap) for images larger than the network's: the window is its resolution, the condition has the
      images' size, at least a window. See `tiling.tiled`.
    **options: the sampler's own, such as churn=Churn(...) or eta=0.5; numbers are traced, booleans and strings not.

  Returns:
    Images [B, H, W, C], not clipped; with trajectory, (images, states [n+1, B, H, W, C]).

  Raises:
    ValueError: the method has no such sampler, guidance was asked for without labels, by a classifier too, or a
      condition is not one of this method or of these images, or is missing for a tile.
  """
  if sampler not in method.samplers:
    raise ValueError(f"sampler must be one of {', '.join(method.samplers)} for this method, got {sampler!r}")
  if guidance is not None and labels is None:
    raise ValueError("guidance needs labels [B], got None")
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
  max_steps = max(MAX_STEPS, 1 << (steps - 1).bit_length())
  static = tuple(sorted((name, value) for name, value in options.items() if isinstance(value, bool | str)))
  traced = {name: value for name, value in options.items() if not isinstance(value, bool | str)}
  padded = jnp.asarray(times.pad(grid, max_steps), jnp.float32)
  out = _sample(
    method.denoise, method.process, process, sampler, tuple(image_shape), trajectory, static, judge,
    method.encode, tile, variables, keys, padded, labels, guidance, ratio, clip, guide, condition, traced,
  )  # fmt: skip
  if not trajectory:
    return out
  images, states = out
  return images, jnp.concatenate([states[:steps], states[-1:]])


def _within(preconditioner: par.Preconditioner, process: Process, grid) -> np.ndarray:
  """The grid with its noise levels clamped to those of the network; levels that coincide are passed over."""
  grid = np.asarray(grid, np.float64)
  levels = np.asarray(process.noise_level(grid[:-1]), np.float64)
  known = par.clamp(preconditioner, levels)
  moved = np.abs(known - levels) > 1e-5 * levels  # else the grid stays as it is, to the last digit
  return np.append(np.where(moved, process.inverse(known), grid[:-1]), 0.0) if moved.any() else grid


def _check_condition(method: Method, condition, keys, image_shape, tile):
  if method.encode is None:
    raise ValueError("condition must be None for this method, which was trained without a task")
  shape = jnp.shape(condition)
  if len(shape) != 4 or shape[0] != len(keys):
    raise ValueError(f"condition must be [{len(keys)}, h, w, c] for {len(keys)} keys, got shape {list(shape)}")
  if not jnp.issubdtype(jnp.result_type(condition), jnp.floating):
    raise ValueError(f"condition must be floating-point in [-1, 1], got {jnp.result_type(condition)}")
  if tile and (shape[1:3] != tuple(image_shape[:2]) or min(shape[1:3]) < tile[0]):
    expected = f"the images' {list(image_shape[:2])}, at least a window of {tile[0]}"
    raise ValueError(f"condition must have the size of {expected}, got shape {list(shape)}")


@functools.partial(jax.jit, static_argnums=range(10))
def _sample(
  denoise_fn, source, process, sampler, image_shape, trajectory, static, judge, encode, tile,
  variables, keys, grid, labels, scale, ratio, clip, guide, condition, traced,
):  # fmt: skip
  cond = {name: value for name, value in (("label", labels), ("ratio", ratio)) if value is not None}
  if condition is not None and tile is None:
    cond["condition"] = encode(variables, condition)  # once, not at every step

  def given(**more):
    if tile is None:
      return lambda x, t: denoise_fn(variables, x, t, {**cond, **more} or None)
    part = lambda x, t, condition: denoise_fn(variables, x, t, {**cond, **more, "condition": condition})
    return tiling.tiled(part, condition, *tile)

  denoise = given()
  if scale is not None:
    denoise = guidance_lib.classifier_free(denoise, given(label=jnp.full_like(labels, -1)), scale)
  if judge is not None:
    classifier = guidance_lib.Classifier(*judge, *guide)
    log_prob = guidance_lib.reframe(classifier.log_prob(labels), classifier.process, source)
    denoise = guidance_lib.classifier(denoise, log_prob, source, classifier.scale)
  if process != source:
    denoise = process_lib.reframe(denoise, source, process)
  if clip is not None:
    denoise = guidance_lib.threshold(denoise, process, clip)
  x = process.prior(keys, image_shape, grid[0])
  return samplers.BY_NAME[sampler](denoise, process, x, grid, keys, trajectory=trajectory, **dict(static), **traced)
