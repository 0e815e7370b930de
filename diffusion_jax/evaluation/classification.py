"""How well a classifier of noisy images knows the classes, by noise level.

    accuracy and −log p(y|x_t, t),  x_t = α(t)·x_0 + σ(t)·ε,  in bins of t                                     (1)

Every image is seen once in each bin, at a t that is uniform in it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax import mesh, sampling
from diffusion_jax.data.sources import Source
from diffusion_jax.methods import batches
from diffusion_jax.methods import classifier as classifier_method
from diffusion_jax.types import normal

BINS = 10
_NOISE, _TIME = 0, 1  # streams of an image's key, with the bin's number


def measure(config, variables, source: Source, bins: int = BINS, batch_size: int = 256, progress=None) -> list[dict]:
  """Equation (1) on all images of a source: a dict a bin, of the smallest noise first.

  Args:
    config: of a run of method "classifier".
    variables: its parameters.
    source: images with labels, of the run's size and classes.
    bins: their number; bin i has the t from ⌊i·T/bins⌋ + 1 to ⌊(i+1)·T/bins⌋.
    batch_size: images at a time.
    progress: called with numbers of images done.

  Returns:
    [{"t": [first, last], "noise_level": [first, last], "accuracy", "cross_entropy"}].

  Raises:
    ValueError: the source has other images or classes than the run.
  """
  data = config.data
  shape = (data.resolution, data.resolution, data.channels)
  if source.image_shape != shape or source.num_classes != data.num_classes:
    found = f"{source.image_shape}, {source.num_classes} classes"
    raise ValueError(f"expected images {shape} of {data.num_classes} classes, {source.name} {source.split} has {found}")
  chain, logits = classifier_method.process_from_config(config), classifier_method.logits_from_config(config)
  edges = [i * chain.num_steps // bins for i in range(bins + 1)]

  @jax.jit
  def judge(variables, images, labels, keys, number, first, last):
    x0 = batches.images_of({"image": images}, None, False)
    draw = lambda key: jax.random.randint(jax.random.fold_in(key, _TIME), (), first, last + 1)
    keys = batches.streams(keys, number)
    t = jax.vmap(draw)(keys)
    out = logits(variables, chain.perturb(x0, normal(keys, _NOISE, shape), t), t)
    return jnp.argmax(out, 1) == labels, optax.softmax_cross_entropy_with_integer_labels(out, labels)

  variables, count = mesh.everywhere(variables), len(source)
  right, entropy = np.zeros(bins), np.zeros(bins)
  for done, rows in zip(range(0, count, batch_size), mesh.batches(count, batch_size)):
    fresh = min(len(rows), count - done)  # the last batch is filled up with images that were seen
    batch = source.gather(rows)
    images, labels, keys = (mesh.spread(x) for x in (batch["image"], batch["label"], sampling.keys_of(rows)))
    for i in range(bins):
      found = judge(variables, images, labels, keys, i, edges[i] + 1, edges[i + 1])
      right[i] += np.sum(np.asarray(found[0][:fresh], np.float64))
      entropy[i] += np.sum(np.asarray(found[1][:fresh], np.float64))
    if progress:
      progress(fresh)
  ends = [(edges[i] + 1, edges[i + 1]) for i in range(bins)]
  return [
    {
      "t": list(ts),
      "noise_level": [float(chain.noise_level(t)) for t in ts],
      "accuracy": float(right[i] / count),
      "cross_entropy": float(entropy[i] / count),
    }
    for i, ts in enumerate(ends)
  ]
