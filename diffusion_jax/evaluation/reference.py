"""Real images as an extractor sees them: what generated ones are compared with."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from etils import epath

from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation import features as features_lib
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.evaluation import neighbours
from diffusion_jax.evaluation import statistics as statistics_lib
from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.evaluation.statistics import Statistics
from diffusion_jax.evaluation.streaming import Moments

CHUNK = 1024  # images gathered at a time


class Reference(Protocol):
  """What a score compares with.

  Attributes:
    name: of the images or their file, for records.
    num_images: how many they are; None where a file of statistics does not say.
    sha256: of the images or the file.
    statistics: mean and covariance of their features.
    features: [M, d] float32; None where there are statistics alone.
  """

  name: str
  num_images: int | None
  sha256: str
  statistics: Statistics
  features: np.ndarray | None


class RealImages:
  """All images of a `source`; their features are computed when they are first asked for."""

  def __init__(self, extractor: Extractor, source: Source, progress: Callable[[int], None] | None = None):
    """`progress` is called with the number of images of each chunk done.

    Raises:
      ValueError: the source's images are not the extractor's.
    """
    extractor.check(source.image_shape)
    self.name, self.num_images = f"{source.name}/{source.split}", len(source)
    self._extractor, self.source, self._progress = extractor, source, progress or (lambda n: None)

  @functools.cached_property
  def sha256(self) -> str:
    return fingerprint(self.source)

  @functools.cached_property
  def statistics(self) -> Statistics:
    moments = None
    for chunk in [self.features] if "features" in self.__dict__ else self._chunks():
      moments = (moments or Moments.empty(chunk.shape[1])).add(chunk)
    return Statistics.from_moments(moments, self._extractor.name, self._extractor.weights, self.name)

  @functools.cached_property
  def features(self) -> np.ndarray:
    return np.concatenate(list(self._chunks()))

  @functools.cached_property
  def balls(self) -> neighbours.Balls:
    """Of precision: those of the features, computed once for all that is compared with these images."""
    return neighbours.balls(self.features, neighbours.NEIGHBOURS)

  def _chunks(self) -> Iterator[np.ndarray]:
    for images in chunks_of(self.source):
      yield self._extractor(in_bytes(images))[self._extractor.features]
      self._progress(len(images))


class StoredStatistics:
  """A file of statistics, see `statistics.read`."""

  features = None

  def __init__(self, extractor: Extractor, path):
    """Raises ValueError if the file cannot be read, or is of another extractor or weights."""
    self.statistics = statistics_lib.read(path, extractor.name, extractor.weights)
    self.name, self.num_images = epath.Path(path).name, self.statistics.num_images
    self.sha256 = features_lib.sha256(path)


def fingerprint(source: Source) -> str:
  """SHA-256 of a source: of its file where it is one, else of all its images in their order."""
  if getattr(source, "path", None):
    return features_lib.sha256(source.path)
  digest = hashlib.sha256()
  for images in chunks_of(source):
    digest.update(np.ascontiguousarray(images).tobytes())
  return digest.hexdigest()


def chunks_of(source: Source) -> Iterator[np.ndarray]:
  """All images of a source in their order, CHUNK at a time."""
  for start in range(0, len(source), CHUNK):
    yield source.gather(np.arange(start, min(start + CHUNK, len(source))))["image"]


def in_bytes(images) -> np.ndarray:
  """Images as uint8: as they are, or from [−1, 1] by `images.to_uint8`."""
  images = np.asarray(images)
  return images if images.dtype == np.uint8 else images_lib.to_uint8(images)
