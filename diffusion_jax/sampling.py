"""From seeds to images: one jitted entry point for scripts, notebooks and the training loop.

Everything that a user varies is traced: seeds, grid (padded to `max_steps`), churn, guidance scale and labels. Only
another sampler, batch size, image shape or the first use of guidance compiles anew.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import guidance as guidance_lib
from diffusion_jax import mesh, samplers, times
from diffusion_jax.methods import Method
from diffusion_jax.process import Process
from diffusion_jax.types import Array, Key

MAX_STEPS = 64  # grids are padded to this many steps, or to the next power of two


def keys_of(seeds) -> Key:
  """One key a seed: seeds [B] of integers -> [B]. Image i of any sampler depends on seed i alone."""
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def grid_of(config, process: Process) -> np.ndarray:
  """Times [n+1] of `process` on the noise levels that a config.sampling names (EDM's equation 5)."""
  levels = times.edm_grid(config.num_steps, config.sigma_min, config.sigma_max, config.rho)
  return np.asarray(process.inverse(levels))


def options_of(config) -> dict:
  """The keyword arguments of the sampler that a config.sampling names."""
  if config.churn:
    return {"churn": samplers.Churn(config.churn, config.s_min, config.s_max, config.s_noise)}
  return {"eta": config.eta} if config.eta else {}


def evaluations(config) -> int:
  """Network evaluations an image of a config.sampling, guidance included."""
  n = config.num_steps
  return (2 * n - 1 if config.sampler == "heun" else n) * (1 if config.guidance == 1 else 2)


def default_labels(config, seeds) -> np.ndarray | None:
  """Seed modulo the number of classes; None for a run without classes."""
  classes = config.data.num_classes
  return np.asarray(seeds) % classes if classes else None


def generate(config, method: Method, variables, seeds, labels=None, batch_size: int = 256, progress=None) -> np.ndarray:
  """Draws one image a seed by the sampler of config.sampling, in batches laid over the local devices.

  Args:
    config: a run's config.
    method: its method.
    variables: its parameters.
    seeds: [N] integers; image i depends on seed i (and its label) alone.
    labels: [N] classes, -1 for none; `default_labels` if None.
    batch_size: images at a time.
    progress: called with the number of images of each batch done.

  Returns:
    [N, H, W, C] float32, not clipped.
  """
  setting, seeds = config.sampling, np.asarray(seeds)
  labels = default_labels(config, seeds) if labels is None else np.asarray(labels)
  shape = (config.data.resolution, config.data.resolution, config.data.channels)
  devices = jax.local_device_count()
  batch_size = -(-min(batch_size, len(seeds)) // devices) * devices
  variables = mesh.everywhere(variables)
  grid, options = grid_of(setting, method.process), options_of(setting)
  images = []
  for start in range(0, len(seeds), batch_size):
    rows = np.arange(start, start + batch_size) % len(seeds)  # the last batch is filled up: one compilation
    images.append(
      sample(
        method,
        variables,
        mesh.spread(keys_of(seeds[rows])),
        shape,
        grid,
        setting.sampler,
        labels=None if labels is None else mesh.spread(labels[rows]),
        guidance=None if setting.guidance == 1 else setting.guidance,
        **options,
      )
    )
    if progress:
      images[-1].block_until_ready()
      progress(min(batch_size, len(seeds) - start))
  return np.concatenate([np.asarray(batch) for batch in images])[: len(seeds)]


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
  **options,
):
  """Draws images.

  Args:
    method: the triple of `methods.from_config`.
    variables: its parameters, see `training.state.inference_variables`.
    keys: [B] PRNG keys, one an image; see `keys_of`.
    image_shape: (H, W, C) of one image.
    grid: [n+1] times of method.process, decreasing to 0; any n up to MAX_STEPS shares one compilation.
    sampler: one of method.samplers.
    labels: [B] classes, -1 for none; None is unconditional.
    guidance: scale of classifier-free guidance; None evaluates the network once a step, any number twice.
    trajectory: return the states at every grid value too.
    **options: the sampler's own, such as churn=Churn(...) or eta=0.5; numbers are traced, booleans are not.

  Returns:
    Images [B, H, W, C], not clipped; with trajectory, (images, states [n+1, B, H, W, C]).

  Raises:
    ValueError: the method has no such sampler, or guidance was asked for without labels.
  """
  if sampler not in method.samplers:
    raise ValueError(f"sampler must be one of {', '.join(method.samplers)} for this method, got {sampler!r}")
  if guidance is not None and labels is None:
    raise ValueError("guidance needs labels [B], got None")
  steps = len(grid) - 1
  max_steps = max(MAX_STEPS, 1 << (steps - 1).bit_length())
  static = tuple(sorted((name, value) for name, value in options.items() if isinstance(value, bool)))
  traced = {name: value for name, value in options.items() if not isinstance(value, bool)}
  padded = jnp.asarray(times.pad(grid, max_steps), jnp.float32)
  out = _sample(
    method.denoise, method.process, sampler, tuple(image_shape), trajectory, static,
    variables, keys, padded, labels, guidance, traced,
  )  # fmt: skip
  if not trajectory:
    return out
  images, states = out
  return images, jnp.concatenate([states[:steps], states[-1:]])


@functools.partial(jax.jit, static_argnums=range(6))
def _sample(
  denoise_fn, process, sampler, image_shape, trajectory, static, variables, keys, grid, labels, scale, traced
):
  cond = None if labels is None else {"label": labels}
  denoise = lambda x, t: denoise_fn(variables, x, t, cond)
  if scale is not None:
    unconditional = lambda x, t: denoise_fn(variables, x, t, {"label": jnp.full_like(labels, -1)})
    denoise = guidance_lib.classifier_free(denoise, unconditional, scale)
  x = process.prior(keys, image_shape, grid[0])
  return samplers.BY_NAME[sampler](denoise, process, x, grid, keys, trajectory=trajectory, **dict(static), **traced)
