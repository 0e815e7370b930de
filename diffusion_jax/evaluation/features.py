"""Feature extractors: images as bytes in, named features out, over all local devices.

Scores compare only where the extractor, its weights and its images' size agree; an Extractor carries what names them.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from diffusion_jax import mesh
from diffusion_jax.evaluation import digits
from diffusion_jax.interop import tensor_reader
from diffusion_jax.nets import inception, vgg
from diffusion_jax.types import Params

BATCH = 64  # images a call of the network on each local device, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
  """A feature network with its weights: extractor(images) -> {layer: features}.

  Attributes:
    name: of the network: "digits", "inception-2015-12-05", "vgg16", or "pixels".
    weights: SHA-256 of the weights' file, in hexadecimal; "" for pixels.
    channels: those of the images.
    resolution: the images' height and width; None takes any size.
    resize: what the network does to the images before its first layer, in words.
    apply: (params, images [B, H, W, C] uint8) -> {layer: [B, d]}; pure.
    params: the weights.
    features: the layer whose moments the Fréchet distance compares, with precision, recall and KID.
    logits: the layer of the Inception Score; None if there is none.
  """

  name: str
  weights: str
  channels: int
  resolution: int | None
  resize: str
  apply: Callable[[Params, jax.Array], dict[str, jax.Array]]
  params: Params
  features: str
  logits: str | None

  def __call__(self, images) -> dict[str, np.ndarray]:
    """Features of images [N, H, W, C] uint8, N >= 1: {layer: [N, d] float32} of `features` and `logits`.

    Raises:
      ValueError: images of another type, rank, size or number of channels, or features that are not finite.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images) or not self._takes(images.shape[1:]):
      wanted = f"[N, {self._size}, {self.channels}] with N >= 1"
      raise ValueError(f"images for {self.name} must be {wanted}, got shape {list(images.shape)}")
    if images.dtype != np.uint8:
      raise ValueError(f"images for {self.name} must be uint8 in 0..255, got {images.dtype}; see images.to_uint8")
    n, devices = len(images), jax.local_device_count()
    batch = devices * min(BATCH, -(-n // devices))
    rows = np.arange(-(-n // batch) * batch) % n  # whole batches: one compilation for every large N
    parts = [self._run(self._placed, mesh.spread(images[part])) for part in np.split(rows, len(rows) // batch)]
    out = {layer: np.concatenate([np.asarray(part[layer]) for part in parts])[:n] for layer in self._layers}
    for layer, values in out.items():
      bad = np.count_nonzero(~np.isfinite(values).all(axis=1))
      if bad:
        raise ValueError(f"features {layer!r} of {self.name} must be finite, got {bad} of {n} images where not")
    return out

  def check(self, image_shape: tuple[int, int, int]):
    """Raises ValueError unless images of (H, W, C) can be given to it."""
    if not self._takes(image_shape):
      raise ValueError(f"{self.name} takes images of ({self._size}, {self.channels}), got {tuple(image_shape)}")

  @functools.cached_property
  def width(self) -> int:
    """d of `features`."""
    size = self.resolution or 64
    image = jax.ShapeDtypeStruct((1, size, size, self.channels), np.uint8)
    return jax.eval_shape(lambda image: self.apply(self.params, image), image)[self.features].shape[-1]

  @property
  def _size(self) -> str:
    return "H, W" if self.resolution is None else f"{self.resolution}, {self.resolution}"

  def _takes(self, shape) -> bool:
    right_size = self.resolution is None or tuple(shape[:2]) == (self.resolution, self.resolution)
    return len(shape) == 3 and 0 not in shape and shape[-1] == self.channels and right_size

  @property
  def _layers(self) -> list[str]:
    return [self.features] + ([self.logits] if self.logits else [])

  @functools.cached_property
  def _placed(self) -> Params:
    return mesh.everywhere(self.params)

  @functools.cached_property
  def _run(self):
    def run(params, images):
      out = self.apply(params, images)
      return {layer: out[layer] for layer in self._layers}  # the compiler drops the others

    return jax.jit(run)


def load(name: str, path=None, resolution: int | None = None, channels: int = 3) -> Extractor:
  """Opens an extractor.

  Args:
    name: "digits", whose weights come with the package; "inception" (Inception-2015-12-05: FID, Inception Score) or
      "vgg" (VGG16's second hidden layer: precision and recall), whose weights are files of PyTorch; or "pixels", which
      takes the bytes themselves.
    path: of those weights: torch-fidelity's weights-inception-2015-12-05-6726825d.pth, torchvision's
      vgg16-397923af.pth; a warning says if the file is not the published one.
    resolution: of the images, for "pixels"; the others know theirs.
    channels: likewise.

  Raises:
    ValueError: an unknown name, no path where one is needed, or a file that does not hold these weights.
  """
  if name not in NAMES:
    raise ValueError(f"extractor must be one of {', '.join(NAMES)}, got {name!r}")
  if name == "digits":
    weights, params = sha256(digits.WEIGHTS), dict(digits.params())
    return Extractor("digits", weights, 1, 8, "none", _digits, params, features="features", logits="logits")
  if name == "pixels":
    return Extractor("pixels", "", channels, resolution, "none", _pixels, {}, features="pixels", logits=None)
  if not path:
    raise ValueError(f"extractor {name!r} needs the file of its weights, {_FILES[name]}")
  tensors, weights = tensor_reader.read_state_dict(path), sha256(path)
  if not weights.startswith(_PUBLISHED[name]):
    logging.warning("%s is not the published file: scores will not compare with others' (SHA-256 %s)", path, weights)
  try:
    if name == "inception":
      params, layers = inception.from_state_dict(tensors), {"features": "2048", "logits": "logits_unbiased"}
      return Extractor(INCEPTION, weights, 3, None, inception.RESIZE, inception.features, params, **layers)
    params = vgg.from_state_dict(tensors)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  return Extractor("vgg16", weights, 3, None, vgg.RESIZE, _vgg, params, features="fc2", logits=None)


def _digits(params, images):
  return dict(zip(("features", "logits"), digits.network(params, digits.scaled(images))))


def _vgg(params, images):
  return {"fc2": vgg.fc2(params, images)}


def _pixels(params, images):
  del params
  return {"pixels": images.reshape(len(images), -1).astype(jnp.float32)}


NAMES = ("digits", "inception", "vgg", "pixels")
INCEPTION = "inception-2015-12-05"
_FILES = {"inception": "weights-inception-2015-12-05-6726825d.pth", "vgg": "vgg16-397923af.pth"}
_PUBLISHED = {"inception": "6726825d", "vgg": "397923af"}  # how their SHA-256 begins


def sha256(path) -> str:
  """SHA-256 of a file in hexadecimal."""
  with epath.Path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
