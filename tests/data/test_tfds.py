"""TFDS sets: prepared by TFDS itself as array_record, and the named ones through its mock; no TensorFlow is needed."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets
from data.formats import prepare_tfds, random_images

from diffusion_jax import config as config_lib
from diffusion_jax.data import batching, sources, tfds_sets
from diffusion_jax.data.transforms import Transform


def load(tmp_path, split="train", name="tiny_images", **options):
  return sources.load("tfds", split, path=name, data_dir=str(tmp_path), **options)


@pytest.mark.parametrize("shape", [(6, 5, 3), (None, None, 3)])
def test_a_prepared_set(tmp_path, shape):
  """Images and labels come back exactly, in some order that is always the same."""
  images = random_images(40, 6, 5, 3)
  examples = [(image, i % 3) for i, image in enumerate(images)]
  prepare_tfds(tmp_path, {"train": examples[:30], "test": examples[30:]}, shape)
  seen = {}
  for split, count in (("train", 30), ("test", 10), ("train[:20%]", 6), ("train+test", 40)):
    source = load(tmp_path, split)
    assert (source.name, source.split, source.image_shape, source.num_classes) == ("tfds", split, (6, 5, 3), 3)
    assert len(source) == count
    got = source.gather(np.arange(count))
    assert got["image"].dtype == np.uint8 and got["label"].dtype == np.int32
    which = (got["image"][:, None] == images).all(axis=(2, 3, 4)).argmax(axis=1)
    np.testing.assert_array_equal(got["image"], images[which])
    np.testing.assert_array_equal(got["label"], which % 3)
    seen[split] = which
  np.testing.assert_array_equal(np.sort(seen["train"]), np.arange(30))
  np.testing.assert_array_equal(np.sort(seen["test"]), np.arange(30, 40))
  np.testing.assert_array_equal(seen["train[:20%]"], seen["train"][:6])
  source, held = load(tmp_path), sources.Cached(load(tmp_path))
  for step in range(4):
    for key, value in batching.batch(source, 0, step, 16).items():
      np.testing.assert_array_equal(batching.batch(held, 0, step, 16)[key], value)


def test_grey_images_without_labels(tmp_path):
  images = random_images(5, 4, 4, 1)
  prepare_tfds(tmp_path, {"train": [(image, None) for image in images]}, (4, 4, 1), num_classes=0)
  source = load(tmp_path)
  assert (source.image_shape, source.num_classes) == ((4, 4, 1), 0)
  assert sorted(x.tobytes() for x in source.gather(np.arange(5))["image"]) == sorted(x.tobytes() for x in images)


def test_mixed_sizes_need_a_transform(tmp_path):
  images = [np.full((h, w, 3), v, np.uint8) for h, w, v in ((6, 5, 0), (6, 5, 80), (5, 6, 160))]
  prepare_tfds(tmp_path, {"train": [(image, i) for i, image in enumerate(images)]})
  config = config_lib.default()
  config.data.update(name="tfds", path="tiny_images", data_dir=str(tmp_path), resolution=4, channels=3, num_classes=3)
  with pytest.raises(config_lib.ConfigError, match=r"tiny_images/train: image \d has shape .* expected .*the first"):
    sources.from_config(config)
  config.data.transform = "center-crop"
  got = sources.from_config(config).gather(np.arange(3))
  np.testing.assert_array_equal(got["image"], np.broadcast_to(80 * got["label"][:, None, None, None], (3, 4, 4, 3)))


def test_headers_are_read_where_sizes_are_open(tmp_path):
  """With a transform too that may refuse an image; what is too small is an error, unless the caller asks."""
  images = [(random_images(1, h, w, 3)[0], 0) for h, w in ((20, 16), (4, 4))]
  prepare_tfds(tmp_path / "a", {"train": [*images, (b"no image", 0)]})
  with pytest.raises(sources.DataError, match=r"image \d cannot be read: it is no image"):
    load(tmp_path / "a", transform=Transform("center-crop-wide", 8, 6))
  assert len(load(tmp_path / "a", transform=Transform("resize", 8, 8))) == 3  # the whole set is not read for nothing
  prepare_tfds(tmp_path / "b", {"train": images})
  wide = Transform("center-crop-wide", 8, 6)
  with pytest.raises(sources.DataError, match=r"image \d cannot be transformed: it has 4×4 pixels"):
    load(tmp_path / "b", transform=wide)
  assert len(load(tmp_path / "b", transform=wide, check=False).check()) == 1
  prepare_tfds(tmp_path / "c", {"train": images[1:]}, (4, 4, 3))
  with pytest.raises(sources.DataError, match="image 0 cannot be transformed: it has 4×4 pixels"):
    load(tmp_path / "c", transform=wide)


def test_an_unreadable_image_is_named(tmp_path):
  prepare_tfds(tmp_path, {"train": [(b"no image", 0)]}, (4, 4, 3))
  with pytest.raises(sources.DataError, match="tiny_images/train: image 0 cannot be read"):
    load(tmp_path).gather(np.arange(1))
  with pytest.raises(sources.DataError, match="image 0 has label -1: expected 0 to 2"):
    source = load(tmp_path)
    source._source = [{"image": np.zeros((4, 4, 3), np.uint8), "label": -1}]  # as unlabelled test splits have it
    source.gather(np.arange(1))


def test_what_is_wrong_with_a_set_is_one_line(tmp_path):
  prepare_tfds(tmp_path, {"train": [(random_images(1, 4, 4, 3)[0], 0)]}, (4, 4, 3))
  command = rf"this prepares it: python experiments/prepare_data.py tfds:cifar10 --data_dir={tmp_path}$"
  cases = [
    (dict(name="cifar10"), rf"cifar10 is not prepared in {tmp_path}/cifar10/.*; {command}"),
    (dict(name="cifar_10"), "TFDS has no set 'cifar_10'; nearest: cifar10"),
    (dict(name="imagenet_resized/65x65"), "TFDS cannot open 'imagenet_resized/65x65': .*65x65 not found"),
    (dict(name="ag_news_subset"), "ag_news_subset is no set of images: it has label, title, description"),
    (dict(split="trian"), "tiny_images/trian: Unknown split 'trian'. Should be one of ..train"),
    (dict(name=""), "source 'tfds' needs the name of a set"),
  ]
  for options, pattern in cases:
    with pytest.raises(ValueError, match=pattern) as error:
      load(tmp_path, **options)
    assert "\n" not in str(error.value)


def test_a_set_prepared_as_tfrecord(tmp_path):
  prepare_tfds(tmp_path, {"train": [(random_images(1, 4, 4, 3)[0], 0)]}, (4, 4, 3))
  info = tmp_path / "tiny_images/1.0.0/dataset_info.json"
  described = json.loads(info.read_text())
  described["fileFormat"] = "tfrecord"
  info.write_text(json.dumps(described))
  (record,) = info.parent.glob("*.array_record*")
  record.rename(str(record).replace("array_record", "tfrecord"))
  pattern = "as tfrecord, which is not read by index; .* in another folder: .*tfds:tiny_images --data_dir=FOLDER"
  with pytest.raises(ValueError, match=pattern):
    load(tmp_path)


# Name, transform, what comes out; TFDS describes downsampled_imagenet's images without a size, and mocks them in many.
NAMED = [
  ("cifar10", "", (32, 32, 3), 10), ("celeb_a", "center-crop", (64, 64, 3), 0), ("celeb_a", "", (218, 178, 3), 0),
  ("imagenet_resized/64x64", "", (64, 64, 3), 1000), ("downsampled_imagenet/64x64", "resize", (64, 64, 3), 0),
  ("mnist", "", (28, 28, 1), 10), ("oxford_flowers102", "center-crop-dhariwal", (64, 64, 3), 102),
]  # fmt: skip


@contextlib.contextmanager
def mocked():
  with tensorflow_datasets.testing.mock_data(20, policy=tensorflow_datasets.testing.MockPolicy.USE_CODE):
    yield


@pytest.mark.parametrize("name, transform, shape, num_classes", NAMED)
def test_named_sets(name, transform, shape, num_classes):
  how = Transform(transform, *shape[1::-1], shape[-1]) if transform else None
  with mocked():
    source = sources.load("tfds", "train", path=name, transform=how, check=False)  # mocks have no headers
    raw = tensorflow_datasets.data_source(name, split="train")
    assert (source.image_shape, source.num_classes, len(source)) == (shape, num_classes, 20)
    got = source.gather(np.arange(20))
    examples = [raw[i] for i in range(20)]
  assert got["image"].shape == (20, *shape) and got["image"].dtype == np.uint8
  if not transform:
    np.testing.assert_array_equal(got["image"], [example["image"] for example in examples])
  np.testing.assert_array_equal(got["label"], [example["label"] if num_classes else 0 for example in examples])


def test_a_config_of_a_named_set():
  config = config_lib.default()
  config.data.update(name="tfds", path="cifar10", resolution=32, channels=3, num_classes=10)
  config_lib.check(config)
  with mocked():
    held = sources.from_config(config)
    assert isinstance(held, sources.Cached) and len(sources.everything(held)["image"]) == 20


def test_reading_needs_no_tensorflow(tmp_path):
  """Neither does it hold an accelerator, where there is one."""
  prepare_tfds(tmp_path, {"train": [(random_images(1, 4, 4, 3)[0], 0)]})
  code = f"""
import sys
from diffusion_jax.data import sources
sources.load("tfds", "train", path="tiny_images", data_dir={str(tmp_path)!r}).gather([0])
print("tensorflow" in sys.modules, "jax" in sys.modules and bool(sys.modules["jax"]._src.xla_bridge._backends))
"""
  root = Path(__file__).parents[2]
  ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
  assert ran.stdout.strip() == "False False", ran.stderr


def test_features():
  """`image` and `label` come first; else the only ones are taken."""
  kinds = tensorflow_datasets.features
  find = lambda **features: tfds_sets.find_features(kinds.FeaturesDict(features), "a")
  image, label = kinds.Image(), kinds.ClassLabel(num_classes=2)
  assert find(image=image, mask=image, label=label, coarse=label) == ("image", "label")
  assert find(picture=image, kind=label) == ("picture", "kind")
  assert find(image=image, kind=label, coarse=label) == ("image", None)
  for features in (dict(left=image, right=image), dict(label=label)):
    with pytest.raises(ValueError, match="a is no set of images: it has"):
      find(**features)
