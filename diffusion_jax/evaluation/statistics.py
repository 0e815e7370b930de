"""Statistics of reference images on disk: the .npz of EDM's fid-refs, and what they were taken with.

The arrays `mu` [d] and `sigma` [d, d] are the form that EDM publishes. Files written here also say how many images they
are of, by which extractor and weights, and what the images were; published files do not.
"""

import dataclasses
import struct
import zipfile
import zlib

import numpy as np
from etils import epath

from diffusion_jax.evaluation.streaming import Moments


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
  """Mean and covariance of features, and of what. None stands for unknown.

  Attributes:
    mean: [d] float64.
    covariance: [d, d] float64, divisor N − 1.
    num_images: N.
    extractor: name of the feature extractor.
    weights: SHA-256 of its weights, in hexadecimal.
    data: name of the images.
  """

  mean: np.ndarray
  covariance: np.ndarray
  num_images: int | None = None
  extractor: str | None = None
  weights: str | None = None
  data: str | None = None

  def __post_init__(self):
    for name in ("mean", "covariance"):
      object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
    if self.mean.ndim != 1 or not self.mean.size or self.covariance.shape != 2 * self.mean.shape:
      shapes = f"{list(self.mean.shape)} and {list(self.covariance.shape)}"
      raise ValueError(f"mean and covariance must be [d] and [d, d], got shapes {shapes}")
    if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
      raise ValueError("mean and covariance must be finite")
    if np.abs(self.covariance - self.covariance.T).max() > 1e-4 * np.abs(self.covariance).max():
      raise ValueError("covariance must be symmetric")

  @classmethod
  def from_moments(cls, moments: Moments, extractor=None, weights=None, data=None) -> "Statistics":
    """Of the features that `moments` has seen; ValueError where they are fewer than two."""
    return cls(*moments.mean_and_covariance(), moments.count, extractor, weights, data)


# What NumPy raises, besides the usual, for files that are damaged or of another kind.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error)
EXTRAS = {"num_images": int, "extractor": str, "weights": str, "data": str}


def write(path, statistics: Statistics, overwrite: bool = False):
  """Writes `statistics` to `path`, all or nothing, making its folder.

  Raises:
    FileExistsError: the file exists and overwrite is False.
  """
  path = epath.Path(path)
  if path.exists() and not overwrite:
    raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
  known = {name: getattr(statistics, name) for name in EXTRAS if getattr(statistics, name) is not None}
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f"{path.name}.tmp"
  try:
    with temporary.open("wb") as file:
      np.savez(file, mu=statistics.mean, sigma=statistics.covariance, **known)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def read(path, extractor: str | None = None, weights: str | None = None) -> Statistics:
  """Reads statistics written by `write`, or published in that form.

  Args:
    path: of the .npz file. Nothing in it is executed.
    extractor: name that the file must have, if it has one; None takes any.
    weights: likewise, SHA-256 of the weights.

  Raises:
    ValueError: no such file, a file of another form, arrays that are no mean and covariance, or another extractor or
      weights than asked for.
  """
  path = epath.Path(path)
  if not path.is_file():
    raise ValueError(f"{path}: no such file of statistics")
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      arrays = {name: arrays[name] for name in ("mu", "sigma", *EXTRAS) if name in arrays or name in ("mu", "sigma")}
    found = {name: kind(arrays[name].item()) for name, kind in EXTRAS.items() if name in arrays}
    mean, covariance = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
  except (*DAMAGE, OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: not an .npz file of statistics with mu [d] and sigma [d, d] ({_line(error)})") from None
  try:
    statistics = Statistics(mean, covariance, **found)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  for name, wanted in (("extractor", extractor), ("weights", weights)):
    if wanted is not None and found.get(name, wanted) != wanted:
      raise ValueError(f"{path}: its statistics were taken with {name} {found[name]}, not with {wanted}")
  return statistics


def _line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__
