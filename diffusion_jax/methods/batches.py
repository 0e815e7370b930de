"""What a loss is given of a batch: images, noise, times, labels, each example's drawn from its own key alone."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import latent, times
from diffusion_jax.data import augment
from diffusion_jax.types import Array, Key

# Streams of an example's key that this module draws from; a method's own have the numbers from OWN_STREAMS on. AUGMENT
# also decides which images data.flip mirrors.
_TIME, _NOISE, _LABEL, AUGMENT, _DROPOUT = range(5)
OWN_STREAMS = 5


class Examples(NamedTuple):
  """What a loss needs of a batch.

  Attributes:
    clean: images, or scaled latents, [B, H, W, C].
    eps: noise of the same shape.
    cond: for `Method.denoise`.
  """

  clean: Array
  eps: Array
  cond: dict[str, Array | None]


def times_of(law: times.Law) -> Callable[[Key], Array]:
  """`Method.times` of a law of t: keys [B] -> [B]."""
  return lambda keys: jax.vmap(lambda key: law(jax.random.fold_in(key, _TIME), 1)[0])(keys)


def examples(config, batch) -> Examples:
  """A batch as a loss needs it, every example by its own key batch["key"] alone."""
  stream = functools.partial(streams, batch["key"])
  clean = images_of(batch, stream(AUGMENT), config.data.flip, config.latent.scale)
  clean, labels = augmented(clean, stream(AUGMENT), config.data.augment)
  eps = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(stream(_NOISE))
  cond = {
    "label": labels_of(batch, stream(_LABEL), config),
    "augment": labels,
    "dropout": stream(_DROPOUT),
    "condition": condition_of(batch, stream(AUGMENT), config.data.flip),
  }
  return Examples(clean, eps, cond)


def images_of(batch, keys: Key, flip: bool, scale: float = 1.0) -> Array:
  """A batch's images [B, H, W, C] in [−1, 1], float32; with `flip` each is mirrored or not by its key alone.

  Of latents it is `latent.draw` with config.latent.scale, each by its key alone, and there is no `flip`.
  """
  if "log_variance" in batch:
    return latent.draw(keys, batch["image"], batch["log_variance"], scale)
  return _in_range(batch["image"], keys, flip)


def condition_of(batch, keys: Key, flip: bool) -> Array | None:
  """A batch's conditions [B, h, w, c], as `images_of` gives the images; None where it has none."""
  return _in_range(batch["condition"], keys, flip) if "condition" in batch else None


def _in_range(images: Array, keys: Key, flip: bool) -> Array:
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 127.5 - 1
  if flip:
    mirror = jax.vmap(jax.random.bernoulli)(keys)
    images = jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)
  return images


def augmented(images: Array, keys: Key, probability: float) -> tuple[Array, Array | None]:
  """EDM's augmentation of images [B, H, W, C], each by its key alone, and its labels [B, 9]; None at probability 0."""
  if not probability:
    return images, None
  labels = augment.draw(keys, probability)
  return augment.warp(images, labels), labels


def labels_of(batch, keys: Key, config) -> Array | None:
  """A batch's labels [B], −1 for the share config.label_dropout of them; None for data without classes."""
  if not config.data.num_classes:
    return None
  drop = jax.vmap(lambda key: jax.random.bernoulli(key, config.label_dropout))(keys)
  return jnp.where(drop, -1, batch["label"])


def streams(keys: Key, number: int) -> Key:
  """The stream of each key [B] with this number: one for each purpose that draws random numbers."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
