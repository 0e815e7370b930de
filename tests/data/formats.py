"""Data in the real formats, made by the tests."""

import io
import json
import zipfile

import numpy as np
from PIL import Image


def random_images(count, height, width, channels, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels)).astype(np.uint8)


def encoded(image, kind="png", **options):
  """An [H, W, C] array or a PIL image as a file's bytes."""
  data = io.BytesIO()
  image = image if isinstance(image, Image.Image) else Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  image.save(data, kind, **options)
  return data.getvalue()


def make_zip(path, images, labels=None, compression=zipfile.ZIP_STORED):
  """An archive as EDM's tools make it."""
  names = [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(images))]
  with zipfile.ZipFile(path, "w", compression) as archive:
    for name, image in zip(names, images):
      archive.writestr(name, image if isinstance(image, bytes) else encoded(image))
    if labels is not None:
      archive.writestr("dataset.json", json.dumps({"labels": [[n, l] for n, l in zip(names, labels)]}))
  return str(path)


def make_folder(path, files):
  """A folder of {name: array, PIL image or bytes}."""
  for name, image in files.items():
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(image if isinstance(image, bytes) else encoded(image))
  return str(path)


def prepare_tfds(data_dir, splits, shape=(None, None, 3), num_classes=3):
  """A set prepared by TFDS itself as array_record, without TensorFlow: images are handed over as PNG files.

  Args:
    data_dir: where TFDS keeps its sets.
    splits: {split: [(image, label), …]}, images as arrays or bytes; label None for a set without labels.
    shape: of the image feature.
    num_classes: of the label feature; 0 for none.

  Returns:
    The name of the set, tiny_images.
  """
  import tensorflow_datasets as tfds

  features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=shape)}
  if num_classes:
    features["label"] = tfds.features.ClassLabel(num_classes=num_classes)

  class TinyImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    name = "tiny_images"
    code_path = None  # where TFDS would look for checksums of downloads

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples):
      for i, (image, label) in enumerate(examples):
        data = io.BytesIO(image if isinstance(image, bytes) else encoded(image))
        yield i, {"id": f"{i:03d}", "image": data, **({"label": label} if num_classes else {})}

  builder = TinyImages(data_dir=str(data_dir))
  builder.download_and_prepare(file_format="array_record")
  return "tiny_images"
