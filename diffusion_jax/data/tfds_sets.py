"""TFDS's image sets, read by index through tfds.data_source: once prepared as array_record, without TensorFlow."""

import difflib
import shlex

import numpy as np
from etils import epath

from diffusion_jax.data.base import BadOption, DataError
from diffusion_jax.data.decoded import Decoded, header
from diffusion_jax.data.transforms import Transform


class TfdsSet(Decoded):
  """One split of a TFDS image set.

  Images are the feature `image`, or the only one of images; labels the feature `label`, or the only one of classes.
  Where the set's description leaves sizes open and they matter, all headers are read when it is opened.
  """

  def __init__(self, split: str, name: str, data_dir: str = "", transform: Transform | None = None, check: bool = True):
    """With check=False headers are not read yet: `check` is to be called before `gather`."""
    builder = open_builder(name, data_dir)
    features = builder.info.features
    self._image, self._label = find_features(features, name)
    self._source = _open(builder, split, name, data_dir)
    self._set, self._num_examples = f"{name}/{split}", len(self._source)
    if not self._num_examples:
      raise ValueError(f"{self._set} has no examples")
    super().__init__("tfds", split, features[self._label].num_classes if self._label else 0, transform)
    self._shape_of_all, self._undecoded = tuple(features[self._image].shape), None
    if transform:
      self.image_shape = transform.shape
    if None in self._shape_of_all:
      self._undecoded = _open(builder, split, name, data_dir, undecoded=self._image)
    elif not transform:
      self.image_shape = self._shape_of_all
      return
    if check and (transform is None or transform.may_refuse):
      self.check_all()

  def __len__(self):
    return self._num_examples

  def place(self, i):
    return f"{self._set}: image {i}"

  def _header(self, i):
    if self._undecoded is not None:
      return header(self._undecoded[i][self._image])
    height, width, channels = self._shape_of_all
    return (width, height), {1: "L", 3: "RGB", 4: "RGBA"}.get(channels, f"of {channels} channels")

  def _read(self, i):
    import PIL.Image

    example = self._source[i]
    pixels, label = np.asarray(example[self._image]), int(example[self._label]) if self._label else 0
    if self._label and not 0 <= label < self.num_classes:
      raise DataError(f"{self.place(i)} has label {label}: expected 0 to {self.num_classes - 1}")
    if pixels.dtype != np.uint8:
      raise ValueError(f"its pixels are {pixels.dtype}, not uint8")
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), label


def tfds(
  split: str, path: str = "", data_dir: str = "", transform: Transform | None = None, check: bool = True
) -> TfdsSet:
  """A TFDS image set, see `TfdsSet`.

  Args:
    split: as TFDS has it, for instance "train" or "train[:90%]".
    path: TFDS's name of the set, with its config: "cifar10", "imagenet_resized/64x64".
    data_dir: the folder in which TFDS keeps its sets; "" is its own default, or TFDS_DATA_DIR of the environment.
    transform: what brings the images to one size; None if they have it.
    check: read the headers of images whose size is open; else `Decoded.check` does.

  Raises:
    ValueError: no such set, split or images, or it is not prepared as array_record: with the command that prepares it.
  """
  if not path:
    raise ValueError("source 'tfds' needs the name of a set as its path, for instance cifar10")
  return TfdsSet(split, path, data_dir, transform, check)


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
  words = [f"tfds:{name}"] + [f"--data_dir={data_dir}"] * bool(data_dir)
  return " ".join(["python experiments/prepare_data.py", *map(shlex.quote, words)])


def check_split(builder, name: str, split: str):
  """Raises BadOption for a split that is none, as far as that is known before a set is prepared."""
  import tensorflow_datasets

  try:
    tensorflow_datasets.core.ReadInstruction.from_spec(split)
  except (AssertionError, ValueError) as error:
    raise BadOption("split", f"{name}/{split}: {' '.join(str(error).split())}") from None
  known = list(builder.info.splits)  # none for most sets that are not prepared
  parts = [part.partition("[")[0].strip() for part in split.split("+")]
  wrong = [part for part in parts if part not in (*known, "all")]
  if known and wrong:
    raise BadOption("split", f"{name} has the splits {', '.join(known)}, got {wrong[0]!r}")


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
    message = f"{name}/{split}: {' '.join(str(error).split())}"
    raise BadOption("split" if "split" in str(error) else "path", message) from None


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
