"""Latent diffusion from the command line: an autoencoder, its latents, a run on them, its images and scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from test_cli import FORKS

from diffusion_jax.data import sources

ROOT = Path(__file__).parents[1]
IMAGES = "--config.data.name=npz --config.data.path={tmp}/photos.npz --config.data.resolution=8"
IMAGES += " --config.data.channels=3"
RUN = "--config=tests/training/tiny.py --config.data.num_classes=0 --config.label_dropout=0 --config.data.flip=False"
RUN += " --config.train.num_steps=2 --config.train.sample_every=2"
TINY = "--config.autoencoder.channels=4 --config.autoencoder.channel_mult=(1,1) --config.autoencoder.num_blocks=1"
DECOUPLED = "--config.method=decoupled --config.sampling.sampler=decoupled --config.sampling.grid=decoupled"
COMMANDS = {
  "autoencoder": f"train.py {RUN} {IMAGES} {TINY} --config.method=autoencoder --workdir={{tmp}}/ae",
  "encode": "encode.py --config={tmp}/images.py --autoencoder={tmp}/ae --flip --out={tmp}/z",
  "again": "encode.py --data=npz:{tmp}/photos.npz --autoencoder={tmp}/ae --out={tmp}/z",
  "reconstruct": "reconstruct.py --config={tmp}/images.py --autoencoder={tmp}/ae",
  "train": f"train.py {RUN} {DECOUPLED} --workdir={{tmp}}/run --config.data.name=latents --config.data.path={{tmp}}/z "
  "--config.data.resolution=4 --config.data.channels=3 --config.latent.autoencoder={tmp}/ae",
  "sample": "sample.py --workdir={tmp}/run --seeds=0-99 --num_steps=2 --out={tmp}/s",
  "moved": "sample.py --workdir={tmp}/run --seeds=0-8 --num_steps=2 --out={tmp}/s2 --autoencoder={tmp}/nowhere",
  "evaluate": "evaluate.py --workdir={tmp}/run --nfe=2 --num_images=100 --blocks=1 --metrics=frechet",
  "recovery": "recovery.py --workdir={tmp}/run",
  "encode holes": "encode.py --config={tmp}/holes.py --autoencoder={tmp}/ae --out={tmp}/zh",
  "train holes": f"train.py {RUN} {DECOUPLED} --workdir={{tmp}}/filling --config.task.name=inpaint "
  "--config.data.name=latents --config.data.path={tmp}/zh --config.data.resolution=4 --config.data.channels=3 "
  "--config.latent.autoencoder={tmp}/ae",
  "fill": "evaluate.py --workdir={tmp}/filling --nfe=1 --num_images=20 --blocks=1 --metrics=psnr",
}
# The U-Net would compile for half a minute: what is tested here lies around it.
SETUP = """
from diffusion_jax.methods import base
from training import test_classifiers, toy_task
plain = lambda config, heads: test_classifiers.Toy(heads)
toy = lambda config: toy_task.network_from_config if config.task.name else plain
base.network_from_config = lambda config, heads, **options: toy(config)(config, heads)
"""
CONFIG = """
from diffusion_jax import config as config_lib

def get_config():
  c = config_lib.default()
  c.data.update(name="npz", path=PATH, resolution=8, channels=3, num_classes=0)
  return c
"""


def test_from_an_autoencoder_to_images(tmp_path):
  photos = sources.load("photos", "test", resolution=16).gather(np.arange(0, 7000, 100))["image"][:, ::2, ::2]
  np.savez(tmp_path / "photos.npz", images=photos)
  (tmp_path / "images.py").write_text(f"PATH = {str(tmp_path / 'photos.npz')!r}\n{CONFIG}")
  task = CONFIG.replace("  return c", '  c.task.name = "inpaint"\n  return c')
  (tmp_path / "holes.py").write_text(f"PATH = {str(tmp_path / 'photos.npz')!r}\n{task}")
  commands = []
  for name, words in COMMANDS.items():
    program, *words = words.replace("{tmp}", str(tmp_path)).split()
    commands.append([name, [f"experiments/{program}", *words]])
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")  # more take longer, and show no more
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XLA_FLAGS": flags}
  forks = [sys.executable, "-c", SETUP + FORKS.replace("alarm(60)", "alarm(300)")]
  done = subprocess.run(
    forks, input=json.dumps(commands), env=env, cwd=ROOT, capture_output=True, text=True, timeout=500
  )
  assert done.returncode == 0, done.stderr
  results = json.loads(done.stdout.splitlines()[-1])
  refused = {
    "again": "z is already there; pass --overwrite or another --out",
    "moved": "config.latent.autoencoder = ",
    "recovery": "a run in latent space, which sample.py and evaluate.py alone decode",
  }
  for name, (code, _, err) in results.items():
    assert code == (2 if name in refused else 0), (name, err)
    assert refused.get(name, "") in err and (name not in refused or err.count("\n") == 1), err

  lines = [json.loads(line) for line in (tmp_path / "ae" / "metrics.jsonl").read_text().splitlines()]
  assert all(line["absolute_error"] > 0 and line["kl"] > 0 for line in lines) and len(lines) == 2
  about = json.loads((tmp_path / "z" / "latents.json").read_text())
  assert about["num_examples"] == 2 * len(photos) and about["image_shape"] == [8, 8, 3]
  assert about["autoencoder"]["name"] == "ae" and about["autoencoder"]["step"] == 2 and about["data"]["name"] == "npz"
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["latent.scale"] == about["scale"] and config["latent.sha256"] == about["autoencoder"]["sha256"]
  with np.load(tmp_path / "s.npz") as file:
    assert file["images"].shape == (100, 8, 8, 3) and file["images"].std() > 0
  assert (tmp_path / "run" / "samples" / "step_00000002.png").exists()
  (record,) = (json.loads(line) for line in (tmp_path / "run/evaluation/scores.jsonl").read_text().splitlines())
  assert record["reference"]["name"] == "npz/train" and record["reference"]["num_images"] == len(photos)
  measured = json.loads((tmp_path / "ae" / "reconstruct_train.json").read_text())
  assert measured["num_images"] == len(photos) and 3 < measured["psnr"] < 40 and measured["frechet"] > 0
  assert (tmp_path / "ae" / "reconstruct_train.png").exists()

  filled = [json.loads(line) for line in (tmp_path / "filling/evaluation/scores.jsonl").read_text().splitlines()]
  assert [r["checkpoint"]["name"] for r in filled] == ["mean colour", "filling"]
  assert all(r["task"]["name"] == "inpaint" for r in filled)
  assert all(5 < r["value"] < 60 for r in filled) and {r["reference"]["name"] for r in filled} == {"npz/train"}
