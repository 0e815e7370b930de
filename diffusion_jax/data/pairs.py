"""Tasks whose conditions are files: every image has its partner in the folder task.path, of the same name.

    task       data.path                         task.path
    superres   DIV2K_train_HR/0001.png           DIV2K_train_LR_bicubic/X4/0001x4.png
    inpaint    celeba_hq/00000.jpg               holes/00000.png or holes/00000_mask000.png
    saliency   DUTS-TR/DUTS-TR-Mask/n1.png       DUTS-TR/DUTS-TR-Image/n1.jpg

A partner is found by its path in its folder without the suffix or, if none has the image's, by its name alone. What is
done to the image is done to it: it is resized and cropped alike. Other files of task.path are passed over.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from diffusion_jax import config as config_lib
from diffusion_jax import files
from diffusion_jax.data import tasks, transforms
from diffusion_jax.data.base import DataError, Source
from diffusion_jax.data.crops import Crops, part
from diffusion_jax.data.decoded import Files
from diffusion_jax.data.folders import Folder, images_under


@dataclasses.dataclass(frozen=True)
class Whole:
  """In place of a Transform, for files that are of any size until something is done to them."""

  shape = ()

  def check(self, size, mode):
    transforms.check_mode(mode)


class Paired(tasks.Conditioned):
  """Images of files, and a partner of each; a subclass makes conditions of these.

  Attributes:
    files: the images' files.
    partners: of each of these files one, in their order.
  """

  pattern = ""  # what a partner's name may have behind the image's, as a regular expression

  def __init__(self, source: Files | Crops, path, condition_shape=None):
    """Raises DataError: a partner is missing, cannot be read, or has another size than it should."""
    super().__init__(source, condition_shape=condition_shape)
    self.files = source.files if isinstance(source, Crops) else source
    names = matched(self.files.names, path, self.pattern)
    self.partners = Folder(source.split, path, Whole(), names=names)
    for k, (image, partner) in enumerate(zip(self.files.sizes, self.partners.sizes)):
      if not self._fits(image, partner):
        of = f"{self.files.place(k)} has {image[0]}×{image[1]}"
        raise DataError(f"{self.partners.place(k)} has {partner[0]}×{partner[1]} pixels and {of}: {self._expected()}")

  def _fits(self, image, partner) -> bool:
    """Whether sizes [2] of an image and its partner belong together."""
    return (image == partner).all()

  def _expected(self) -> str:
    return "expected the same"

  def _of_partners(self, indices, channels: int, cut) -> np.ndarray:
    """cut(PIL image, index) of the partners of examples: [n, h, w, channels] uint8."""
    cropped = isinstance(self._source, Crops)
    out = [None] * len(indices)

    def put(k, image):
      out[k] = cut(image, int(indices[k]))

    self.partners.each(self._source.file[indices] if cropped else np.asarray(indices), put)
    return np.stack(out) if out else np.empty((0, *self.condition_shape[:2], channels), np.uint8)

  def _alike(self, channels: int):
    """The function of (PIL image, index) that does to a partner what is done to the image."""
    height, width, _ = self.image_shape
    if isinstance(self._source, Crops):
      return lambda image, i: part(image, self._source.corner[i], width, channels)
    transform = self._source.transform
    if transform:
      return lambda image, i: dataclasses.replace(transform, channels=channels)(image)
    return lambda image, i: np.asarray(transforms.converted(image, channels)).reshape(height, width, channels)


class Superres(Paired):
  """Images with their smaller copies, enlarged again to the same size by BICUBIC."""

  def __init__(self, source, path, scale: int):
    self._scale = scale
    self.pattern = rf"x{scale}"
    super().__init__(source, path)

  def _fits(self, image, partner):
    return (image == self._scale * partner).all()

  def _expected(self):
    return f"expected {self._scale} times the size, as of scale {self._scale}"

  def gather(self, indices):
    batch = self._source.gather(indices)
    height, width, channels = self.image_shape

    def cut(image, i):
      corner = self._source.corner[i] // self._scale if isinstance(self._source, Crops) else (0, 0)
      return part(image, corner, width // self._scale, channels)

    small = self._of_partners(indices, channels, cut)
    return {**batch, "condition": tasks.resized(small, (height, width))}


class Saliency(Paired):
  """Masks of salient objects as images, and their photographs as conditions."""

  def __init__(self, source, path):
    super().__init__(source, path, condition_shape=(*source.image_shape[:2], 3))

  def gather(self, indices):
    return {**self._source.gather(indices), "condition": self._of_partners(indices, 3, self._alike(3))}


class Inpaint(Paired):
  """Images with holes of files, which are of the files' sizes or of that to which images are brought.

  A hole is where a file is at least half white or, if it has no value above 127, not black.
  """

  pattern = r"_mask\d*"

  def __init__(self, source, path):
    """Raises DataError also for a file with no hole, or nothing else."""
    super().__init__(source, path)
    self._cut = self._alike(1)

    def look(k, image):
      mask = self._mask(image, k)
      if mask.all() or not mask.any():
        raise DataError(f"{self.partners.place(k)} has {'nothing but holes' if mask.any() else 'no hole'}")

    self.partners.each(np.arange(len(self.partners)), look)

  def _fits(self, image, partner):
    return super()._fits(image, partner) or (partner == self.image_shape[1::-1]).all()

  def _expected(self):
    return f"expected the same, or {self.image_shape[1]}×{self.image_shape[0]}"

  def gather(self, indices):
    batch, mask = self._source.gather(indices), self._of_partners(indices, 1, self._mask)
    return {**batch, "mask": mask, "condition": tasks.with_holes(batch["image"], mask)}

  def _mask(self, image, i):
    import PIL.Image

    pixels = np.asarray(transforms.converted(image, 1))
    holes = np.where(pixels >= (128 if pixels.max() > 127 else 1), np.uint8(255), np.uint8(0))
    if holes.shape == self.image_shape[:2]:
      return (holes[..., None] > 0).astype(np.uint8)
    return (self._cut(PIL.Image.fromarray(holes), i) > 127).astype(np.uint8)


def of_config(config, source: Files | Crops) -> Source:
  """The source of config.data with config.task, whose conditions are the files of config.task.path.

  Raises:
    ConfigError: something is wrong with the files.
  """
  task = config.task
  try:
    if task.name == "superres":
      return Superres(source, task.path, task.scale)
    return {"inpaint": Inpaint, "saliency": Saliency}[task.name](source, task.path)
  except ValueError as error:
    raise config_lib.wrong("task.path", task.path, str(error)) from None


def check_apart(config):
  """Raises ConfigError where a folder of images has, or lies in, that of their partners: they would be their own."""
  where = lambda path: os.path.join(path if files.is_remote(path) else os.path.realpath(path), "")
  images, partners = where(config.data.path), where(config.task.path)
  if config.data.name == "folder" and (images.startswith(partners) or partners.startswith(images)):
    expected = "must be apart from config.data.path: not the same folder, nor in it or around it"
    raise config_lib.wrong("task.path", config.task.path, expected)


def matched(names: Sequence[str], path, pattern: str) -> list[str]:
  """For each of `names` that of its partner in a folder, see the module.

  Args:
    names: of images, relative to their folder.
    path: of the folder with the partners.
    pattern: what may stand behind an image's name, as a regular expression; partners that have it come first.

  Raises:
    DataError: an image has no partner, or several.
  """
  folder = epath.Path(path)
  if not folder.is_dir():
    raise DataError(f"{os.fspath(folder)} is no folder")
  try:
    candidates = sorted(images_under(folder))
  except OSError as error:
    raise DataError(f"{os.fspath(folder)} cannot be listed: {error}") from None
  table = {}
  for candidate in candidates:
    stem = _stem(candidate)
    short = re.sub(f"(?:{pattern})$", "", stem)
    for rank, key in ((0, short), (1, stem)) if short != stem else ((1, stem),):
      table.setdefault((rank, key), []).append(candidate)
      table.setdefault((rank, "/" + key.rpartition("/")[2]), []).append(candidate)  # by its name alone
  found = []
  for name in names:
    stem = _stem(name)
    keys = [(rank, key) for key in (stem, "/" + stem.rpartition("/")[2]) for rank in (0, 1)]
    partners = next((table[key] for key in keys if key in table), [])
    if len(partners) != 1:
      several = f"several partners in {path}: {', '.join(partners[:3])}"
      raise DataError(f"{name} has " + (several if partners else f"no partner in {path}"))
    found.append(partners[0])
  return found


def _stem(name: str) -> str:
  return name.rpartition(".")[0]
