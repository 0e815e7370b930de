"""As many images as there are seeds, by a run's config: in batches, over the devices, over the hosts."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import guidance as guidance_lib
from diffusion_jax import latent, mesh, times
from diffusion_jax.config import LATENTS, wrong
from diffusion_jax.methods import Method
from diffusion_jax.sampling.draw import keys_of, sample
from diffusion_jax.sampling.options import arguments_of, evaluations


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
  chosen, images = arguments_of(setting, method), []
  for rows in mesh.batches(len(seeds), batch_size):
    images.append(
      sample(
        method,
        variables,
        mesh.spread(keys_of(seeds[rows])),
        shape,
        labels=None if labels is None else mesh.spread(labels[rows]),
        classifier=classifier,
        condition=None if condition is None else mesh.spread(in_range(condition[rows])),
        **chosen,
      )
    )
    if decoder is not None:
      images[-1] = decoder(images[-1])
    if progress:
      jax.block_until_ready(images[-1])
      progress(min(len(rows), len(seeds) - int(rows[0])))
  return np.concatenate([np.asarray(batch) for batch in images])[: len(seeds)]


def mean_evaluations(
  config,
  method: Method,
  variables,
  seeds,
  labels=None,
  classifier: guidance_lib.Classifier | None = None,
  condition=None,
) -> int:
  """Network evaluations an image, as `evaluations`; those of an adaptive sampler are measured, the mean over `seeds`.

  Arguments are those of `generate`; a few dozen seeds will do.
  """
  known = evaluations(config.sampling, method)
  if known is not None:
    return known
  seeds = np.asarray(seeds)
  labels = default_labels(config, seeds, classifier) if labels is None else np.asarray(labels)
  shape = (config.data.resolution, config.data.resolution, config.data.channels)
  condition = None if condition is None else jnp.asarray(in_range(condition))
  more = {"labels": labels, "classifier": classifier, "condition": condition, "count": True}
  _, counts = sample(method, variables, keys_of(seeds), shape, **more, **arguments_of(config.sampling, method))
  return round(float(np.mean(counts))) * (1 if config.sampling.guidance == 1 else 2)


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
  image = sample(
    method,
    variables,
    keys_of([seed]),
    (*condition.shape[1:3], config.data.channels),
    condition=jnp.asarray(condition),
    tile=(window, overlap),
    **arguments_of(setting, method),
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
