"""The programs take every kind of data: what --data=NAME:PATH names, and what benchmark.py --input measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.formats import make_folder, make_zip, prepare_tfds, random_images
from test_cli import FORKS

from diffusion_jax.data import sources
from diffusion_jax.evaluation import features, reference

ROOT = Path(__file__).parents[2]
IMAGES = random_images(60, 8, 8, 3)
KINDS = {"folder": "{tmp}/images", "npz": "{tmp}/images.npz", "zip": "{tmp}/images.zip", "tfds": "tiny_images"}
DATA = "--config.data.resolution=8 --config.data.channels=3 --config.data.num_classes=0"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
  tmp = tmp_path_factory.mktemp("programs")
  make_folder(tmp / "images", {f"{i:02d}.png": image for i, image in enumerate(IMAGES)})
  np.savez(tmp / "images.npz", images=IMAGES)
  make_zip(tmp / "images.zip", IMAGES)
  prepare_tfds(tmp, {"train": [(image, None) for image in IMAGES]}, (8, 8, 3), num_classes=0)
  calls = {}
  for kind, path in KINDS.items():
    calls[f"reference {kind}"] = f"reference.py --data={kind}:{path} --extractor=pixels --out={{tmp}}/{kind}.stats.npz"
    if kind not in ("npz", "zip"):
      continue
    fields = f"--config=tests/training/tiny.py --config.data.name={kind} --config.data.path={path} {DATA}"
    calls[f"benchmark {kind}"] = f"benchmark.py --input --repeats=1 --out={{tmp}}/{kind} {fields}"
  calls["evaluate"] = "evaluate.py --images={tmp}/images.zip --data=folder:{tmp}/images --out={tmp}/e"
  calls["both"] = "benchmark.py --input --only=update --config=tests/training/tiny.py"
  commands = []
  for name, words in calls.items():
    program, *words = words.replace("{tmp}", str(tmp)).split()
    commands.append([name, [f"experiments/{program}", *words]])
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(tmp)}
  done = subprocess.run(
    [sys.executable, "-c", FORKS], input=json.dumps(commands), env=env, cwd=ROOT, capture_output=True, text=True,
    timeout=200,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return tmp, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_reference(results, kind):
  tmp, called = results
  code, out, err = called[f"reference {kind}"]
  assert code == 0, err
  assert out.startswith(f"60 images of {kind}/train by pixels: ")
  with np.load(tmp / f"{kind}.stats.npz") as got, np.load(tmp / "folder.stats.npz") as expected:
    np.testing.assert_allclose(got["mu"], expected["mu"], atol=1e-6)
    np.testing.assert_allclose(got["mu"], IMAGES.reshape(60, -1).mean(axis=0), atol=1e-3)


def test_evaluate(results):
  tmp, called = results
  assert called["evaluate"][0] == 0, called["evaluate"][2]
  scores = [json.loads(line) for line in (tmp / "e/scores.jsonl").read_text().splitlines()]
  assert {score["metric"]: score["value"] for score in scores}["frechet"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("kind", ["npz", "zip"])
def test_benchmark_input(results, kind):
  tmp, called = results
  code, out, err = called[f"benchmark {kind}"]
  assert code == 0, err
  record = json.loads((tmp / f"{kind}.json").read_text())
  assert (record["num_images"], record["image_shape"]) == (60, [8, 8, 3])
  assert list(record["cases"]) == (["in memory"] if kind == "npz" else ["decoded", "held in memory"])
  for name, case in record["cases"].items():
    assert case["images_per_second"][1] == case["turns"][0] > 0
    assert f"{name} " in out


def test_benchmark_input_goes_alone(results):
  code, _, err = results[1]["both"]
  assert code == 2 and err == "error: --input goes without --profile and --only\n"


def test_what_identifies_the_real_images(tmp_path):
  """The file, where it alone says what they are; else the images as they come out."""
  path = make_zip(tmp_path / "a.zip", IMAGES)
  make_folder(tmp_path / "b", {f"{i:02d}.png": image for i, image in enumerate(IMAGES)})
  plain = sources.load("zip", "train", path=path)
  assert reference.fingerprint(plain) == reference.fingerprint(sources.Cached(plain)) == features.sha256(path)
  small = [sources.load(name, "train", path=str(tmp_path / place), transform=sources.Transform("resize", 4, 4))
           for name, place in (("zip", "a.zip"), ("folder", "b"))]  # fmt: skip
  assert reference.fingerprint(small[0]) == reference.fingerprint(small[1]) != reference.fingerprint(plain)
