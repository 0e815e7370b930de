"""Sources: what the images are, and that splits share nothing."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from diffusion_jax.data import builtin, sources


def whole(source):
  return source.gather(np.arange(len(source)))


def test_digits_are_scikit_learns():
  source, data = sources.load("digits", "all"), sklearn.datasets.load_digits()
  assert (source.name, source.split, source.image_shape, source.num_classes) == ("digits", "all", (8, 8, 1), 10)
  got = source.gather(np.array([5, 0, 1796, 5]))
  assert got["image"].dtype == np.float32 and got["label"].dtype == np.int32
  np.testing.assert_array_equal(got["image"][..., 0] * 8 + 8, data.images[[5, 0, 1796, 5]])
  np.testing.assert_array_equal(got["label"], data.target[[5, 0, 1796, 5]])


def test_digits_split_is_a_stratified_partition():
  labels = sklearn.datasets.load_digits().target
  train, test = sources.digits_split(labels)
  assert (len(train), len(test)) == (1500, 297)
  np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(1797))
  share = np.bincount(labels) * 297 / 1797
  assert np.all(np.abs(np.bincount(labels[test]) - share) < 1)
  everything = whole(sources.load("digits", "all"))
  for split, chosen in (("train", train), ("test", test)):
    got = whole(sources.load("digits", split))
    np.testing.assert_array_equal(got["image"], everything["image"][chosen])
    np.testing.assert_array_equal(got["label"], labels[chosen])


def test_digits_split_is_fixed():
  _, test = sources.digits_split(sklearn.datasets.load_digits().target)
  assert test[:6].tolist() == [0, 5, 8, 18, 25, 30]  # results refer to this split: it may never move


@pytest.mark.parametrize("resolution", [16, 32])
def test_photo_splits_share_no_pixel(monkeypatch, resolution):
  where = np.arange(2 * 427 * 640, dtype=np.uint32).reshape(2, 427, 640)  # every pixel says which one it is
  coded = np.stack([where >> 16, where >> 8, where], axis=-1).astype(np.uint8)
  monkeypatch.setattr(builtin, "_photographs", lambda: coded)
  seen = {}
  for split in ("train", "test"):
    got = whole(sources.load("photos", split, resolution=resolution, stride=16))
    patch = got["image"].astype(np.int64) @ [1 << 16, 1 << 8, 1]
    assert patch.shape[1:] == (resolution, resolution)
    corner = patch[:, :1, :1]
    expected = corner + 640 * np.arange(resolution)[:, None] + np.arange(resolution)
    np.testing.assert_array_equal(patch, expected)  # contiguous, and in place
    np.testing.assert_array_equal(corner.ravel() // (427 * 640), got["label"])
    assert len(np.unique(corner)) == len(patch)
    assert np.all(corner % 640 + resolution <= 640)  # no patch wraps to the next row
    seen[split] = np.unique(patch)
  assert np.intersect1d(seen["train"], seen["test"]).size == 0
  assert seen["train"].size > 2 * seen["test"].size > 0


def test_photos_are_cut_from_the_photographs():
  china, flower = sklearn.datasets.load_sample_images().images
  source = sources.load("photos", "train", resolution=16, stride=100)
  assert (source.image_shape, source.num_classes, len(source)) == ((16, 16, 3), 2, 2 * 5 * 5)
  got = source.gather(np.array([0, 6, 49]))
  assert got["image"].dtype == np.uint8 and got["label"].tolist() == [0, 0, 1]
  np.testing.assert_array_equal(got["image"][0], china[:16, :16])
  np.testing.assert_array_equal(got["image"][1], china[100:116, 100:116])
  np.testing.assert_array_equal(got["image"][2], flower[400:416, 400:416])


@pytest.mark.parametrize(
  "name, split, options, message",
  [
    ("digit", "train", {}, "did you mean 'digits'"),
    ("photos", "trian", {}, "did you mean 'train'"),
    ("digits", "valid", {}, "unknown split"),
    ("digits", "train", {"resolution": 16}, "unknown option"),
    ("photos", "train", {"resolutoin": 16}, "did you mean 'resolution'"),
    ("photos", "train", {"resolution": 8}, "16 or 32, got 8"),
    ("photos", "train", {"stride": 0}, "stride"),
  ],
)
def test_bad_names_and_options(name, split, options, message):
  with pytest.raises(ValueError, match=message):
    sources.load(name, split, **options)


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_bad_indices(name):
  source = sources.load(name, "test")
  assert len(source.gather(np.array([], np.int64))["image"]) == 0
  for bad in (np.array([0.0]), np.array([[0]]), np.int64(3)):
    with pytest.raises(ValueError, match="whole numbers"):
      source.gather(bad)
  for bad in ([-1], [len(source)]):
    with pytest.raises(IndexError, match="must lie in"):
      source.gather(np.array(bad))


def test_import_is_light():
  code = (
    "import sys, diffusion_jax.data.batching, diffusion_jax.evaluation.digits, diffusion_jax.evaluation.images, "
    "diffusion_jax.evaluation.memorisation; print([m for m in ('sklearn', 'tensorflow', 'matplotlib', 'PIL') "
    "if m in sys.modules])"
  )
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == "[]"


# --- zips in the form of EDM's data sets ------------------------------------------------------------------------------


def png(image):
  data = io.BytesIO()
  Image.fromarray(image.squeeze()).save(data, "png")
  return data.getvalue()


def make_zip(path, images, labels=None, **more):
  """An archive as EDM's tools make it, its members out of order; `more` are other members by name."""
  names = [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(images))]
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    for name, image in reversed(list(zip(names, images))):
      archive.writestr(name, image if isinstance(image, bytes) else png(image))
    if labels is not None:
      archive.writestr("dataset.json", json.dumps({"labels": [[n, int(l)] for n, l in zip(names, labels)]}))
    for name, data in more.items():
      archive.writestr(name, data)
  return str(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_zips_hold_the_images_and_labels(tmp_path, channels):
  images = np.random.default_rng(0).integers(0, 256, (7, 6, 6, channels)).astype(np.uint8)
  labels = np.array([2, 0, 1, 1, 0, 4, 2])
  source = sources.load("zip", "train", path=make_zip(tmp_path / "a.zip", images, labels, notes="no image"))
  assert (len(source), source.image_shape, source.num_classes) == (7, (6, 6, channels), 5)
  got = source.gather(np.array([5, 0, 5]))
  assert got["image"].dtype == np.uint8 and got["label"].dtype == np.int32
  np.testing.assert_array_equal(got["image"], images[[5, 0, 5]])
  np.testing.assert_array_equal(got["label"], labels[[5, 0, 5]])


@pytest.mark.parametrize("json_text", [None, '{"labels": null}'])
def test_zips_without_labels_have_no_classes(tmp_path, json_text):
  more = {} if json_text is None else {"dataset.json": json_text}
  source = sources.load("zip", "train", path=make_zip(tmp_path / "a.zip", np.zeros((3, 4, 4, 3), np.uint8), **more))
  assert source.num_classes == 0
  np.testing.assert_array_equal(source.gather(np.arange(3))["label"], np.zeros(3))


def test_what_is_wrong_with_a_zip_is_one_line(tmp_path):
  good = np.zeros((3, 4, 4, 3), np.uint8)
  name = "00000/img00000001.png"
  load = lambda path: sources.load("zip", "train", path=str(path)).gather(np.arange(3))
  (tmp_path / "text.zip").write_text("no zip")
  cases = [
    (tmp_path / "nothing.zip", "nothing.zip cannot be read as a zip"),
    (tmp_path / "text.zip", "text.zip cannot be read as a zip"),
    (make_zip(tmp_path / "empty.zip", []), "empty.zip holds no images"),
    (make_zip(tmp_path / "bad.zip", [good[0], b"no png", good[0]]), f"bad.zip: {name} .image 1. cannot be read"),
    (make_zip(tmp_path / "mixed.zip", [good[0], good[0][:2], good[0]]), f"{name} .image 1. has shape .2, 4, 3.: exp"),
    (make_zip(tmp_path / "few.zip", good, [1, 2]), r"img00000002.png .image 2. has label None"),
    (make_zip(tmp_path / "negative.zip", good, [1, -2, 0]), f"{name} .image 1. has label -2"),
    (make_zip(tmp_path / "json.zip", good, **{"dataset.json": "{"}), "dataset.json cannot be read"),
    (make_zip(tmp_path / "keys.zip", good, **{"dataset.json": "{}"}), "dataset.json cannot be read"),
  ]
  for mode in ("P", "1", "I;16", "RGBA"):
    data = io.BytesIO()
    Image.new(mode, (4, 4)).save(data, "png")
    path = make_zip(tmp_path / f"{mode[0]}.zip", [data.getvalue()])
    cases.append((path, rf"img00000000.png .image 0. cannot be read: its mode is {mode}"))
  broken = Path(make_zip(tmp_path / "broken.zip", good)).read_bytes()
  at = broken.index(b"IDAT")
  (tmp_path / "broken.zip").write_bytes(broken[: at + 5] + b"!" + broken[at + 6 :])
  cases.append((tmp_path / "broken.zip", r"broken.zip: .* cannot be read: Bad CRC"))
  for path, pattern in cases:
    with pytest.raises(ValueError, match=pattern) as error:
      load(path)
    assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match="needs a path"):
    sources.load("zip", "train")
