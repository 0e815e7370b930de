"""Workdirs, data, checkpoints and results in a bucket: whole runs against a small Cloud Storage of this process.

TensorStore, gcsfs and Google's client, through which orbax and epath go, speak to it over HTTP as to the real one.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import fake_gcs
import numpy as np
import pytest
from data.test_sources import make_zip
from etils import epath
from test_cli import FORKS
from training import toy
from training.test_checkpoint import assert_same, opened, save, state_at, template

from diffusion_jax import files
from diffusion_jax.data import sources
from diffusion_jax.evaluation import records, statistics
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, loop, writers

ROOT = Path(__file__).parents[1]
STEPS = 12
BUCKET = "gs://bucket"

# toy.py's network in place of the U-Net, in the programs that follow; what all of them will import.
SMALL = """
import contextlib, sys
with contextlib.suppress(ImportError):
  import gcsfs, google.cloud.storage
sys.path.insert(0, "tests")
from training import toy
toy.get_config()
"""


@pytest.fixture(scope="module")
def cloud():
  """The service; it is where this process and its children find gs://."""
  with fake_gcs.Server("bucket") as server, pytest.MonkeyPatch.context() as patch:
    for name, value in server.environment.items():
      patch.setenv(name, value)
    with warnings.catch_warnings():
      warnings.filterwarnings("error", "Append mode")  # gcsfs's, before it overwrites a file
      yield server


@pytest.fixture
def answering(cloud):
  """The service, which answers again after the test."""
  yield cloud
  cloud.refuse = lambda method, path: None


def run(*commands, code=0, **environment):
  """Runs programs under experiments/, one after another; returns what each printed, or its line of error."""
  environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
  named = [[i, [f"experiments/{program}.py", *flags]] for i, (program, *flags) in enumerate(commands)]
  done = subprocess.run(
    [sys.executable, "-c", SMALL + FORKS], cwd=ROOT, env=environment, input=json.dumps(named), capture_output=True,
    text=True, check=True,
  )  # fmt: skip
  results = json.loads(done.stdout).values()
  assert [got for got, _, _ in results] == [code] * len(commands), results
  assert not any("Traceback" in err for _, _, err in results), results
  return [err.splitlines()[-1] if code else out for _, out, err in results]  # before it, Google's on credentials


def overrides(zip_path):
  return {
    "data.name": "zip", "data.path": str(zip_path), "train.num_steps": STEPS, "sampling.num_steps": 1,
  }  # fmt: skip


def config_of(zip_path):
  config = toy.get_config()
  config.update_from_flattened_dict(overrides(zip_path))
  return config


@pytest.fixture(scope="module")
def zips(cloud, tmp_path_factory):
  """The digits as a zip, on the disk and in the bucket."""
  digits = sources.load("digits", "train").gather(np.arange(200))
  images = np.uint8(np.round((digits["image"] + 1) * 127.5))
  local = make_zip(tmp_path_factory.mktemp("data") / "digits.zip", images, digits["label"])
  remote = epath.Path(BUCKET) / "data" / "digits.zip"
  remote.write_bytes(Path(local).read_bytes())
  return local, remote


@pytest.fixture(scope="module")
def local(zips, tmp_path_factory):
  """The workdir of a run on the disk that nothing interrupted."""
  workdir = tmp_path_factory.mktemp("local") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
    loop.train(config_of(zips[0]), workdir)
  return workdir


@pytest.fixture(scope="module")
def remote(cloud, zips):
  """The workdir of the same run in the bucket: killed while it wrote the checkpoint of step 8, then resumed.

  The kill comes when all of the checkpoint is there but the file that says so.
  """
  workdir, commits = epath.Path(BUCKET) / "runs" / "run", []

  def refuse(method, path):
    if method == "POST" and "checkpoints/8/commit_success.txt" in path:
      commits.append(path)
      return 503  # the client tries again, until it is killed
    return None

  cloud.refuse = refuse
  flags = [f"--config.{name}={value}" for name, value in overrides(zips[1]).items()]
  process = subprocess.Popen(
    [sys.executable, "experiments/train.py", "--config=tests/training/toy.py", f"--workdir={workdir}", *flags],
    cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  deadline = time.monotonic() + 300
  while not commits:
    assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()[-3000:]
    time.sleep(0.01)
  process.kill()
  process.communicate()
  cloud.refuse = lambda method, path: None
  seen = [name for name in cloud.objects["bucket"] if name.startswith("runs/run/checkpoints/8/")]
  found = seen, checkpoint.has_checkpoint(workdir), checkpoint.newest(workdir)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
    loop.train(config_of(zips[1]), workdir)
  return workdir, *found


def test_an_incomplete_checkpoint_is_none(remote):
  """In a bucket its folder has its last name from the start; nothing but orbax's last file tells."""
  _, objects, has, newest = remote
  assert any("/d/" in name for name in objects) and "runs/run/checkpoints/8/commit_success.txt" not in objects
  assert has and newest == 4


def test_a_killed_run_in_a_bucket_ends_bit_for_bit_as_one_on_a_disk(local, remote):
  workdir = remote[0]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
    states = [checkpoint.load_for_inference(where)[1:] for where in (local, workdir)]
  assert_same(*states)
  assert checkpoint.newest(local) == checkpoint.newest(workdir) == STEPS
  for name in ("metrics.jsonl", f"samples/step_{STEPS:08d}.png"):
    assert (workdir / name).read_bytes() == (local / name).read_bytes()
  lines = (workdir / "throughput.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
  assert {path.name for path in workdir.iterdir()} == {path.name for path in local.iterdir()}
  names = lambda where: sorted(path.name for path in (where / "checkpoints").iterdir())
  assert names(workdir) == names(local)


def test_programs_read_and_write_there(local, remote, tmp_path):
  """Samples and scores are those of the run on the disk; what is there is not replaced unasked."""
  workdir, out = remote[0], epath.Path(BUCKET) / "out"
  sample = lambda workdir, out: ("sample", f"--workdir={workdir}", f"--out={out}/sample", "--seeds=0-9")
  protocol = ("--data=digits", "--extractor=digits", "--metrics=frechet", "--num_images=16", "--blocks=2")
  score = lambda workdir: ("evaluate", f"--workdir={workdir}", *protocol)
  run(sample(workdir, out), sample(local, tmp_path), score(workdir), score(local))
  assert (out / "sample.png").read_bytes() == (tmp_path / "sample.png").read_bytes()
  with (out / "sample.npz").open("rb") as file, np.load(file) as a, np.load(tmp_path / "sample.npz") as b:
    assert_same(dict(a), dict(b))
  values = lambda where: [r["value"] for r in records.Records(where / "evaluation" / "scores.jsonl")]
  assert len(values(workdir)) == 2 and values(workdir) == values(local)
  made = {path.name for path in (workdir / "evaluation").iterdir()}
  assert made == {path.name for path in (local / "evaluation").iterdir()}
  (said,) = run(sample(workdir, out), code=2)
  assert said.startswith(f"error: --out={out}/sample: {out}/sample.png is already there")


def test_a_study_and_a_reference(cloud, zips, tmp_path):
  """Started again, from another machine as it were, the study computes nothing."""
  fields = {**overrides(zips[1]), "train.num_steps": 2, "train.checkpoint_every": 2}
  (tmp_path / "study.py").write_text(
    "from diffusion_jax.study import Evaluation, Run, Study, Table\n"
    f"run = Run({{'network': 'toy'}}, 'tests/training/tiny.py', {fields!r})\n"
    "euler = [Evaluation({}, {'sampler': 'euler', 'num_steps': n}) for n in (1, 2)]\n"
    "def get_study():\n"
    "  return Study(runs=[run], evaluations=euler, tables=[Table('T', ('network', 'NFE'))], seeds=(0,),\n"
    "    metrics=('frechet',), num_images=16, extractor='pixels')\n"
  )
  study = ("study", str(tmp_path / "study.py"), f"--runs={BUCKET}/studies", f"--out={BUCKET}/table")
  out = f"{BUCKET}/statistics/digits.npz"
  reference = ("reference", f"--data=zip:{zips[1]}", "--extractor=pixels", f"--out={out}")
  first, said = run(study, reference)
  kept = lambda: {name: held.generation for name, held in cloud.objects["bucket"].items() if "studies/" in name}
  before = kept()
  (second,) = run(study)
  assert kept() == before and len(before) > 10
  table = (epath.Path(BUCKET) / "table" / "README.md").read_text()
  assert "**T**" in table and all(table.split("\n", 2)[2].strip() in text for text in (first, second))
  assert said.startswith("200 images of ") and said.endswith(f" by pixels: {out}\n")
  assert statistics.read(out).num_images == 200


# --- the parts --------------------------------------------------------------------------------------------------------


def test_a_zip_in_a_bucket_is_read_once(cloud, zips):
  """However its images are asked for: reading here and there would cost a request an image."""
  local, remote = (sources.load("zip", "train", path=str(path)) for path in zips)
  asked = len(cloud.requests)
  for indices in ([5, 0, 199], np.arange(200)):
    assert_same(remote.gather(np.array(indices)), local.gather(np.array(indices)))
  assert len(cloud.requests) == asked
  with pytest.raises(ValueError, match="gs://bucket/none.zip cannot be read as a zip"):
    sources.load("zip", "train", path=f"{BUCKET}/none.zip")


def test_lines_of_metrics_are_there_when_flushed(cloud):
  path = epath.Path(BUCKET) / "lines" / "metrics.jsonl"
  file = writers.JsonLines(path, 0)
  assert path.read_text() == ""
  for step in (1, 2, 3):
    file.write({"step": step})
  assert path.read_text() == ""
  file.flush()
  generation = cloud.objects["bucket"]["lines/metrics.jsonl"].generation
  file.flush()
  assert cloud.objects["bucket"]["lines/metrics.jsonl"].generation == generation  # nothing new, nothing written
  lines = '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
  assert path.read_text() == lines
  file = writers.JsonLines(path, 2)
  file.write({"step": 3})
  file.flush()
  assert path.read_text() == lines


def test_records_are_there_as_soon_as_they_are_added(cloud):
  """Each with those before it; a line that is cut off, as by a copy that was interrupted, takes no other with it."""
  path = epath.Path(BUCKET) / "records" / "scores.jsonl"
  record = lambda metric: {"metric": metric, "value": 1.5, "device": "8 × H100"}
  records.Records(path).add([record("a")])
  path.write_text(path.read_text() + '{"metric": "b", "val')
  records.Records(path).add([record("c")])
  assert [r["metric"] for r in records.Records(path)] == ["a", "c"]
  assert path.read_text().count("\n") == 3


def test_what_others_write_is_seen(cloud):
  """gcsfs would keep a listing for good, and the checkpoints are not written through it."""
  folder = epath.Path(BUCKET) / "shared"
  (folder / "1" / "a").write_text("a")
  assert [path.name for path in folder.iterdir()] == ["1"] and not (folder / "2").exists()
  cloud.put("bucket", "shared/2/a", b"a", "text/plain", {})
  assert [path.name for path in folder.iterdir()] == ["1", "2"] and (folder / "2").exists()


def test_large_files_and_long_listings(cloud):
  """Beyond one request each."""
  folder = epath.Path(BUCKET) / "many"
  data = np.random.default_rng(0).bytes(11 * 2**20 + 1)
  (folder / "big").write_bytes(data)
  assert (folder / "big").read_bytes() == data
  for i in range(2 * fake_gcs.PAGE):
    (folder / f"n{i}").write_text("x")
  assert len(list(folder.iterdir())) == 2 * fake_gcs.PAGE + 1


def test_absolute_paths(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert str(files.absolute("a/b")) == f"{tmp_path}/a/b"
  assert str(files.absolute("gs://bucket/a/b")) == "gs://bucket/a/b"


def test_a_damaged_checkpoint_in_a_bucket_is_passed_over(cloud):
  workdir = epath.Path(BUCKET) / "damaged"
  save(workdir, 1, 2)
  held = cloud.objects["bucket"]
  for name in [name for name in held if name.startswith("damaged/checkpoints/2/") and "/d/" in name]:
    held[name] = held[name]._replace(data=held[name].data[: len(held[name].data) // 2])
  assert checkpoint.newest(workdir) == 2
  checkpoints = opened(workdir)
  assert_same(checkpoints.restore(template()), state_at(1))
  checkpoints.save(state_at(2), 2)
  checkpoints.close()
  assert_same(opened(workdir).restore(template()), state_at(2))


@pytest.mark.parametrize("what", ["/d/", "manifest.ocdbt", "_METADATA"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(answering, what, status):
  """Else it would give way to the next one saved."""
  workdir = epath.Path(BUCKET) / "forbidden"
  if not workdir.exists():
    save(workdir, 1, 2)
  checkpoints = opened(workdir)
  answering.refuse = lambda method, path: status if what in path else None
  with pytest.raises(checkpoint.WorkdirError, match="checkpoints/2 cannot be read now: "):
    checkpoints.restore(template())
  answering.refuse = lambda method, path: None
  assert_same(checkpoints.restore(template()), state_at(2))


def test_a_bucket_that_cannot_be_used_is_one_line(answering):
  train = lambda bucket: ("train", "--config=tests/training/toy.py", f"--workdir=gs://{bucket}/x")
  (said,) = run(train("nobucket"), code=2)
  assert said.startswith("error: --workdir=gs://nobucket/x cannot be written: ")
  answering.refuse = lambda method, path: 401
  (said,) = run(train("bucket"), code=2)
  assert said == "error: Google Cloud Storage: refused by the test, 401"


def test_without_gcsfs_the_package_is_named(tmp_path):
  (tmp_path / "gcsfs.py").write_text("raise ModuleNotFoundError('hidden', name='gcsfs')\n")
  commands = ("train", "--config=tests/training/toy.py", "--workdir=gs://a/x"), ("sample", "--workdir=gs://a/x")
  for said in run(*commands, code=2, PYTHONPATH=f"{tmp_path}:{ROOT}"):
    assert said == "error: gs:// needs the package gcsfs: pip install 'diffusion-jax[gcs]'"
