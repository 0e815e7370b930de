"""Distribution recovery: real images with noise on them, denoised once, against the clean ones.

    x̂_0 = denoise(α(t)·x_0 + σ(t)·ε, t).clean,   t = process.inverse(noise level)         (1)

The best denoiser gives E[x_0 | x_t], whose law is narrower than the data's: for N(m, s²) it has the variance
s⁴/(s² + σ²) at noise level σ. A generator that is trained on its own law, as DPDM's, need not lose that. Source: "Data
Prediction Denoising Models", Table 1.
"""

import functools
import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import mesh, sampling
from diffusion_jax import parameterization as par
from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation import bench
from diffusion_jax.evaluation.reference import RealImages
from diffusion_jax.evaluation.scoring import Scorer
from diffusion_jax.methods import Method
from diffusion_jax.process import Decoupled, Gaussian, Process
from diffusion_jax.types import Array, Denoise, Key, check_images, like, normal

SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1.0, 2.0, 5.0, 7.5, 10.0)  # of the paper's Table 1
NFE = 1  # network evaluations an image

_STREAM = 2**31 - 2  # of an image's key; the prior has the one above, samplers number theirs 0, 1, 2, …


def perturb(process: Process, images: Array, keys: Key, sigma) -> tuple[Array, Array]:
  """Real images at a noise level, in a process's own frame: x_t of equation (1), and t.

  Args:
    process: a Gaussian process.
    images: x_0 [B, H, W, C], float in [−1, 1] or uint8.
    keys: [B] PRNG keys, one an image; the noise of image i comes from its own.
    sigma: noise level σ(t)/α(t) > 0, EDM's σ; a number, or a traced scalar.

  Returns:
    x_t [B, H, W, C] and t, a scalar.

  Raises:
    ValueError: the process is not Gaussian, an argument has the wrong shape, or sigma is no positive number.
  """
  _check_process(process)
  check_images("images", images)
  if jnp.shape(keys) != (len(images),):
    raise ValueError(f"keys must hold one PRNG key an image [{len(images)}], got shape {list(jnp.shape(keys))}")
  images = _unit(images)
  sigma = sigma if isinstance(sigma, jax.core.Tracer) else check_sigma(sigma)
  t = process.inverse(sigma)
  return process.perturb(images, normal(keys, _STREAM, images.shape[1:], images.dtype), t), t


def recover(denoise: Denoise, process: Process, images: Array, keys: Key, sigma) -> Array:
  """Perturbs real images at a noise level and denoises them once, equation (1).

  Args:
    denoise: the pair of estimates at (x, t); only the clean one is used.
    process: the Gaussian process of x and t.
    images: as in `perturb`.
    keys: as in `perturb`.
    sigma: as in `perturb`.

  Returns:
    x̂_0 [B, H, W, C], not clipped.

  Raises:
    ValueError: as `perturb`.
  """
  x, t = perturb(process, images, keys, sigma)
  return process.decode(denoise(x, t).clean)


def check_sigma(sigma) -> float:
  """A noise level as a float; raises ValueError unless it is a positive, finite number."""
  if isinstance(sigma, jax.Array | np.ndarray) and sigma.ndim == 0:
    sigma = sigma.item()
  if not isinstance(sigma, numbers.Real) or isinstance(sigma, bool) or not (sigma > 0 and math.isfinite(sigma)):
    raise ValueError(f"sigma must be a positive number, got {sigma!r}")
  return float(sigma)


def check(method: Method, sigma) -> float:
  """The noise level as a float; a network that does not know it answers as at the nearest, and a warning says so.

  Raises:
    ValueError: sigma is no positive number, or the method's process is not Gaussian.
  """
  sigma = check_sigma(sigma)
  _check_process(method.process)
  if method.preconditioner is not None:
    par.clamp(method.preconditioner, np.float64(sigma))
  return sigma


def _check_process(process: Process):
  if not isinstance(process, Gaussian) or isinstance(process, Decoupled):
    raise ValueError(f"recovery perturbs images in a Gaussian process such as EDM() or VP(), got {process}")


def of_model(
  checkpoint: dict, config, open_model: Callable[[], tuple], images: RealImages, sigma: float
) -> bench.Subject:
  """What a model recovers from a noise level, as `bench.score` takes it: seed s perturbs image s mod N with its label.

  Args:
    checkpoint: as of `bench.Subject`.
    config: the model's; reads `data`.
    open_model: () -> (method, variables); called only where needed.
    images: the N real images, see `real_images`.
    sigma: noise level.

  Raises:
    ValueError: sigma is no positive number, or the images or their labels are not those of the model. `draw` raises it
      where the method's process is not Gaussian.
  """
  sigma, source, data = check_sigma(sigma), images.source, config.data
  shape = (data.resolution, data.resolution, data.channels)
  if source.image_shape != shape:
    raise ValueError(f"recovery needs images {shape} for {checkpoint['name']}, {images.name} has {source.image_shape}")
  if data.num_classes not in (0, source.num_classes):
    found = f"{source.num_classes} classes" if source.num_classes else "no labels"
    raise ValueError(f"{checkpoint['name']} knows {data.num_classes} classes, {images.name} has {found}")

  def draw():
    method, variables = open_model()
    check(method, sigma)
    variables = mesh.everywhere(variables)
    return lambda seeds: generate(config, method, variables, source, seeds, sigma), NFE

  labels = "those of the images" if data.num_classes else None
  return bench.Subject(checkpoint, draw, None, labels, {"sigma": sigma, "images": images.sha256})


def real_images(scorers: list[Scorer]) -> RealImages:
  """The images that the first scorer compares with.

  Raises:
    ValueError: there is only a file of their statistics.
  """
  if scorers[0].real is None:
    raise ValueError("recovery perturbs real images, and there is only a file of their statistics")
  return scorers[0].real


def generate(config, method: Method, variables, source: Source, seeds, sigma: float) -> np.ndarray:
  """Recovers image s mod N of a source for each seed s, in batches laid over the local devices.

  One compilation serves all noise levels.

  Args:
    config: the model's; reads `data.num_classes`.
    method: its method.
    variables: its parameters.
    source: N real images, with labels where the model has classes.
    seeds: [n] integers; image i depends on seed i alone.
    sigma: noise level.

  Returns:
    [n, H, W, C] float32, not clipped.
  """
  images, seeds, variables = [], np.asarray(seeds), mesh.everywhere(variables)
  for rows in mesh.batches(len(seeds), 256 * jax.local_device_count()):
    found = source.gather(seeds[rows] % len(source))
    labels = mesh.spread(found["label"]) if config.data.num_classes else None
    keys = mesh.spread(sampling.keys_of(seeds[rows]))
    images.append(
      _recover(method.denoise, method.process, variables, mesh.spread(found["image"]), keys, labels, jnp.float32(sigma))
    )
  return np.concatenate([np.asarray(batch) for batch in images])[: len(seeds)]


def noisy(method: Method, source: Source, seeds, sigma: float) -> tuple[np.ndarray, np.ndarray]:
  """The images of seeds [n] that `generate` starts from, to look at: (clean, noisy at scale 1), [n, H, W, C]."""
  seeds = np.asarray(seeds)
  clean = _unit(source.gather(seeds % len(source))["image"])
  x, t = perturb(method.process, clean, sampling.keys_of(seeds), sigma)
  return np.asarray(clean), np.asarray(x / like(method.process.alpha(t), x))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _recover(denoise_fn, process, variables, images, keys, labels, sigma):
  cond = None if labels is None else {"label": labels}
  return recover(lambda x, t: denoise_fn(variables, x, t, cond), process, images, keys, sigma)


def _unit(images) -> Array:
  """Images as float32 in [−1, 1]: as they are, or from bytes."""
  images = jnp.asarray(images)
  return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images
