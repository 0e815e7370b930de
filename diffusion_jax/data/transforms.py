"""Resizing and cropping to one size, as EDM's data-set tool does: what its zips were made with.

    resize                 to W×H by LANCZOS, whatever the aspect
    center-crop            the central square of side min(w, h), then W×H by LANCZOS
    center-crop-wide       the central round(W·h/w) rows, then W×H by LANCZOS, then black bars above and below to W×W
    center-crop-dhariwal   halved by BOX while min(w, h) ≥ 2N, the short side to N by BICUBIC, the central N×N square

for images of w×h pixels. The third is StyleGAN's for LSUN cars, the last that of Dhariwal & Nichol 2021.
"""

import dataclasses

import numpy as np

from diffusion_jax.config import TRANSFORMS

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # of PIL, 8 bits a channel: what can be converted


class TooSmall(ValueError):
  """An image from which center-crop-wide cannot cut what it needs; EDM's tool leaves such images out."""


@dataclasses.dataclass(frozen=True)
class Transform:
  """Brings an image to a size and a number of channels.

  Channels are converted first: palettes are looked up, grey is repeated, colour becomes grey by ITU-R 601's luma, and
  an alpha channel is dropped.

  Attributes:
    name: one of config.TRANSFORMS.
    width: W, of what the image is resized to.
    height: H.
    channels: 1 or 3.
  """

  name: str
  width: int
  height: int
  channels: int = 3

  def __post_init__(self):
    if self.name not in TRANSFORMS:
      raise ValueError(f"transforms are {', '.join(TRANSFORMS)}, got {self.name!r}")
    if self.channels not in (1, 3):
      raise ValueError(f"a transform makes images of 1 or 3 channels, got {self.channels}")
    if self.name == "center-crop-dhariwal" and self.width != self.height:
      raise ValueError(f"center-crop-dhariwal makes square images, got {self.width}×{self.height}")
    if self.name == "center-crop-wide" and self.width < self.height:
      raise ValueError(f"center-crop-wide makes images at least as wide as high, got {self.width}×{self.height}")

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the result."""
    return (self.width if self.name == "center-crop-wide" else self.height, self.width, self.channels)

  @property
  def may_refuse(self) -> bool:
    """Whether there are images that are too small."""
    return self.name == "center-crop-wide"

  def check(self, size: tuple[int, int], mode: str):
    """Raises ValueError unless an image of this (width, height) and PIL mode can be transformed."""
    check_mode(mode)
    if self.name == "center-crop-wide" and (size[0] < self.width or self._rows(size) < self.height):
      wanted = f"center-crop-wide to {self.width}×{self.height}"
      raise TooSmall(f"it has {size[0]}×{size[1]} pixels, too small or too wide for {wanted}")

  def __call__(self, image) -> np.ndarray:
    """A PIL image as [H, W, C] uint8.

    Raises:
      ValueError: as `check`.
    """
    self.check(image.size, image.mode)
    pixels = np.asarray(_STEPS[self.name](self, converted(image, self.channels)))
    return pixels if self.channels == 3 else pixels[..., None]

  def _rows(self, size) -> int:
    return round(self.width * size[1] / size[0])


def check_mode(mode: str):
  """Raises ValueError unless a PIL mode is one of MODES."""
  if mode not in MODES:
    raise ValueError(f"its mode is {mode}, not one of 8 bits a channel")


def converted(image, channels: int):
  """A PIL image of one of MODES as grey or RGB."""
  if image.mode == "P":
    image = image.convert("RGBA")  # its transparent entries have colours too
  return image.convert("RGB" if channels == 3 else "L")


def _resize(to: Transform, image):
  import PIL.Image

  return image.resize((to.width, to.height), PIL.Image.Resampling.LANCZOS)


def _center_crop(to: Transform, image):
  side = min(image.size)
  return _resize(to, _central(image, side, side))


def _center_crop_wide(to: Transform, image):
  import PIL.Image

  image = _resize(to, _central(image, image.width, to._rows(image.size)))
  canvas = PIL.Image.new(image.mode, (to.width, to.width))
  canvas.paste(image, (0, (to.width - to.height) // 2))
  return canvas


def _center_crop_dhariwal(to: Transform, image):
  import PIL.Image

  while min(image.size) >= 2 * to.width:
    image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
  scale = to.width / min(image.size)
  image = image.resize((round(image.width * scale), round(image.height * scale)), PIL.Image.Resampling.BICUBIC)
  return _central(image, to.width, to.width)


def _central(image, width: int, height: int):
  left, top = (image.width - width) // 2, (image.height - height) // 2
  return image.crop((left, top, left + width, top + height))


_STEPS = dict(zip(TRANSFORMS, (_resize, _center_crop, _center_crop_wide, _center_crop_dhariwal)))
