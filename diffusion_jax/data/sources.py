"""Where images come from: `load(name, split)` gives a Source, from which whole batches are gathered by index.

The protocol is base.Source; every kind of source has its module. What other parts of the library use is named here.
"""

import inspect
from collections.abc import Callable

from diffusion_jax import config as config_lib
from diffusion_jax.data import pairs, tasks
from diffusion_jax.data.base import Arrays, DataError, Numbers, Source, check_indices, known
from diffusion_jax.data.builtin import digits, digits_split, photos, scenes
from diffusion_jax.data.cache import Cached, cached, everything
from diffusion_jax.data.crops import Crop, Crops
from diffusion_jax.data.folders import folder
from diffusion_jax.data.latents import latents
from diffusion_jax.data.measure import measure_sigma
from diffusion_jax.data.npz import npz
from diffusion_jax.data.tfds_sets import tfds
from diffusion_jax.data.transforms import Transform
from diffusion_jax.data.zips import zipped

__all__ = [
  "SOURCES", "Arrays", "Cached", "DataError", "Numbers", "Source", "Transform", "cached", "check_indices", "digits",
  "digits_split", "everything", "folder", "from_config", "latents", "load", "measure_sigma", "npz", "photos", "scenes",
  "tfds",
  "zipped",
]  # fmt: skip

SOURCES: dict[str, Callable[..., Source]] = {
  "digits": digits, "photos": photos, "scenes": scenes, "zip": zipped, "folder": folder, "npz": npz, "tfds": tfds,
  "latents": latents,
}  # fmt: skip


def load(name: str, split: str, **options) -> Source:
  """Opens a source by name.

  Args:
    name: one of SOURCES.
    split: which part; see the source's own function.
    **options: the source's own: `photos` takes resolution and stride, `scenes` resolution, the others but `digits` a
      path.

  Raises:
    ValueError: an unknown name, split or option (with the nearest valid one), an option out of range, or data that
      cannot be read.
  """
  make = SOURCES[known("source", name, SOURCES)]
  valid = list(inspect.signature(make).parameters)[1:]
  for option in options:
    if option not in valid:
      known(f"option of source {name!r}", option, valid)
  return make(split, **options)


def from_config(config) -> Source:
  """The data of config.data, with images of config.data.resolution and held in memory as config.data.cache says.

  Raises:
    ConfigError: there is no such source, it cannot be read, or its images or classes are not what the config says.
  """
  data = config.data
  takes = inspect.signature(config_lib.choose("data.name", data.name, SOURCES)).parameters
  for field in ("path", "transform", "data_dir"):
    if data[field] and field not in takes:
      raise config_lib.wrong(f"data.{field}", data[field], f"must be '' for {data.name}")
  if config.task.path:
    pairs.check_apart(config)
  options = {field: data[field] for field in ("path", "data_dir", "resolution") if field in takes}
  try:
    if data.transform == config_lib.CROPS:
      step = config.task.scale if config.task.name == "superres" and config.task.path else 1
      options["transform"] = Crop(data.resolution, data.channels, step)
    elif data.transform:
      options["transform"] = Transform(data.transform, data.resolution, data.resolution, data.channels)
  except ValueError as error:
    raise config_lib.wrong("data.transform", data.transform, str(error)) from None
  try:
    source = load(data.name, data.split, **options)
  except ValueError as error:
    field = getattr(error, "option", "path")
    raise config_lib.wrong(f"data.{field}", data[field], str(error)) from None
  if data.transform == config_lib.CROPS:
    source = Crops(source, options["transform"])
  if config.task.name and data.name != config_lib.LATENTS:
    source = (pairs if config.task.path else tasks).of_config(config, source)
  shape = (data.resolution, data.resolution, data.channels)
  if source.image_shape != shape:
    hint = "; data.transform brings them to a size" if "transform" in takes else ""
    expected = f"{data.name} has images {source.image_shape}{hint}"
    raise config_lib.wrong("data.resolution, data.channels", shape, expected)
  if data.num_classes not in (0, source.num_classes):
    expected = f"{data.name} has {source.num_classes or 'no labels'}; 0 ignores them"
    raise config_lib.wrong("data.num_classes", data.num_classes, expected)
  return cached(source, data.cache)
