"""Tasks: what an image is made from, beside the image.

    task       image                        condition
    superres   the image                    its copy at 1/scale of the size, enlarged again: the bicubic reference
    inpaint    the image                    the image with −1 in holes; "mask" says where they are
    saliency   mask of the salient object   the photograph

A source with a task gathers "image" and "label" as any does, and "condition" [n, h, w, c]; of inpainting also "mask"
[n, H, W, 1] uint8, 1 in holes. Its attribute `condition_shape` is (h, w, c). The sources here make the condition from
the image; those of pairs.py read it from files.
"""

import numpy as np

from diffusion_jax import config as config_lib
from diffusion_jax.data import masks as masks_lib
from diffusion_jax.data.base import Source
from diffusion_jax.data.builtin import Scenes
from diffusion_jax.data.crops import Crops
from diffusion_jax.data.decoded import in_threads


class Conditioned:
  """Base of sources that make a condition from another source's images. A subclass gives `gather`."""

  def __init__(self, source: Source, image_shape=None, condition_shape=None):
    """Shapes are those of the source's images by default."""
    self.name, self.split, self.num_classes = source.name, source.split, source.num_classes
    self.image_shape = image_shape or source.image_shape
    self.condition_shape = condition_shape or source.image_shape
    self._source = source

  def __len__(self):
    return len(self._source)

  def together(self, indices) -> np.ndarray:
    """As `Crops.together`; these alone where images are no parts of others."""
    return self._source.together(indices) if isinstance(self._source, Crops) else indices


class Superres(Conditioned):
  """Images with their copies made smaller by `scale` and enlarged again, see `lowered`."""

  def __init__(self, source: Source, scale: int):
    """Raises ValueError unless scale >= 2 divides the images."""
    if scale < 2 or any(side % scale for side in source.image_shape[:2]):
      raise ValueError(f"scale must be >= 2 and divide images of {source.image_shape[:2]}, got {scale}")
    super().__init__(source)
    self._scale = scale

  def gather(self, indices):
    batch = self._source.gather(indices)
    return {**batch, "condition": lowered(batch["image"], self._scale)}


class Inpaint(Conditioned):
  """Images with the holes of `masks.holes`, which depend on the example's number alone."""

  def __init__(self, source: Source, kind: str):
    super().__init__(source)
    self._kind = kind
    masks_lib.holes(kind, 0, source.image_shape[:2])  # says what is wrong with either

  def gather(self, indices):
    batch, shape = self._source.gather(indices), self.image_shape[:2]
    mask = np.empty((len(batch["image"]), *shape, 1), np.uint8)
    for k, i in enumerate(indices):
      mask[k, ..., 0] = masks_lib.holes(self._kind, int(i), shape)
    return {**batch, "mask": mask, "condition": with_holes(batch["image"], mask)}


class Saliency(Conditioned):
  """The masks of scenes as images [H, W, 1], and their photographs as conditions."""

  def __init__(self, scenes: Scenes):
    super().__init__(scenes, image_shape=scenes.masks.shape[1:])

  def gather(self, indices):
    batch = self._source.gather(indices)
    return {**batch, "image": self._source.masks[indices], "condition": batch["image"]}


def of_config(config, source: Source) -> Source:
  """The source of config.data with config.task, made from its images.

  Raises:
    ConfigError: it cannot be made from these images.
  """
  task = config.task
  try:
    if task.name == "superres":
      return Superres(source, task.scale)
    if task.name == "inpaint":
      return Inpaint(source, task.masks)
  except ValueError as error:
    field = "scale" if task.name == "superres" else "masks"
    raise config_lib.wrong(f"task.{field}", task[field], str(error)) from None
  if not isinstance(source, Scenes):
    expected = f"{source.name} has no masks: scenes has, or task.path names the photographs of those in data.path"
    raise config_lib.wrong("task.name", task.name, expected)
  return Saliency(source)


def lowered(images, scale: int) -> np.ndarray:
  """What is left of images when they are made smaller: `enlarged(reduced(images))`.

  Args:
    images: [n, H, W, C] uint8, or float32 in [−1, 1], which is rounded to bytes; C is 1 or 3.
    scale: divides H and W.

  Returns:
    [n, H, W, C] uint8.
  """
  images = np.asarray(images)
  if images.dtype != np.uint8:
    images = np.rint(np.clip(images * 127.5 + 127.5, 0, 255)).astype(np.uint8)
  height, width = images.shape[1:3]
  small = resized(images, (height // scale, width // scale))
  return resized(small, (height, width))


def resized(images, shape: tuple[int, int]) -> np.ndarray:
  """Images [n, h, w, 1 or 3] uint8 at `shape` (H, W), by PIL's BICUBIC, which averages where it makes them smaller."""
  import PIL.Image

  out = np.empty((len(images), *shape, images.shape[-1]), np.uint8)

  def resize(slots):
    for k in slots:
      image = PIL.Image.fromarray(images[k, ..., 0] if images.shape[-1] == 1 else images[k])
      pixels = np.asarray(image.resize(shape[::-1], PIL.Image.Resampling.BICUBIC))
      out[k] = pixels.reshape(out.shape[1:])

  in_threads(resize, len(images))
  return out


def with_holes(images, mask) -> np.ndarray:
  """Images [n, H, W, C] with −1 (byte 0) where mask [n, H, W, 1] is not 0; of the images' type."""
  return np.where(mask != 0, images.dtype.type(0 if images.dtype == np.uint8 else -1), images)
