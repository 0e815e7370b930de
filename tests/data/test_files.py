"""Zips, folders and .npz of images: what is read, and what is wrong with them before a pixel is decoded."""

import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from data.formats import encoded, make_folder, make_zip, random_images
from PIL import Image, ImageFile

from diffusion_jax import config as config_lib
from diffusion_jax.data import decoded, sources
from diffusion_jax.data.transforms import Transform


def whole(source):
  return source.gather(np.arange(len(source)))


def check(source, images, labels=None):
  assert (len(source), source.image_shape) == (len(images), images.shape[1:])
  assert source.num_classes == (0 if labels is None else max(labels) + 1)
  order = np.random.default_rng(1).integers(0, len(images), 100)  # several threads
  got = source.gather(order)
  assert got["image"].dtype == np.uint8 and got["label"].dtype == np.int32
  np.testing.assert_array_equal(got["image"], images[order])
  np.testing.assert_array_equal(got["label"], np.zeros(100) if labels is None else np.array(labels)[order])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zips_of_every_compression(tmp_path, compression):
  images, labels = random_images(40, 6, 5, 3), list(range(40))
  check(sources.load("zip", "train", path=make_zip(tmp_path / "a.zip", images, labels, compression)), images, labels)


def test_a_zip_behind_other_bytes(tmp_path):
  images = random_images(3, 4, 4, 3)
  make_zip(tmp_path / "a.zip", images)
  (tmp_path / "b.zip").write_bytes(b"x" * 1000 + (tmp_path / "a.zip").read_bytes())
  check(sources.load("zip", "train", path=str(tmp_path / "b.zip")), images)


def test_damaged_and_encrypted_members(tmp_path):
  path = make_zip(tmp_path / "a.zip", [GOOD, GOOD], [0, 1])
  whole = (tmp_path / "a.zip").read_bytes()
  at = whole.index(b'{"labels"')
  (tmp_path / "a.zip").write_bytes(whole[:at] + b"[" + whole[at + 1 :])
  with pytest.raises(sources.DataError, match="a.zip: dataset.json cannot be read: Bad CRC"):
    sources.load("zip", "train", path=path)
  at = whole.index(b"PK\x01\x02")  # the directory's first entry; bit 0 of its flags
  (tmp_path / "a.zip").write_bytes(whole[: at + 8] + b"\x01" + whole[at + 9 :])
  with pytest.raises(sources.DataError, match=r"img00000000.png .image 0. cannot be read: .*encrypted"):
    sources.load("zip", "train", path=path)


def test_many_threads_read_one_zip(tmp_path):
  images = random_images(300, 8, 8, 1)
  source = sources.load("zip", "train", path=make_zip(tmp_path / "a.zip", images))
  results = [None] * 64

  def gather(slots):
    for k in slots:  # each of them alone, in threads
      results[k] = source.gather(np.arange(k, 300, 64))["image"]

  decoded.in_threads(gather, 64)
  for k in range(64):
    np.testing.assert_array_equal(results[k], images[k::64])


def test_folders_are_read_in_the_order_of_their_paths(tmp_path):
  a, b, c, d = random_images(4, 5, 7, 3)
  bmp, tif = encoded(c, "bmp"), encoded(d, "tiff")
  files = {"sub/b.PNG": b, "a.png": a, "sub/deep/c.bmp": bmp, "z.tif": tif, "._a.png": b"", "notes.txt": b"x"}
  source = sources.load("folder", "train", path=make_folder(tmp_path, {**files, ".hidden/e.png": a}))
  check(source, np.stack([a, b, c, d]))


def test_first_level_folders_are_classes(tmp_path):
  images = random_images(4, 4, 4, 1)
  names = ["cat/1.png", "cat/x/2.png", "dog/1.png", "eel/1.png"]
  path = make_folder(tmp_path / "a", dict(zip(names, images)))
  check(sources.load("folder", "train", path=path), images, [0, 0, 1, 2])
  make_folder(tmp_path / "a", {"top.png": images[0]})  # beside the folders: they are no classes
  assert sources.load("folder", "train", path=path).num_classes == 0
  path = make_folder(tmp_path / "b", {"only/1.png": images[0]})
  assert sources.load("folder", "train", path=path).num_classes == 0


@pytest.mark.parametrize("labels, expected", [([["a/1.png", 3], ["b/1.png", 0]], [3, 0]), (None, None)])
def test_dataset_json_comes_before_folders(tmp_path, labels, expected):
  images = random_images(2, 4, 4, 3)
  files = {"a/1.png": images[0], "b/1.png": images[1], "dataset.json": json.dumps({"labels": labels}).encode()}
  check(sources.load("folder", "train", path=make_folder(tmp_path, files)), images, expected)


@pytest.mark.parametrize(
  "names, labels",
  [(("images", None), None), (("images", "labels"), [0, 2, 1]), (("arr_0", "arr_1"), [1, 1, 0]),
   (("x", "label"), [0, 0, 5])],
)  # fmt: skip
def test_npz(tmp_path, names, labels):
  images = random_images(3, 4, 6, 3)
  arrays = {names[0]: images} if labels is None else {names[0]: images, names[1]: np.array(labels)}
  np.savez(tmp_path / "a.npz", other=np.zeros(3), **arrays)
  check(sources.load("npz", "train", path=str(tmp_path / "a.npz")), images, labels)


def test_transforms_bring_mixed_images_to_one_size(tmp_path):
  files = {"a.jpg": encoded(Image.new("L", (30, 20), 90), "jpeg"), "b.png": Image.new("RGBA", (9, 12), (9, 8, 7, 0))}
  files |= {"c.png": Image.new("P", (8, 8), 0), "d.gif": encoded(Image.new("RGB", (50, 9), "white"), "gif")}
  path = make_folder(tmp_path / "a", files)
  got = whole(sources.load("folder", "train", path=path, transform=Transform("center-crop", 8, 8)))["image"]
  colours = np.array([[90] * 3, [9, 8, 7], [0] * 3, [255] * 3])
  np.testing.assert_array_equal(got, np.broadcast_to(colours[:, None, None], (4, 8, 8, 3)))
  images = random_images(3, 16, 16, 1)
  transform = Transform("center-crop-dhariwal", 8, 8, 1)
  expected = np.stack([transform(Image.fromarray(image[..., 0])) for image in images])
  np.savez(tmp_path / "a.npz", images=images, labels=[0, 1, 0])
  for name, path in (("zip", make_zip(tmp_path / "a.zip", images, [0, 1, 0])), ("npz", str(tmp_path / "a.npz"))):
    check(sources.load(name, "train", path=path, transform=transform), expected, [0, 1, 0])


def truncated(image):
  data = encoded(image)
  return data[: data.index(b"IDAT") + 9]


def badly_packed(image):
  """A PNG whose pixels do not unpack, under right CRCs."""
  data = encoded(image)
  at, chunk = data.index(b"IDAT"), b"IDAT" + bytes(20)
  rest = data[data.index(b"IEND") - 4 :]
  return data[: at - 4] + struct.pack(">I", 20) + chunk + struct.pack(">I", zlib.crc32(chunk)) + rest


def changed(image):
  """A PNG with a changed byte, which its CRC tells."""
  data = encoded(image, compress_level=0)
  at = data.index(b"IDAT") + 20
  return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def deep(colour):
  """A PNG of 16 bits a channel, which PIL reads and does not write."""
  data = encoded(GOOD)
  chunk = b"IHDR" + struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)
  return data[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


GOOD = random_images(1, 4, 4, 3)[0]
DEEP = deep(2)
BAD_FOLDERS = {
  "sizes": ({"a.png": GOOD, "b.png": GOOD[:2]}, r"b.png .image 1. has shape .2, 4, 3.: expected .4, 4, 3., that of"),
  "channels": ({"a.png": GOOD, "b.png": GOOD[..., :1]}, r"b.png .image 1. has shape .4, 4, 1.: expected .4, 4, 3."),
  "no image": ({"a.png": GOOD, "b.jpg": b"no image"}, r"b.jpg .image 1. cannot be read: it is no image, or"),
  "empty file": ({"a.png": GOOD, "b.png": b""}, r"b.png .image 1. cannot be read"),
  "palette": ({"a.png": GOOD, "b.png": Image.new("P", (4, 4))}, r"b.png .image 1. cannot be read: its mode is P"),
  "16 bits": ({"a.png": Image.new("I;16", (4, 4))}, r"a.png .image 0. cannot be read: its mode is I;16"),
  "nothing": ({"a.txt": b"x"}, "holds no images"),
  "16 bits of colour": ({"a.png": GOOD, "b.png": DEEP}, r"b.png .image 1. cannot be read: it is a PNG of 16 bits"),
  "truncated": ({"a.png": GOOD, "b.png": truncated(GOOD)}, r"b.png .image 1. cannot be read"),
  "no end": ({"a.png": GOOD, "b.png": encoded(GOOD)[:-30]}, r"b.png .image 1. cannot be read"),
  "CRC": ({"a.png": GOOD, "b.png": changed(GOOD)}, r"b.png .image 1. cannot be read: wrong CRC in its chunk IDAT"),
  "half a JPEG": ({"a.png": GOOD, "b.jpg": encoded(GOOD, "jpeg")[:-20]}, r"b.jpg .image 1. cannot be read: .*truncat"),
  "no file": ({"a.png": GOOD, "dataset.json/x": b""}, "dataset.json cannot be read: Is a directory"),
  "no text": ({"a.png": GOOD, "dataset.json": b"\xff\xfe\xff"}, "dataset.json cannot be read"),
  "no label": ({"a.png": GOOD, "dataset.json": b'{"labels": []}'}, r"a.png .image 0. has label None"),
  "negative": ({"a.png": GOOD, "dataset.json": b'{"labels": [["a.png", -1]]}'}, r"image 0. has label -1"),
  "not whole": ({"a.png": GOOD, "dataset.json": b'{"labels": [["a.png", 1.5]]}'}, r"image 0. has label 1.5"),
  "json": ({"a.png": GOOD, "dataset.json": b"{"}, "dataset.json cannot be read"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_what_is_wrong_is_seen_when_a_folder_is_opened(tmp_path, case):
  files, pattern = BAD_FOLDERS[case]
  config = config_lib.default()
  config.data.update(name="folder", path=make_folder(tmp_path, files), resolution=4, channels=3, num_classes=0)
  with pytest.raises(config_lib.ConfigError, match=pattern) as error:
    sources.from_config(config)
  assert str(error.value).startswith(f"config.data.path = '{tmp_path}': ") and "\n" not in str(error.value)


def test_headers_are_enough(tmp_path, monkeypatch):
  """Sizes are compared, and damage is looked for, without decoding; what is left is found, and named, when decoded."""
  images = [GOOD] * 50
  path = make_zip(tmp_path / "a.zip", [*images[:30], badly_packed(GOOD), *images[31:]])
  loads = []
  monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loads.append(self))
  source = sources.load("zip", "train", path=path)
  assert not loads
  monkeypatch.undo()
  for gather in (source.gather, sources.Cached(source).gather):
    with pytest.raises(sources.DataError, match=r"a.zip: 00000/img00000030.png .image 30. cannot be read: ") as error:
      gather(np.arange(50))
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(gather(np.arange(30))["image"], images[:30])


def test_damage_is_seen_when_a_zip_is_opened(tmp_path, monkeypatch):
  """Also where only the ends of files are looked at, as of large sets; bytes behind the end are no damage."""
  large = random_images(1, 200, 200, 3)[0]
  for image, cut in ((GOOD, 30), (large, 30), (large, 50_000)):
    path = make_zip(tmp_path / "a.zip", [image, encoded(image)[:-cut], image])
    for most in (1 << 31, 0):
      monkeypatch.setattr(decoded, "_THOROUGH", most)
      with pytest.raises(sources.DataError, match=r"a.zip: 00000/img00000001.png .image 1. cannot be read: "):
        sources.load("zip", "train", path=path)
  monkeypatch.setattr(decoded, "_THOROUGH", 0)
  jpeg = encoded(large, "jpeg", quality=100)
  path = make_zip(tmp_path / "b.zip", [large, jpeg + b"more", encoded(large) + b"more"])
  assert len(sources.load("zip", "train", path=path)) == 3
  with pytest.raises(sources.DataError, match="image 1. cannot be read: .*truncated"):
    sources.load("zip", "train", path=make_zip(tmp_path / "c.zip", [large, jpeg[:-20_000]]))


def test_a_wrong_crc_of_a_member_is_seen_when_a_zip_is_opened(tmp_path):
  images = [Image.fromarray(image) for image in random_images(40, 4, 4, 3)]
  make_zip(tmp_path / "a.zip", [encoded(image, "bmp") for image in images])
  whole = (tmp_path / "a.zip").read_bytes()
  at = whole.index(encoded(images[25], "bmp")) + 60
  (tmp_path / "a.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
  with pytest.raises(sources.DataError, match=r"img00000025.png .image 25. cannot be read: Bad CRC"):
    sources.load("zip", "train", path=str(tmp_path / "a.zip"))


def test_zips_of_every_format(tmp_path):
  """As EDM's loader takes them, in the order of their names."""
  images = random_images(4, 4, 5, 3)
  files = {"b/x.BMP": encoded(images[1], "bmp"), "a.png": encoded(images[0]), "c.tiff": encoded(images[2], "tiff")}
  files |= {"d.webp": encoded(images[3], "webp", lossless=True), "notes.txt": b"x"}
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
    for name, data in files.items():
      archive.writestr(name, data)
  check(sources.load("zip", "train", path=str(tmp_path / "a.zip")), images)


def test_links_are_followed_but_not_in_circles(tmp_path):
  images = random_images(3, 4, 4, 3)
  make_folder(tmp_path / "elsewhere", {"x.png": images[1], "sub/y.png": images[2]})
  make_folder(tmp_path / "a", {"cat/1.png": images[0]})
  (tmp_path / "a" / "dog").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "a" / "cat" / "2.png").symlink_to(tmp_path / "elsewhere" / "x.png")
  (tmp_path / "a" / "cat" / "circle").symlink_to(tmp_path / "a")
  (tmp_path / "elsewhere" / "sub" / "circle").symlink_to(tmp_path / "elsewhere")
  source = sources.load("folder", "train", path=str(tmp_path / "a"))
  check(source, images[[0, 1, 2, 1]], [0, 0, 1, 1])  # cat/1, cat/2, dog/sub/y, dog/x


def test_the_first_of_several_bad_images_is_named(tmp_path):
  images = [GOOD] * 200
  for i in (150, 90, 60):
    images[i] = GOOD[: i // 30]
  with pytest.raises(sources.DataError, match="image 60"):
    sources.load("zip", "train", path=make_zip(tmp_path / "a.zip", images))


def test_large_headers_are_read_whole(tmp_path):
  """A comment of 300 kB before the size of a JPEG and of a PNG."""
  jpeg, png = encoded(GOOD, "jpeg"), encoded(Image.new("P", (4, 4)))
  comment = b"".join(b"\xff\xfe" + struct.pack(">H", 60002) + bytes(60000) for _ in range(5))
  chunk = b"tEXt" + b"a\0" + b"b" * 300_000
  chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
  files = {"a.jpg": jpeg[:2] + comment + jpeg[2:], "b.png": png[:33] + chunk + png[33:]}
  path = make_folder(tmp_path, files)
  source = sources.load("folder", "train", path=path, transform=Transform("resize", 4, 4))
  np.testing.assert_array_equal(whole(source)["image"][0], np.asarray(Image.open(tmp_path / "a.jpg")))


@pytest.mark.parametrize(
  "arrays, message",
  [
    ({"images": np.zeros((2, 4, 4, 3))}, r"uint8 with N >= 1, got float64 of shape \[2, 4, 4, 3\]"),
    ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, r"got uint8 of shape \[0, 4, 4, 3\]"),
    ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, r"got uint8 of shape \[2, 4, 4, 2\]"),
    ({"a": np.zeros(2), "b": np.zeros(3)}, "one array of rank 4, but a, b"),
    ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": [0.0, 1.5]}, r"labels must be whole .* got float64"),
    ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": [0]}, r"numbers \[2\], .* of shape \[1\]"),
    ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": [0, -1]}, "image 1 has label -1: expected 0, 1, …"),
    ({"images": np.array([{}])}, "cannot be read as an .npz"),
  ],
)
def test_what_is_wrong_with_an_npz(tmp_path, arrays, message):
  np.savez(tmp_path / "a.npz", **arrays)
  with pytest.raises(ValueError, match=message):
    sources.load("npz", "train", path=str(tmp_path / "a.npz"))


@pytest.mark.parametrize("changes, message", [
  ({"path": "{tmp}/none"}, "config.data.path = '{tmp}/none': .*none is no folder"),
  ({"path": ""}, "config.data.path = '': source 'folder' needs a path"),
  ({"resolution": 8}, r"\(8, 8, 3\): folder has images \(4, 4, 3\); data.transform brings them to a size"),
  ({"num_classes": 10}, "config.data.num_classes = 10: folder has no labels; 0 ignores them"),
  ({"name": "digits", "path": "", "transform": "resize"}, "config.data.transform = 'resize': must be '' for digits"),
  ({"data_dir": "x"}, "config.data.data_dir = 'x': must be '' for folder"),
  ({"transform": "resize", "channels": 4}, "config.data.transform = 'resize': a transform makes images of 1 or 3"),
  ({"name": "digits"}, "config.data.path = '{tmp}': must be '' for digits"),
  ({"name": "photos", "path": "", "resolution": 20}, "config.data.resolution = 20: resolution of source 'photos'"),
  ({"name": "photos", "path": "", "split": "trian"}, "config.data.split = 'trian': unknown split of source 'photos'"),
  ({"split": "trian"}, "config.data.split = 'trian': unknown split of source 'folder'"),
  ({"name": "npz", "path": "{tmp}/none.npz"}, "none.npz cannot be read as an .npz"),
])  # fmt: skip
def test_configs_that_do_not_fit(tmp_path, changes, message):
  config = config_lib.default()
  make_folder(tmp_path, {"a.png": GOOD})
  config.data.update(name="folder", path=str(tmp_path), resolution=4, channels=3, num_classes=0)
  config.data.update({k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in changes.items()})
  config_lib.check(config)
  with pytest.raises(config_lib.ConfigError, match=message.format(tmp=tmp_path)):
    sources.from_config(config)


def test_unknown_transforms_and_caches():
  for field, value, near in (("transform", "center_crop", "center-crop"), ("cache", "hots", "host")):
    config = config_lib.default()
    config.data[field] = value
    with pytest.raises(config_lib.ConfigError, match=f"config.data.{field} = '{value}': .*nearest: {near}"):
      config_lib.check(config)
