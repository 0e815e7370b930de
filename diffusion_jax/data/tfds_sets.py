"""TFDS's image sets, read by index through tfds.data_source: once prepared as array_record, without TensorFlow."""

import difflib

import numpy as np
from etils import epath

from diffusion_jax.data.base import DataError
from diffusion_jax.data.decoded import Decoded, header
from diffusion_jax.data.transforms import Transform


class TfdsSet(Decoded):
  """One split of a TFDS image set.

  Images are the feature `image`, or the only one of images; labels the feature `label`, or the only one of classes.
  """

  def __init__(self, split: str, name: str, data_dir: str = "", transform: Transform | None = None):
    builder = open_builder(name, data_dir)
    features = builder.info.features
    self._image, self._label = find_features(features, name)
    self._source = _open(builder, split, name, data_dir)
    self._set, self._num_examples = f"{name}/{split}", len(self._source)
    if not self._num_examples:
      raise ValueError(f"{self._set} has no examples")
    super().__init__("tfds", split, features[self._label].num_classes if self._label else 0, transform)
    shape = features[self._image].shape
    if transform:
      self.image_shape = transform.shape
    elif None not in shape:
      self.image_shape = tuple(shape)
    else:  # sizes that the set's description leaves open are seen from the images' headers
      self._undecoded = _open(builder, split, name, data_dir, undecoded=self._image)
      self.check_all()

  def __len__(self):
    return self._num_examples

  def _place(self, i):
    return f"{self._set}: image {i}"

  def _header(self, i):
    return header(self._undecoded[i][self._image])

  def _read(self, i):
    import PIL.Image

    example = self._source[i]
    pixels, label = np.asarray(example[self._image]), int(example[self._label]) if self._label else 0
    if self._label and not 0 <= label < self.num_classes:
      raise DataError(f"{self._place(i)} has label {label}: expected 0 to {self.num_classes - 1}")
    if pixels.dtype != np.uint8:
      raise ValueError(f"its pixels are {pixels.dtype}, not uint8")
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), label


def tfds(split: str, path: str = "", data_dir: str = "", transform: Transform | None = None) -> TfdsSet:
  """A TFDS image set, see `TfdsSet`.

  Args:
    split: as TFDS has it, for instance "train" or "train[:90%]".
    path: TFDS's name of the set, with its config: "cifar10", "imagenet_resized/64x64".
    data_dir: the folder in which TFDS keeps its sets; "" is its own default, or TFDS_DATA_DIR of the environment.
    transform: what brings the images to one size; None if they have it.

  Raises:
    ValueError: no such set, split or images, or it is not prepared as array_record: with the command that prepares it.
  """
  if not path:
    raise ValueError("source 'tfds' needs the name of a set as its path, for instance cifar10")
  return TfdsSet(split, path, data_dir, transform)


def open_builder(name: str, data_dir: str):
  """TFDS's builder of a set; a ValueError of one line if there is none."""
  import tensorflow_datasets

  try:
    return tensorflow_datasets.builder(name, data_dir=data_dir or None)
  except tensorflow_datasets.core.registered.DatasetNotFoundError:
    names = tensorflow_datasets.list_builders(with_community_datasets=False)
    near = difflib.get_close_matches(name.partition("/")[0], names, 1, 0.0)
    raise ValueError(f"TFDS has no set {name!r}" + (f"; nearest: {near[0]}" if near else "")) from None
  except (ImportError, OSError, TypeError, ValueError, AssertionError) as error:
    raise ValueError(f"TFDS cannot open {name!r}: {' '.join(str(error).split())}") from None


def is_prepared(builder) -> bool:
  """Whether a set's files are there, in whatever format."""
  return (epath.Path(builder.data_dir) / "dataset_info.json").exists()


def prepare_command(name: str, data_dir: str) -> str:
  """What prepares a set."""
  return f"python experiments/prepare_data.py tfds:{name}" + (f" --data_dir={data_dir}" if data_dir else "")


def _open(builder, split: str, name: str, data_dir: str, undecoded: str | None = None):
  """The random-access source of a split; with the feature `undecoded` left as the bytes of its file."""
  import tensorflow_datasets

  decoders = {undecoded: tensorflow_datasets.decode.SkipDecoding()} if undecoded else None
  try:
    return builder.as_data_source(split, decoders=decoders)
  except NotImplementedError:
    if not is_prepared(builder):
      command = prepare_command(name, data_dir)
      raise ValueError(f"{name} is not prepared in {builder.data_dir}; this prepares it: {command}") from None
    command = prepare_command(name, "FOLDER")
    raise ValueError(
      f"{name} is prepared in {builder.data_dir} as {builder.info.file_format.value}, which is not read by index; this "
      f"prepares it as array_record in another folder: {command}"
    ) from None
  except (OSError, ValueError) as error:
    raise ValueError(f"{name}/{split}: {' '.join(str(error).split())}") from None


def find_features(features, name: str) -> tuple[str, str | None]:
  """The names of the image feature and of that of classes, None if there is none."""
  import tensorflow_datasets

  kinds = tensorflow_datasets.features
  features = dict(features.items()) if isinstance(features, kinds.FeaturesDict) else {}
  images, classes = (
    [key for key, feature in features.items() if isinstance(feature, kind)] for kind in (kinds.Image, kinds.ClassLabel)
  )
  if "image" not in images and len(images) != 1:
    raise ValueError(f"{name} is no set of images: it has {', '.join(features) or 'no features'}")
  label = "label" if "label" in classes else classes[0] if len(classes) == 1 else None
  return "image" if "image" in images else images[0], label
