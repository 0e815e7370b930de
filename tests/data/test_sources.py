"""Sources: what the images are, and that splits share nothing."""

import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets

from diffusion_jax.data import sources


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
  monkeypatch.setattr(sources, "_photographs", lambda: coded)
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
