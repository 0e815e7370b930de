"""Data in the latent space of an autoencoder: a folder that experiments/encode.py writes once, and training reads.

    latents.json        what encoded what, and the scale
    mean.npy            [N, h, w, z] float32, of the posterior of each image
    log_variance.npy    the same
    label.npy           [N] int32
    NAME.npy            whatever else the images' source gives, such as condition or mask

The scale is that of equation (1), over all images, pixels and channels, in which posteriors count by their moments:

    scale = 1/√Var z,   Var z = E μ² + E σ² − (E μ)²                                                       (1)

Arrays are memory-mapped, so the folder must be on a disk.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import files
from diffusion_jax.data import identity
from diffusion_jax.data.base import Source, check_indices, known

FILE = identity.LATENTS_FILE
FORMAT = 1  # of the folder; a later one is refused
_IMAGE = "mean"  # the array that `gather` calls "image"

# images [n, H, W, C] float32 in [−1, 1] -> (mean, log_variance), each [n, h, w, z]
Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
  """A source of posteriors; `gather` gives "image", their means, and "log_variance"; see `latent.draw`."""

  split: str
  about: Mapping  # latents.json
  arrays: Mapping[str, np.ndarray]
  name: str = config_lib.LATENTS

  def __len__(self):
    return self.about["num_examples"]

  @property
  def image_shape(self):
    return self.arrays[_IMAGE].shape[1:]

  @property
  def num_classes(self):
    return self.about["num_classes"]

  @property
  def condition_shape(self):
    """(h, w, c); None where the images were encoded without a task."""
    return self.arrays["condition"].shape[1:] if "condition" in self.arrays else None

  def gather(self, indices):
    indices = check_indices(indices, len(self))
    batch = {name: np.asarray(array[indices]) for name, array in self.arrays.items()}
    return {"image": batch.pop(_IMAGE), **batch}


def latents(split: str, path: str = "") -> Source:
  """The latents of a folder that experiments/encode.py wrote; "train" is all of it.

  Args:
    split: "train".
    path: of the folder, on a disk.
  """
  known("split of source 'latents'", split, ("train",))
  about, folder, arrays = describe(path), epath.Path(path), {}
  for name in about["arrays"]:
    try:
      arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
      raise ValueError(f"{folder / name}.npy cannot be read: {error}") from None
    if len(arrays[name]) != about["num_examples"]:
      expected = f"{about['num_examples']}, as {FILE} says"
      raise ValueError(f"{folder / name}.npy has {len(arrays[name])} examples: expected {expected}")
  return Latents(split, about, arrays)


def describe(path: str) -> dict:
  """latents.json of a folder.

  Raises:
    ValueError: there is none, or it is none of experiments/encode.py.
  """
  if not path:
    raise ValueError("source 'latents' needs a path")
  if files.is_remote(path):
    raise ValueError(f"{path} is in a bucket: latents are memory-mapped, which needs a disk")
  file = epath.Path(path) / FILE
  if not file.is_file():
    raise ValueError(f"{path} is no folder of latents, which experiments/encode.py writes: {FILE} is missing")
  try:
    about = json.loads(file.read_text())
    if about["format"] > FORMAT:
      raise ValueError(f"it is of format {about['format']}: this version of diffusion-jax is too old")
    wanted = {"num_examples", "num_classes", "arrays", "scale", "image_shape", "autoencoder", "data", "task"}
    if wanted - about.keys():
      raise ValueError(f"it does not say {', '.join(sorted(wanted - about.keys()))}")
  except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from None
  return about


def resolve(config: ConfigDict) -> ConfigDict:
  """The config with what latent.scale and latent.sha256 leave to the folder of its data; itself for other data.

  Raises:
    ConfigError: there is no such folder, or another autoencoder wrote it.
  """
  if config.data.name != config_lib.LATENTS:
    return config
  about = _described(config)
  sha256 = about["autoencoder"]["sha256"]
  if config.latent.sha256 not in ("", sha256):
    expected = f"{config.data.path} was encoded by {about['autoencoder']['name']}, whose SHA-256 is {sha256}"
    raise config_lib.wrong("latent.sha256", config.latent.sha256, expected)
  if config.task.name != about["task"]["name"]:
    expected = f"{config.data.path} was encoded with config.task.name = {about['task']['name']!r}"
    raise config_lib.wrong("task.name", config.task.name, expected)
  config = config.copy_and_resolve_references()
  config.latent.update(scale=config.latent.scale or float(about["scale"]), sha256=sha256)
  if config.task.name:
    _, (_, side, _, channels) = about["arrays"]["condition"]
    for field, found in (("resolution", side), ("channels", channels)):
      if config.condition[field] not in (0, found):
        raise config_lib.wrong(f"condition.{field}", config.condition[field], f"{config.data.path} has {found}")
    config.condition.update(resolution=side, channels=channels)
  return config


def before_encoding(config: ConfigDict) -> ConfigDict:
  """The config with the images that were encoded for its data; itself for data that are no latents.

  Raises:
    ConfigError: there is no such folder.
  """
  if config.data.name != config_lib.LATENTS:
    return config
  about = _described(config)
  config = config.copy_and_resolve_references()
  for part in ("data", "task"):
    config[part].update({name: value for name, value in about[part].items() if name in config[part]})
  config.latent = config_lib.default().latent
  return config


def _described(config) -> dict:
  try:
    return describe(config.data.path)
  except ValueError as error:
    raise config_lib.wrong("data.path", config.data.path, str(error)) from None


def write(
  path,
  source: Source,
  encode: Encode,
  autoencoder: dict,
  data: dict,
  task: dict | None = None,
  flip: bool = False,
  batch_size: int = 256,
  overwrite: bool = False,
  progress: Callable[[int], None] | None = None,
) -> dict:
  """Encodes every image of a source, with all else that it gives.

  The folder appears under its name when it is complete.

  Args:
    path: of the folder.
    source: of the images.
    encode: see `Encode`; called with `batch_size` images, the last time with fewer.
    autoencoder: its {"name", "step", "sha256"}.
    data: the fields of config.data that `source` is of.
    task: those of config.task; none by default.
    flip: add the mirrored images, with conditions and masks, after all others.
    batch_size: images at a time.
    overwrite: whether a folder of latents that is there may be replaced.
    progress: called with numbers of images done.

  Returns:
    What latents.json says.

  Raises:
    ValueError: the path is taken, or a latent is not finite.
  """
  path = epath.Path(path)
  check_free(path, overwrite)
  partial, old = (path.with_name(f"{path.name}{suffix}") for suffix in (".partial", ".old"))
  shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
  partial.mkdir(parents=True)
  try:
    about = {
      "format": FORMAT,
      "num_examples": len(source) * (1 + flip),
      "num_classes": source.num_classes,
      "image_shape": list(source.image_shape),
      "flip": flip,
      "autoencoder": autoencoder,
      "data": data,
      "task": task or dict(config_lib.default().task),
      "identity": identity.of_path(data["name"], data["path"]) if data["path"] else [],
      **_write_arrays(partial, source, encode, flip, batch_size, progress or (lambda n: None)),
    }
    (partial / FILE).write_text(json.dumps(about, indent=1) + "\n")
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  shutil.rmtree(old, ignore_errors=True)
  with contextlib.suppress(FileNotFoundError):
    os.replace(path, old)
  os.replace(partial, path)
  shutil.rmtree(old, ignore_errors=True)
  return about


def check_free(path, overwrite: bool = False):
  """Raises ValueError unless latents may be written there: nothing is there, or latents that may be replaced."""
  path = epath.Path(path)
  if files.is_remote(path):
    raise ValueError(f"{path} is in a bucket: latents are memory-mapped, which needs a disk")
  if path.exists() and not (overwrite and (path / FILE).is_file()):
    what = "is already there; pass --overwrite or another --out" if (path / FILE).is_file() else "is there, no latents"
    raise ValueError(f"{path} {what}")


def _write_arrays(folder: epath.Path, source, encode: Encode, flip: bool, batch_size: int, progress) -> dict:
  """Writes all arrays; returns what latents.json says of them."""
  count, held, moments = len(source) * (1 + flip), {}, np.zeros(2)
  for start in [*range(0, len(source), batch_size)]:
    rows = np.arange(start, min(start + batch_size, len(source)))
    batch = source.gather(rows)
    for mirrored in range(1 + flip):
      given = {name: x[:, :, ::-1] if mirrored and x.ndim == 4 else x for name, x in batch.items()}
      given["mean"], given["log_variance"] = encode(in_unit(given.pop("image")))
      mean, log_variance = (given[name].astype(np.float64) for name in ("mean", "log_variance"))
      moments += mean.sum(), np.square(mean).sum() + np.exp(log_variance).sum()
      for name, x in given.items():
        if name not in held:
          shape = (count, *x.shape[1:])
          held[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", x.dtype, shape)
        held[name][rows + mirrored * len(source)] = x
      progress(len(rows))
  first, second = moments / held["mean"].size
  variance = second - first**2
  if not (np.isfinite(variance) and variance > 0):
    raise ValueError(f"the latents have variance {variance}: expected a positive number")
  for array in held.values():
    array.flush()
  return {
    "arrays": {name: [array.dtype.name, list(array.shape)] for name, array in held.items()},
    "mean": first,
    "scale": variance**-0.5,
  }


def in_unit(images) -> np.ndarray:
  """Images as float32 in [−1, 1]: as they are, or from uint8."""
  return images.astype(np.float32) / np.float32(127.5) - 1 if images.dtype == np.uint8 else images.astype(np.float32)
