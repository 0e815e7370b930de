"""prepare_data.py: folders, archives in their real formats, .npz and TFDS sets become zips of exactly their images."""

import io
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data.formats import encoded, make_folder, prepare_tfds, random_images
from PIL import Image
from test_cli import FORKS

from diffusion_jax.data import sources, tfds_sets, writing
from diffusion_jax.data.transforms import Transform

ROOT = Path(__file__).parents[1]
IMAGES = random_images(12, 8, 8, 3)
CIFAR = random_images(30, 32, 32, 3, seed=1)
LABELS = np.arange(30) * 7 % 10
MIXED = [random_images(1, h, w, 3, seed=h)[0] for h, w in ((20, 16), (9, 40), (12, 12), (30, 8))]


class Python2Pickler(pickle._Pickler):
  """Writes bytes as Python 2 wrote its strings: what CIFAR-10's files hold."""

  dispatch = dict(pickle._Pickler.dispatch)

  def save_bytes(self, obj):
    self.write(b"U" + bytes([len(obj)]) + obj if len(obj) < 256 else b"T" + len(obj).to_bytes(4, "little") + obj)
    self.memoize(obj)

  def save_global(self, obj, name=None):
    modules = {"_reconstruct": "numpy.core.multiarray", "ndarray": "numpy", "dtype": "numpy"}
    self.write(f"c{modules[obj.__name__]}\n{obj.__name__}\n".encode())
    self.memoize(obj)

  dispatch[bytes] = save_bytes
  dispatch[type(np.ndarray)] = save_global
  dispatch[type(np.dtype)] = save_global
  dispatch[type(np.empty(0).__reduce__()[0])] = save_global


def python2(batch):
  data = io.BytesIO()
  Python2Pickler(data, 2).dump(batch)
  return data.getvalue()


def cifar_batch(rows):
  data = CIFAR[rows].transpose(0, 3, 1, 2).reshape(-1, 3072)  # planes of red, green and blue
  return python2({b"batch_label": b"some", b"labels": LABELS[rows].tolist(), b"data": data})


def make_tar(path, files, mode="w:gz"):
  with tarfile.open(path, mode) as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))


CALLS = {
  "npz": "images.npz --out={tmp}/out/npz.zip",
  "again": "images.npz --out={tmp}/again.zip",
  "folder": "classes --out={tmp}/folder.zip --max_images=9",
  "zip": "classes.zip --out={tmp}/zip.zip",
  "tar": "classes.tar --out={tmp}/tar.zip",
  "cifar": "cifar-10-python.tar.gz --out={tmp}/cifar.zip",
  "cifar test": "cifar-10-python.tar.gz --split=test --out={tmp}/cifar_test.zip",
  "cifar small": "cifar-10-python.tar.gz --resolution=8 --transform=resize --out={tmp}/cifar_small.zip",
  "mixed": "mixed --resolution=8 --transform=center-crop --out={tmp}/mixed.zip",
  "wide": "mixed --resolution=8x6 --transform=center-crop-wide --out={tmp}/wide.zip",
  "tfds": "tfds:tiny_images --data_dir={tmp}/tfds --out={tmp}/tfds.zip",
  "tfds alone": "tfds:tiny_images --data_dir={tmp}/tfds",
  "tfds wide": "tfds:tiny_images --data_dir={tmp}/tfds_mixed --resolution=8x6 --transform=center-crop-wide "
  "--out={tmp}/tfds_wide.zip",
  "mac": "mac.zip --out={tmp}/mac_out.zip",
  "cifar inside": "inside.tar --out={tmp}/cifar_inside.zip",
  "quoted": "images.npz --out={tmp}/a_&_b.zip",
  "replaced": "images.npz --out={tmp}/replaced.zip --overwrite",
}  # fmt: skip

MISTAKES = {
  "nothing": ("--out={tmp}/new.zip", "one folder, archive, .npz or tfds:NAME is needed"),
  "no out": ("images.npz", "--out is needed"),
  "other out": ("images.npz --out={tmp}/new.npz", "new.npz: a name that ends in .zip"),
  "there": ("images.npz --out={tmp}/there.zip", "--out={tmp}/there.zip: is already there; pass --overwrite"),
  "missing": ("none.tar --out={tmp}/new.zip", "none.tar: there is no such folder or file"),
  "no archive": ("there.zip --out={tmp}/new.zip", "there.zip cannot be unpacked: it is neither a zip nor a tar"),
  "outside": ("outside.tar --out={tmp}/new.zip", "outside.tar cannot be unpacked: "),
  "mixed sizes": ("mixed --out={tmp}/new.zip", "1.png (image 1) has shape (9, 40, 3): expected (20, 16, 3)"),
  "truncated": ("truncated --out={tmp}/new.zip", "b.png (image 1) cannot be read: "),
  "evil": ("evil.tar --out={tmp}/new.zip", "data_batch_1 cannot be read: UnpicklingError: it asks for posix.system"),
  "no size": ("mixed --out={tmp}/new.zip --transform=resize", "--resolution=None: expected N or WxH"),
  "bad size": ("mixed --out={tmp}/new.zip --transform=resize --resolution=8y8", "--resolution=8y8: expected N or WxH"),
  "no transform": ("mixed --out={tmp}/new.zip --resolution=8", "--resolution=8: goes with --transform"),
  "unknown transform": ("mixed --out={tmp}/new.zip --transform=crop --resolution=8", "transforms are resize, "),
  "too few": ("images.npz --out={tmp}/new.zip --max_images=0", "--max_images=0: at least 1"),
  "split": ("classes --out={tmp}/new.zip --split=test", "--split=test: a folder or archive is all one split"),
  "mixed archive": ("sizes.zip --out={tmp}/new.zip", "{tmp}/sizes.zip/set/1.png (image 1) has shape (9, 40, 3)"),
  "encrypted": ("encrypted.zip --out={tmp}/new.zip", "encrypted.zip cannot be unpacked: "),
  "compression": ("compression.zip --out={tmp}/new.zip", "compression.zip cannot be unpacked: "),
  "damaged": ("damaged.tar.xz --out={tmp}/new.zip", "damaged.tar.xz cannot be unpacked: "),
  "out": ("classes.zip --out=/proc/new.zip", "--out=/proc/new.zip: "),
  "no folder": ("classes.zip --out={tmp}/there.zip/new.zip", "--out={tmp}/there.zip/new.zip: "),
  "npy": ("array.npz --out={tmp}/new.zip", "array.npz cannot be read as an .npz of images: it is a single array"),
  "all small": ("images.npz --out={tmp}/new.zip --transform=center-crop-wide --resolution=9x4", "all 12 images are"),
  "channels": ("classes --out={tmp}/new.zip --channels=1", "--channels=1: goes with --transform"),
  "data_dir": ("classes --out={tmp}/new.zip --data_dir=x", "--data_dir=x: goes with tfds:NAME"),
  "no out for few": ("tfds:tiny_images --data_dir={tmp}/tfds --max_images=3", "--max_images=3: goes with --out"),
  "no split": ("tfds:tiny_images --data_dir={tmp}/tfds --split=bogus", "tiny_images/bogus: Unknown split 'bogus'"),
  "bad split": ("tfds:cifar10 --data_dir={tmp}/none --split=train[", "cifar10/train[: "),
  "no such set": ("tfds:cifar_10", "TFDS has no set 'cifar_10'; nearest: cifar10"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  tmp = tmp_path_factory.mktemp("prepare")
  np.savez(tmp / "images.npz", images=IMAGES, labels=np.arange(12) % 3)
  classes = {f"{i % 3}/{i // 3}.png": encoded(image) for i, image in enumerate(IMAGES)}
  make_folder(tmp / "classes", classes)
  with zipfile.ZipFile(tmp / "classes.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in classes.items():
      archive.writestr(f"set/images/{name}", data)  # alone in two folders
  make_tar(tmp / "classes.tar", classes, "w")
  batches = {f"cifar-10-batches-py/data_batch_{k + 1}": cifar_batch(slice(5 * k, 5 * k + 5)) for k in range(5)}
  batches |= {"cifar-10-batches-py/test_batch": cifar_batch(slice(25, 30)), "cifar-10-batches-py/readme.html": b"x"}
  make_tar(tmp / "cifar-10-python.tar.gz", batches)
  make_folder(tmp / "mixed", {f"{i}.png": image for i, image in enumerate(MIXED)})
  good = encoded(IMAGES[0])
  make_folder(tmp / "truncated", {"a.png": good, "b.png": good[: good.index(b"IDAT") + 9]})
  make_tar(tmp / "outside.tar", {"../outside.png": good}, "w")
  make_tar(tmp / "evil.tar", {"data_batch_1": b"cposix\nsystem\n(U\x04true\ntR.", "b": b""}, "w")
  prepare_tfds(tmp / "tfds", {"train": [(image, i % 3) for i, image in enumerate(IMAGES)]}, (8, 8, 3))
  with zipfile.ZipFile(tmp / "mac.zip", "w") as archive:  # as macOS packs a folder
    for name, data in classes.items():
      archive.writestr(f"set/{name}", data)
      archive.writestr(f"__MACOSX/set/._{name.replace('/', '_')}", b"x")
    archive.writestr(".DS_Store", b"x")
    archive.writestr("license.txt", b"x")
  make_tar(tmp / "inside.tar", {**{f"a/b/{name}": data for name, data in batches.items()}, "a/c/x.txt": b"x"}, "w")
  with zipfile.ZipFile(tmp / "sizes.zip", "w") as archive:
    for i, image in enumerate(MIXED):
      archive.writestr(f"set/{i}.png", encoded(image))
  whole = (tmp / "classes.zip").read_bytes()
  at = whole.index(b"PK\x01\x02")  # the directory's first entry: flags at 8, compression at 10
  (tmp / "encrypted.zip").write_bytes(whole[:6] + b"\x01" + whole[7 : at + 8] + b"\x01" + whole[at + 9 :])
  (tmp / "compression.zip").write_bytes(whole[:8] + b"\x63" + whole[9 : at + 10] + b"\x63" + whole[at + 11 :])
  make_tar(tmp / "damaged.tar.xz", {"a.png": random_images(1, 300, 300, 3)[0].tobytes()}, "w:xz")
  whole = (tmp / "damaged.tar.xz").read_bytes()
  (tmp / "damaged.tar.xz").write_bytes(whole[:200_000] + bytes(100) + whole[200_100:])
  with (tmp / "array.npz").open("wb") as file:
    np.save(file, IMAGES)
  prepare_tfds(tmp / "tfds_mixed", {"train": [(image, 0) for image in MIXED]})
  for name in ("there.zip", "replaced.zip"):
    (tmp / name).write_text("mine")
  return tmp


@pytest.fixture(scope="module")
def results(folder):
  """{name: (exit code, stdout, stderr)} of all calls."""
  calls = {**CALLS, **{name: flags for name, (flags, _) in MISTAKES.items()}}
  commands = []
  for name, flags in calls.items():
    words = flags.replace("{tmp}", str(folder)).split()
    words = [w if w.startswith(("--", "tfds:")) else str(folder / w) for w in words]
    commands.append([name, ["experiments/prepare_data.py", *words]])
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, "-c", FORKS], input=json.dumps(commands), env=env, cwd=ROOT, capture_output=True, text=True,
    timeout=200,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def prepared(results, folder, name, file):
  code, out, err = results[name]
  assert code == 0, err
  source = sources.load("zip", "train", path=str(folder / file))
  sigma = sources.measure_sigma(source)
  assert re.search(rf"{file}: .*\b{len(source)} .*images, .*sigma_data {sigma:.3f}\n", out), out
  assert f"train with --config.data.name=zip --config.data.path={folder / file} " in out
  assert out.endswith(f"--config.data.num_classes={source.num_classes}\n")
  return source.gather(np.arange(len(source)))


def check(got, images, labels):
  np.testing.assert_array_equal(got["image"], images)
  np.testing.assert_array_equal(got["label"], labels)


def test_npz(results, folder):
  check(prepared(results, folder, "npz", "out/npz.zip"), IMAGES, np.arange(12) % 3)


def test_the_form_is_edms_and_the_bytes_are_fixed(results, folder):
  path = folder / "out/npz.zip"
  with zipfile.ZipFile(path) as archive:
    names = [f"00000/img{i:08d}.png" for i in range(12)]
    assert archive.namelist() == [*names, "dataset.json"]
    assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    assert json.loads(archive.read("dataset.json")) == {"labels": [[name, i % 3] for i, name in enumerate(names)]}
    np.testing.assert_array_equal(np.asarray(Image.open(archive.open(names[3]))), IMAGES[3])
  assert results["again"][0] == 0 and path.read_bytes() == (folder / "again.zip").read_bytes()


@pytest.mark.parametrize("name", ["folder", "zip", "tar"])
def test_folders_and_archives(results, folder, name):
  order = np.arange(12).reshape(4, 3).T.ravel()[: 9 if name == "folder" else 12]  # class by class
  check(prepared(results, folder, name, f"{name}.zip"), IMAGES[order], order % 3)
  assert ("9 of 12 images" in results[name][1]) == (name == "folder")


def test_cifar10(results, folder):
  check(prepared(results, folder, "cifar", "cifar.zip"), CIFAR[:25], LABELS[:25])
  check(prepared(results, folder, "cifar test", "cifar_test.zip"), CIFAR[25:], LABELS[25:])
  small = [Transform("resize", 8, 8)(Image.fromarray(image)) for image in CIFAR[:25]]
  check(prepared(results, folder, "cifar small", "cifar_small.zip"), small, LABELS[:25])


def test_mixed_sizes(results, folder):
  images = [Transform("center-crop", 8, 8)(Image.fromarray(image)) for image in MIXED]
  check(prepared(results, folder, "mixed", "mixed.zip"), images, [0] * 4)
  with zipfile.ZipFile(folder / "mixed.zip") as archive:
    assert json.loads(archive.read("dataset.json")) == {"labels": None}
  kept = [Transform("center-crop-wide", 8, 6)(Image.fromarray(MIXED[i])) for i in (0, 2, 3)]  # 9×40 is too wide
  check(prepared(results, folder, "wide", "wide.zip"), kept, [0] * 3)
  assert "3 of 4 images, 8×8×3" in results["wide"][1]


def test_tfds(results, folder):
  source = sources.load("tfds", "train", path="tiny_images", data_dir=str(folder / "tfds"))
  expected = source.gather(np.arange(12))
  check(prepared(results, folder, "tfds", "tfds.zip"), expected["image"], expected["label"])
  code, out, err = results["tfds alone"]
  assert code == 0, err
  fields = f"--config.data.name=tfds --config.data.path=tiny_images --config.data.data_dir={folder}/tfds "
  assert fields + "--config.data.split=train --config.data.resolution=8 --config.data.channels=3 " in out


def test_tfds_sets_of_mixed_sizes(results, folder):
  got = prepared(results, folder, "tfds wide", "tfds_wide.zip")["image"]
  kept = [Transform("center-crop-wide", 8, 6)(Image.fromarray(MIXED[i])) for i in (0, 2, 3)]
  assert sorted(x.tobytes() for x in got) == sorted(x.tobytes() for x in kept)
  assert "3 of 4 images" in results["tfds wide"][1]


def test_what_lies_beside_images_does_not_count(results, folder):
  order = np.arange(12).reshape(4, 3).T.ravel()
  check(prepared(results, folder, "mac", "mac_out.zip"), IMAGES[order], order % 3)
  check(prepared(results, folder, "cifar inside", "cifar_inside.zip"), CIFAR[:25], LABELS[:25])


def test_flags_are_quoted(results, folder):
  code, out, err = results["quoted"]
  assert code == 0, err
  words = shlex.split(out.splitlines()[-1])
  assert f"--config.data.path={folder}/a_&_b.zip" in words and f"'--config.data.path={folder}/a_&_b.zip'" in out


def test_splits_are_checked_before_a_set_is_prepared():
  builder = types.SimpleNamespace(info=types.SimpleNamespace(splits={"train": 1, "test": 1}))
  for split in ("train", "test+train[:10%]", "all"):
    tfds_sets.check_split(builder, "a", split)
  with pytest.raises(ValueError, match="a has the splits train, test, got 'bogus'"):
    tfds_sets.check_split(builder, "a", "train+bogus[:3]")


def test_overwrite(results, folder):
  check(prepared(results, folder, "replaced", "replaced.zip"), IMAGES, np.arange(12) % 3)
  assert (folder / "there.zip").read_text() == "mine"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(results, folder, name):
  code, _, err = results[name]
  line = err.splitlines()[-1]  # after the progress bar, where it came so far
  assert code == 2 and line.startswith("error: "), err
  assert MISTAKES[name][1].replace("{tmp}", str(folder)) in line, err
  assert "Traceback" not in err
  left = [path.name for path in folder.iterdir() if re.match(r"new|unpacked|.*partial", path.name)]
  assert not left and not (folder.parent / "outside.png").exists()


def test_a_zip_of_many_images_spans_folders(tmp_path):
  images = random_images(2100, 2, 2, 1)
  done = []
  source = sources.Arrays("a", "train", images, np.zeros(2100, np.int32), 0)
  writing.write_zip(tmp_path / "a.zip", source, np.arange(2099, -1, -1), done.append)
  with zipfile.ZipFile(tmp_path / "a.zip") as archive:
    assert archive.namelist()[1000] == "00001/img00001000.png"
  got = sources.load("zip", "train", path=str(tmp_path / "a.zip")).gather(np.arange(2100))
  np.testing.assert_array_equal(got["image"], images[::-1])
  assert sum(done) == 2100
