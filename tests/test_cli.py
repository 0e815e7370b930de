"""The programs under experiments/: a user's mistake is exit code 2 and one line on stderr, before anything compiles.

All calls run in children forked from one process that has imported the library, half a second each.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from training import tiny, toy_task

from diffusion_jax import cli, methods
from diffusion_jax.data import sources
from diffusion_jax.evaluation import features
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.training import checkpoint, start

ROOT = Path(__file__).parents[1]
NEW = "--workdir={tmp}/new"  # not there yet
DEMO = "--config=configs/edm_digits.py"

# Reads [[name, argv], ...], runs each in a fork, and prints {name: [exit code, stdout, stderr]}.
FORKS = """
import json, os, runpy, signal, sys, tempfile, traceback, warnings
import diffusion_jax.cli, diffusion_jax.sampling, diffusion_jax.evaluation.digits, sklearn.datasets
warnings.simplefilter("ignore")
results = {}
for name, argv in json.load(sys.stdin):
  out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
  child = os.fork()
  if not child:
    signal.alarm(60)  # ends a child that hangs
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.argv, code = argv, 0
    sys.path.insert(0, os.path.dirname(argv[0]))
    try:
      runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
      code = end.code or 0
    except BaseException:
      traceback.print_exc()
      code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  _, status = os.waitpid(child, 0)
  for file in (out, err):
    file.seek(0)
  results[name] = [os.waitstatus_to_exitcode(status), out.read(), err.read()]
print(json.dumps(results))
"""


def train(*flags):
  return ["experiments/train.py", *flags]


def sample(*flags):
  return ["experiments/sample.py", *flags]


def evaluate(*flags):
  return ["experiments/evaluate.py", *flags]


def recovery(*flags):
  return ["experiments/recovery.py", *flags]


def study(*flags):
  return ["experiments/study.py", *flags]


def tasks(*flags):
  return ["experiments/tasks.py", *flags]


def sigma_min(*flags):
  return ["experiments/sigma_min.py", *flags]


def reference(*flags):
  return ["experiments/reference.py", *flags]


def paper(*flags):
  return ["experiments/paper.py", *flags]


# {name: (argv, what the line on stderr says)}; {tmp} is a folder with the workdirs of `folder`.
MISTAKES = {
  "unknown field": (
    train(DEMO, NEW, "--config.train.batch_sise=64"), ["config.train.batch_sise", "64", "train.batch_size"]
  ),
  "unknown section": (
    train(DEMO, NEW, "--config.trian.batch_size=64"), ["config.trian.batch_size", "64", "train.batch_size"]
  ),
  "wrong type": (train(DEMO, NEW, "--config.train.batch_size=many"), ["train.batch_size", "many"]),
  "float for an integer": (train(DEMO, NEW, "--config.train.num_steps=1.5"), ["train.num_steps", "1.5"]),
  "batch over devices": (train(DEMO, NEW, "--config.train.batch_size=60"), ["train.batch_size = 60", "8"]),
  "groups": (train(DEMO, NEW, "--config.network.channels=42"), ["network.channels = 42", "GroupNorm"]),
  "heads": (
    train(DEMO, NEW, "--config.network.arch=adm", "--config.network.channels=96",
          "--config.network.channel_mult=(1,1)"),
    ["network.channels = 96", "heads of 64"],
  ),
  "attention": (
    train(DEMO, NEW, "--config.network.attention_resolutions=(5,)"),
    ["network.attention_resolutions = (5,)", "[8, 4]"],
  ),
  "classes": (train(DEMO, NEW, "--config.data.num_classes=7"), ["data.num_classes = 7", "10"]),
  "sampler in training": (
    train(DEMO, NEW, "--config.sampling.sampler=huen"), ["sampling.sampler = 'huen'", "nearest: heun"]
  ),
  "another config's workdir": (train(DEMO, "--workdir={tmp}/run"), ["--workdir={tmp}/run", "holds a run"]),
  "no config": (train(NEW), ["--config is missing", "configs/edm_digits.py"]),
  "config not there": (train("--config=configs/nothing.py", NEW), ["configs/nothing.py"]),
  "config without get_config": (train("--config={tmp}/empty.py", NEW), ["empty.py", "get_config"]),
  "config with a syntax error": (train("--config={tmp}/broken.py", NEW), ["broken.py"]),
  "config that sets an unknown field": (train("--config={tmp}/typo.py", NEW), ["sampels", "typo.py"]),
  "config that raises": (train("--config={tmp}/raises.py", NEW), ["raises.py", "nothing works"]),
  "no workdir to train in": (train(DEMO), ["--workdir is missing"]),
  "unknown flag": (train(DEMO, "--workdri={tmp}/new"), ["workdri"]),
  "workdir is a file": (train(DEMO, "--workdir={tmp}/empty.py"), ["{tmp}/empty.py"]),
  "no workdir to sample": (sample(), ["--workdir is missing"]),
  "workdir not there": (sample("--workdir={tmp}/nowhere"), ["--workdir={tmp}/nowhere", "no run here"]),
  "empty workdir": (sample("--workdir={tmp}/nothing"), ["--workdir={tmp}/nothing", "no run here"]),
  "samples of a task": (
    sample("--workdir={tmp}/task"),
    ["--workdir={tmp}/task", "makes images from others (inpaint): experiments/evaluate.py and tasks.py give it these"],
  ),
  "conditions of a run's own images": (
    evaluate("--workdir={tmp}/task", "--task_path={tmp}"), ["--task_path={tmp}", "goes with --data"]
  ),
  "metric of a task": (evaluate("--workdir={tmp}/task", "--metrics=fid"), ["'fid'", "psnr_pooled", "frechet"]),
  "no checkpoint": (sample("--workdir={tmp}/begun"), ["--workdir={tmp}/begun", "no checkpoint"]),
  "no such checkpoint": (sample("--workdir={tmp}/run", "--step=3"), ["step 3", "[24]"]),
  "no best checkpoint": (
    sample("--workdir={tmp}/run", "--step=best"), ["no checkpoint here has a score", "score_every"]
  ),
  "checkpoint that is no number": (sample("--workdir={tmp}/run", "--step=last"), ["--step=last", "best"]),
  "layout": (train(DEMO, NEW, "--config.train.parallel=pmpa"), ["train.parallel = 'pmpa'", "nearest: pmap"]),
  "cache": (train(DEMO, NEW, "--config.data.cache=ram"), ["data.cache = 'ram'", "host"]),
  "score between checkpoints": (
    train(DEMO, NEW, "--config.train.score_every=100"), ["train.score_every = 100", "checkpoint_every (250)"]
  ),
  "weights of a score": (
    train(DEMO, NEW, "--config.train.score_every=250", "--config.train.score_inception={tmp}/empty.py"), ["empty.py"]
  ),
  "part of nothing": (train(DEMO, NEW, "--config.init_only=('net/*',)"), ["init_only", "without init_from"]),
  "run before nothing": (train(DEMO, NEW, "--init_config=configs/edm_digits.py"), ["config.init_from = ''"]),
  "config beside one that is not asked for": (
    ["experiments/benchmark.py", "--config={tmp}/broken.py", "--init_config=x"], ["broken.py"]
  ),
  "no run before": (
    train("--config=configs/dpdm_digits.py", NEW, "--config.init_from={tmp}/nowhere"),
    ["config.init_from = '{tmp}/nowhere': no run here, config.json is missing; --init_config=FILE trains it first"],
  ),
  "run before a pickle": (
    train(DEMO, NEW, "--init_config=configs/edm_digits.py", "--config.init_from=a.pkl"), ["config.init_from = 'a.pkl'"]
  ),
  "another run before": (
    train(DEMO, NEW, "--init_config=configs/edm_digits.py", "--config.init_from={tmp}/run"),
    ["config.init_from = '{tmp}/run' holds a run with init_config."],
  ),
  "dry run of two": (
    train(DEMO, "--dry_run", "--init_config=configs/edm_digits.py"), ["--init_config", "without --dry_run"]
  ),
  "field of the run before": (
    train(DEMO, NEW, "--init_config=configs/edm_digits.py", "--init_config.train.num_step=3"),
    ["init_config.train.num_step = '3'", "train.num_steps"],
  ),
  "config of the run before": (train(DEMO, NEW, "--init_config={tmp}/broken.py"), ["broken.py"]),
  "hosts that nothing tells": (train(DEMO, NEW, "--multihost"), ["--multihost", "coordinator_address"]),
  "steps of a trace": (train(DEMO, NEW, "--profile=7"), ["--profile=7", "10-14"]),
  "topology of a run": (train(DEMO, NEW, "--topology=v5e:2x4"), ["--topology=v5e:2x4", "--dry_run"]),
  "no such topology": (train(DEMO, "--dry_run", "--topology=v99:2x4"), ["--topology=v99:2x4", "libtpu"]),
  "sampler": (sample("--workdir={tmp}/run", "--sampler=dddm"), ["sampling.sampler = 'dddm'", "heun", "ddim"]),
  "churn for ddim": (sample("--workdir={tmp}/run", "--sampler=ddim", "--churn=5"), ["sampling.churn = 5.0", "ddim"]),
  "steps": (sample("--workdir={tmp}/run", "--num_steps=0"), ["num_steps = 0", "positive"]),
  "steps that are no number": (sample("--workdir={tmp}/run", "--num_steps=x"), ["num_steps", "x"]),
  "seeds": (sample("--workdir={tmp}/run", "--seeds=1-x"), ["--seeds=1-x"]),
  "no seeds": (sample("--workdir={tmp}/run", "--seeds="), ["--seeds="]),
  "seeds backwards": (sample("--workdir={tmp}/run", "--seeds=7-3"), ["--seeds=7-3"]),
  "negative seed": (sample("--workdir={tmp}/run", "--seeds=-3"), ["--seeds=-3"]),
  "label": (sample("--workdir={tmp}/run", "--label=10"), ["--label=10", "10 classes"]),
  "negative label": (sample("--workdir={tmp}/run", "--label=-1"), ["--label=-1", "10 classes"]),
  "output there": (sample("--workdir={tmp}/run", "--out={tmp}/there"), ["--out={tmp}/there", "--overwrite"]),
  "two models": (sample("--workdir={tmp}/run", "--checkpoint=a.pkl"), ["--checkpoint=a.pkl", "without --workdir"]),
  "step of a checkpoint": (sample("--checkpoint=a.pkl", "--step=3"), ["--checkpoint=a.pkl", "--step"]),
  "checkpoint not there": (sample("--checkpoint={tmp}/a.pkl", "--out={tmp}/new"), ["--checkpoint={tmp}/a.pkl"]),
  "no checkpoint in it": (sample("--checkpoint={tmp}/there.png", "--out={tmp}/new"), ["--checkpoint={tmp}/there.png"]),
  "grid": (sample("--workdir={tmp}/run", "--grid=emd"), ["sampling.grid = 'emd'", "nearest: edm"]),
  "grid of another sampler": (
    sample("--workdir={tmp}/run", "--grid=dddm"), ["sampling.grid = 'dddm'", "another for the sampler heun"]
  ),
  "range": (sample("--workdir={tmp}/run", "--sigma_max=0.001"), ["sampling.sigma_max = 0.001"]),
  "interval of no guidance": (
    sample("--workdir={tmp}/run", "--guidance_sigma_max=5"), ["sampling.guidance_sigma_max = 5.0", "guidance = 1"]
  ),
  "percentile without a limit": (
    sample("--workdir={tmp}/run", "--clip_percentile=0.9"), ["sampling.clip_percentile = 0.9", "sampling.clip"]
  ),
  "weights not there": (
    train("--config={tmp}/toy.py", NEW, "--config.init_from={tmp}/a.pkl"), ["config.init_from = '{tmp}/a.pkl'"]
  ),
  "zip not there": (
    train("--config=configs/edm_cifar10.py:uncond-vp-F", NEW, "--config.data.path={tmp}/a.zip"),
    ["config.data.path = '{tmp}/a.zip'"],
  ),
  "no such row": (
    train("--config=configs/edm_cifar10.py:cond-vp-G", NEW), ["edm_cifar10.py", "cond-vp-G", "cond|uncond-vp|ve-A|B|C"]
  ),
  "config.json": (sample("--workdir={tmp}/spoilt"), ["spoilt/config.json"]),
  "no workdir to evaluate": (evaluate(), ["--workdir is missing"]),
  "nothing to evaluate": (evaluate("--workdir={tmp}/nothing"), ["no run here"]),
  "too few images": (evaluate("--workdir={tmp}/run", "--num_images=3"), ["--num_images=3", "at least 4"]),
  "no blocks": (evaluate("--workdir={tmp}/run", "--blocks=0"), ["--blocks=0"]),
  "metric": (evaluate("--workdir={tmp}/run", "--metrics=fid"), ["'fid'", "frechet"]),
  "extractor": (evaluate("--workdir={tmp}/run", "--extractor=clip"), ["'clip'", "inception"]),
  "weights missing": (evaluate("--workdir={tmp}/run", "--extractor=inception"), ["weights-inception-2015-12-05"]),
  "weights not weights": (evaluate("--workdir={tmp}/run", "--inception={tmp}/empty.py", "--extractor=inception"),
                          ["{tmp}/empty.py"]),
  "reference not there": (evaluate("--workdir={tmp}/run", "--metrics=frechet", "--reference={tmp}/a.npz"), ["a.npz"]),
  "no real images": (evaluate("--checkpoint=tests/golden/edm_tiny.pkl", "--out={tmp}/new"), ["--data", "--reference"]),
  "sampler to evaluate": (
    evaluate("--workdir={tmp}/run", "--samplers=huen"), ["sampling.sampler = 'huen'", "nearest: heun"]
  ),
  "evaluations": (evaluate("--workdir={tmp}/run", "--nfe=8"), ["--nfe=8", "heun", "nearest: 7"]),
  "evaluations that are no number": (evaluate("--workdir={tmp}/run", "--nfe=x"), ["--nfe=x"]),
  "evaluations of all that are no number": (evaluate("--workdir={tmp}/run", "--sampler=all", "--nfe=x"), ["--nfe=x"]),
  "images not there": (evaluate("--images={tmp}/a.npz", "--data=digits"), ["--images={tmp}/a.npz"]),
  "images cut off": (evaluate("--images={tmp}/cut.npz", "--data=digits"), ["--images={tmp}/cut.npz"]),
  "images that are one array": (evaluate("--images={tmp}/one.npy", "--data=digits"), ["--images={tmp}/one.npy"]),
  "no image": (evaluate("--workdir={tmp}/run", "--num_images=0"), ["--num_images=0"]),
  "statistics of other features": (
    evaluate("--workdir={tmp}/run", "--metrics=frechet", "--reference={tmp}/published.npz"),
    ["published.npz holds statistics of 2048 features, digits has 64"],
  ),
  "images of another kind": (
    evaluate("--images={tmp}/floats.npz", "--data=digits"), ["floats.npz", "uint8", "float64"]
  ),
  "no noise level": (recovery("--workdir={tmp}/run", "--sigmas=0.5,0"), ["--sigmas=0.5,0", "positive"]),
  "noise level that is no number": (recovery("--workdir={tmp}/run", "--sigmas=1,x"), ["--sigmas=1,x", "0.1,0.5,2"]),
  "no noise levels": (recovery("--workdir={tmp}/run", "--sigmas="), ["--sigmas="]),
  "nothing to compare": (
    recovery("--workdir={tmp}/run", "--compare={tmp}/nothing"), ["--compare={tmp}/nothing: no run here"]
  ),
  "no pickle to compare": (recovery("--workdir={tmp}/run", "--compare={tmp}/a.pkl"), ["--compare={tmp}/a.pkl"]),
  "a model compared with itself": (
    recovery("--workdir={tmp}/run", "--compare={tmp}/begun/../run/"), ["--compare=", "compared with itself"]
  ),
  "σ_min given and searched": (
    sample("--workdir={tmp}/run", "--sigma_min=0.2", "--sigma_min_search"), ["--sigma_min=0.2", "--sigma_min_search"]
  ),
  "label before a search": (
    sample("--workdir={tmp}/run", "--sampler=dpdm", "--num_steps=5", "--sigma_min_search", "--label=10"), ["--label=10"]
  ),
  "statistics to recover": (
    recovery("--checkpoint=tests/golden/edm_tiny.pkl", "--reference={tmp}/published.npz"), ["--data=digits"]
  ),
  "no study": (study(), ["expected one study"]),
  "study not there": (study("{tmp}/a.py"), ["{tmp}/a.py: no such file"]),
  "study without get_study": (study("{tmp}/empty.py"), ["empty.py has no get_study()"]),
  "part": (study("experiments/studies/edm_table2_digits.py", "--part=4/4"), ["--part=4/4"]),
  "nothing to collect": (study("experiments/studies/edm_table2_digits.py", "--collect", "--runs={tmp}/new"),
                         ["no score on file"]),
  "published pickles": (study("experiments/studies/edm_published.py:table2,{tmp},{tmp}"), ["none of the published"]),
  "one step has no σ_min": (sigma_min("--workdir={tmp}/run", "--nfe=1"), ["--nfe=1", "σ_max"]),
  "search by one image": (sigma_min("--workdir={tmp}/run", "--num_images=1"), ["num_images"]),
  "no such paper": (paper("emd", "table2"), ["emd", "edm", "dpdm"]),
}  # fmt: skip
STUDY = """
from diffusion_jax.study import Evaluation, Plot, Run, Study, Table

def get_study():
  return Study(
    runs=[Run({"steps": str(n)}, "tests/training/toy.py", {"train.num_steps": n}) for n in (4, 8)],
    evaluations=[Evaluation({"sampler": "Euler"}, {"sampler": "euler", "num_steps": n}) for n in (1, 2)],
    seeds=(0,), metrics=("frechet",), num_images=16,
    tables=[Table("Steps", ("steps",), ("sampler", "NFE"))],
    plots=[Plot("nfe", "NFE", "steps"), Plot("nothing", "NFE", "steps", when={"sampler": "Heun"})],
  )
"""
PUPILS = """
from diffusion_jax.study import Evaluation, Run, Study

def get_study():
  return Study(
    runs=[Run({"of": "teacher"}, "FOLDER/poisoned.py"),
          Run({"of": "pupil"}, "FOLDER/poisoned.py", init={"of": "teacher"})],
    evaluations=[Evaluation({}, {"sampler": "euler", "num_steps": 1})], seeds=(0,), metrics=("frechet",), num_images=16,
  )
"""
OTHERS = {
  "searched": sigma_min("--workdir={tmp}/run", "--nfe=2", "--num_images=8"),
  "sampled as found": sample("--workdir={tmp}/run", "--sampler=dpdm", "--num_steps=2", "--seeds=0",
                             "--out={tmp}/out/found"),
  "evaluated as found": evaluate("--workdir={tmp}/run", "--samplers=dpdm,heun", "--nfe=5", "--num_images=16",
                                 "--metrics=frechet", "--blocks=1", "--sigma_min=0.0005", "--out={tmp}/dpdm"),
  "searched for a pickle": evaluate("--checkpoint=tests/golden/edm_tiny.pkl", "--sampler=dpdm", "--sigma_min_search",
                                    "--nfe=4", "--data=npz:{tmp}/colours.npz", "--num_images=8", "--metrics=frechet",
                                    "--blocks=1", "--out={tmp}/searched"),
  "search without images": sample("--checkpoint=tests/golden/edm_tiny.pkl", "--sampler=dpdm", "--sigma_min_search",
                                  "--out={tmp}/out/search"),
  "pupils": study("{tmp}/pupils.py", "--runs={tmp}/pupils", "--part=0/2"),
  "no pupils": study("{tmp}/pupils.py", "--runs={tmp}/pupils", "--part=1/2"),
  "two runs": train("--config=tests/training/toy.py", "--workdir={tmp}/pupil", "--config.init_from={tmp}/teacher",
                    "--config.train.num_steps=4", "--init_config=tests/training/toy.py",
                    "--init_config.train.num_steps=8"),
  "diverged": train("--config={tmp}/poisoned.py", "--workdir={tmp}/poisoned"),
  "sampled": sample("--workdir={tmp}/run", "--seeds=0-2,7", "--label=3", "--num_steps=2", "--out={tmp}/out/a.b"),
  "published": sample("--checkpoint=tests/golden/edm_tiny.pkl", "--seeds=0-4", "--num_steps=2", "--out={tmp}/out/tiny"),
  "label of a checkpoint": sample("--checkpoint=tests/golden/edm_tiny.pkl", "--label=4", "--out={tmp}/out/label"),
  "another process": sample("--workdir={tmp}/run", "--seeds=0", "--sampler=euler", "--grid=vp", "--process=vp",
                            "--num_steps=3", "--out={tmp}/out/vp"),
  "evaluated": evaluate("--workdir={tmp}/run", "--samplers=heun,euler", "--nfe=1,3", "--num_images=20", "--blocks=2",
                        "--out={tmp}/scores"),
  "evaluated by tolerance": evaluate("--workdir={tmp}/run", "--samplers=rk45,unipc", "--num_images=8",
                                     "--metrics=frechet", "--num_steps=2", "--rtol=0.05", "--atol=0.05",
                                     "--out={tmp}/solvers"),
  "evaluated again": evaluate("--workdir={tmp}/run", "--samplers=heun,euler", "--nfe=1,3", "--num_images=20",
                              "--blocks=2", "--out={tmp}/scores"),
  "recovered": recovery("--workdir={tmp}/run", "--sigmas=0.1,2", "--num_images=20", "--out={tmp}/recovered"),
  "recovered again": recovery("--workdir={tmp}/run", "--compare={tmp}/other/run", "--sigmas=2,0.1,0.1",
                              "--num_images=20", "--out={tmp}/recovered"),
  "images": evaluate("--images={tmp}/images.npz", "--data=digits", "--metrics=frechet", "--out={tmp}/given"),
  "reference": reference("--data=digits", "--split=test", "--out={tmp}/digits.npz"),
  "against a reference": evaluate("--images={tmp}/images.npz", "--data=digits", "--reference={tmp}/digits.npz",
                                  "--metrics=frechet", "--out={tmp}/against"),
  "study": study("{tmp}/study.py", "--runs={tmp}/studies", "--out={tmp}/results"),
  "study again": study("{tmp}/study.py", "--runs={tmp}/studies", "--out={tmp}/results"),
  "study listed": study("{tmp}/study.py", "--runs={tmp}/studies", "--list"),
  "study collected": study("{tmp}/study.py", "--runs={tmp}/studies", "--collect", "--out={tmp}/collected"),
  "study in part": study("{tmp}/study.py", "--runs={tmp}/studies", "--part=1/2"),
  "task": evaluate("--workdir={tmp}/task", "--split=test", "--nfe=1,2", "--num_images=7", "--blocks=2"),
  "task again": evaluate("--workdir={tmp}/task", "--split=test", "--nfe=1,2", "--num_images=7", "--blocks=2"),
  "filled": tasks("--workdir={tmp}/task", "--images={tmp}/own", "--masks={tmp}/holes", "--num_steps=1",
                  "--out={tmp}/filled"),
  "filled again": tasks("--workdir={tmp}/task", "--images={tmp}/own", "--masks={tmp}/holes", "--out={tmp}/filled"),
  "masks for all": tasks("--workdir={tmp}/task", "--images={tmp}/own", "--out={tmp}/filled"),
  "no holes": tasks("--workdir={tmp}/task", "--images={tmp}/own", "--masks={tmp}/blank", "--out={tmp}/none"),
  "own images of no task": tasks("--workdir={tmp}/run", "--images={tmp}/own", "--out={tmp}/none"),
  "sampled again": sample("--workdir={tmp}/run", "--seeds=0", "--out={tmp}/out/a.b"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Workdirs (run: one checkpoint; begun: none; nothing: empty; spoilt) and config files."""
  folder, config, task = tmp_path_factory.mktemp("cli"), tiny.get_config(), toy_task.get_config()
  for name in ("run", "begun", "spoilt"):
    checkpoint.write_config(folder / name, config)
  (folder / "spoilt" / "config.json").write_text('{"seed": ')
  (folder / "nothing").mkdir()
  checkpoint.write_config(folder / "task", task)
  for name, each in (("run", config), ("task", task)):
    checkpoints = checkpoint.Checkpoints(folder / name, each)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), start.shapes(methods.from_config(each), each))
    checkpoints.save(zeros.replace(step=np.int32(24)), 24)
    checkpoints.close()
  shutil.copytree(folder / "run", folder / "other" / "run")
  hole = np.zeros((11, 12), np.uint8)
  hole[3:7, 5:11] = 255
  own = np.arange(132, dtype=np.uint8).reshape(11, 12)
  for name, pixels in (("own", own), ("holes", hole), ("blank", 0 * hole)):
    (folder / name).mkdir()
    PIL.Image.fromarray(pixels).save(folder / name / "a.png")
  (folder / "there.png").write_text("mine")
  images = images_lib.to_uint8(sources.load("digits", "test").gather(np.arange(100))["image"])
  np.savez(folder / "images.npz", images=images)
  np.savez(folder / "colours.npz", images=images.repeat(3, axis=-1))
  by = {"extractor": "inception", "weights": "", "reference": {"name": "mine", "sha256": ""}, "num_images": 500}
  entry = {"step": features.sha256(ROOT / "tests/golden/edm_tiny.pkl"), "num_steps": 4, "by": by, "scores": {}}
  entry |= {"sampling": {"sampler": "dpdm"}, "sigma_min": 0.0007}
  (folder / "searched").mkdir()
  (folder / "searched" / "sigma_min.json").write_text(json.dumps([entry]))
  np.savez(folder / "floats.npz", images=images / 127.5 - 1)
  np.save(folder / "one.npy", images)
  (folder / "cut.npz").write_bytes((folder / "images.npz").read_bytes()[:3000])
  np.savez(folder / "published.npz", mu=np.zeros(2048), sigma=np.eye(2048))
  (folder / "empty.py").write_text("")
  (folder / "broken.py").write_text("def get_config(:\n")
  head = f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom training import tiny, toy\n"
  body = "\ndef get_config():\n  c = tiny.get_config()\n  "
  (folder / "toy.py").write_text(head + body + "return c\n")
  (folder / "typo.py").write_text(head + body + "c.sampels = 3\n  return c\n")
  (folder / "raises.py").write_text(head + body + 'raise ValueError("nothing works")\n')
  (folder / "study.py").write_text(STUDY)
  (folder / "pupils.py").write_text(PUPILS.replace("FOLDER", str(folder)))
  poison = 'toy.base.network_from_config = lambda config, heads: toy.Toy(poison=float("nan"))\n'
  fields = "c.train.max_skipped = 5\n  c.train.log_every = 3\n  c.seed = 17\n  return c\n"
  (folder / "poisoned.py").write_text(head + poison + body + fields)
  return folder


@pytest.fixture(scope="module")
def results(folder):
  """{name: (exit code, stdout, stderr)} of all calls."""
  calls = {name: argv for name, (argv, _) in MISTAKES.items()} | OTHERS
  calls = [[name, [flag.replace("{tmp}", str(folder)) for flag in argv]] for name, argv in calls.items()]
  flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
  done = subprocess.run(
    [sys.executable, "-c", FORKS],
    input=json.dumps(calls),
    env=env,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(results, folder, name):
  """The line begins with "error: " and names the field, its value and what was expected."""
  code, out, err = results[name]
  assert (code, out) == (2, ""), err
  assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
  for part in MISTAKES[name][1]:
    assert part.replace("{tmp}", str(folder)) in err, err


def test_mistakes_leave_nothing_behind(results, folder):
  """No workdir was made, and what was there is as it was."""
  assert not (folder / "new").exists() and not (folder / "nowhere").exists()
  assert list((folder / "nothing").iterdir()) == []
  assert (folder / "there.png").read_text() == "mine" and not (folder / "there.npz").exists()
  assert (folder / "spoilt" / "config.json").read_text() == '{"seed": '


def test_a_run_that_diverges_ends_with_code_1(results, folder):
  """After max_skipped updates in a row the last line names step and seed; the line of metrics before counts them."""
  code, _, err = results["diverged"]
  assert code == 1, err
  last = err.splitlines()[-1]
  assert "error: " in last and "Traceback" not in err
  for part in ("step 5", "seed 17", "the last 5 updates", "config.train.max_skipped = 5"):
    assert part in last, last
  lines = [json.loads(line) for line in (folder / "poisoned" / "metrics.jsonl").read_text().splitlines()]
  assert [(m["step"], m["loss"], m["skipped"]) for m in lines] == [(3, None, 3)]


def test_a_run_trains_its_predecessor(results, folder):
  code, out, err = results["two runs"]
  assert code == 0, err
  assert f"{folder}/teacher is trained first, to step 8" in err
  assert (checkpoint.newest(folder / "teacher"), checkpoint.newest(folder / "pupil")) == (8, 4)
  assert json.loads((folder / "pupil" / "init_from.json").read_text())["init_from"] == f"{folder}/teacher"


def test_samples_are_written_and_not_written_over(results, folder):
  """OUT.png and OUT.npz with images, seeds and labels; a second call without --overwrite is refused."""
  code, out, err = results["sampled"]
  assert code == 0, err
  assert "4 images of step 24 by heun, NFE 3" in out
  with np.load(folder / "out" / "a.b.npz") as file:
    assert file["images"].shape == (4, 8, 8, 1) and file["images"].dtype == np.uint8
    np.testing.assert_array_equal(file["seeds"], [0, 1, 2, 7])
    np.testing.assert_array_equal(file["labels"], [3, 3, 3, 3])
  assert (folder / "out" / "a.b.png").read_bytes()[:4] == b"\x89PNG"
  code, _, err = results["sampled again"]
  assert code == 2 and "--overwrite" in err


def test_a_published_checkpoint_and_another_process_are_sampled_from(results, folder):
  code, out, err = results["published"]
  assert code == 0, err
  assert "CC BY-NC-SA" in out and "5 images of edm_tiny.pkl by heun, NFE 3" in out
  with np.load(folder / "out" / "tiny.npz") as file:
    assert file["images"].shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(file["labels"], [0, 1, 2, 3, 0])
  code, _, err = results["label of a checkpoint"]
  assert (code, err) == (2, "error: --label=4: this model has 4 classes\n")
  code, out, err = results["another process"]
  assert code == 0, err
  assert "1 images of step 24 by euler, NFE 3" in out


def test_sigma_min_is_searched_and_used(results, folder):
  """The command prints all scores and keeps the best, which sampling takes; one that is given counts first."""
  code, out, err = results["searched"]
  assert code == 0, err
  rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in out.splitlines() if line.startswith("|")]
  assert rows[0] == ["σ_min", "NFE 2"] and len(rows) == 2 + 12 + 2 and rows[-1] == ["published", ""]
  (entry,) = json.loads((folder / "run" / "sigma_min.json").read_text())
  assert rows[-2] == ["best", f"{entry['sigma_min']:g}"] and len(entry["scores"]) == 12 and entry["step"] == 24
  code, out, err = results["sampled as found"]
  assert code == 0, err
  assert out.startswith(f"σ_min for 2 steps: {entry['sigma_min']:g} (found before, 8 images by digits against")
  code, out, err = results["evaluated as found"]
  assert code == 0 and "σ_min for" not in out, err
  records = [json.loads(line) for line in (folder / "dpdm" / "scores.jsonl").read_text().splitlines()]
  fields = [[record["sampling"][name] for name in ("sampler", "grid", "sigma_min")] for record in records]
  assert fields == [["dpdm", "dpdm", 0.0005], ["heun", "edm", 0.0005]]  # each sampler on its grid
  code, out, err = results["searched for a pickle"]  # whose σ_min lies in OUT, under its SHA-256
  assert code == 0 and "σ_min for 4 steps: 0.0007 (found before, 500 images by inception against mine;" in out, err
  (record,) = [json.loads(line) for line in (folder / "searched" / "scores.jsonl").read_text().splitlines()]
  assert (record["sampling"]["sigma_min"], record["sampling"]["sigma_min_search"]) == (0.0007, False)
  code, _, err = results["search without images"]
  assert code == 2 and "config.sampling.sigma_min_search = True: none can be searched: the config has no data" in err


def test_samplers_and_evaluations_are_compared(results, folder):
  """A line a setting in the table, a record a score and block; the second time nothing is drawn."""
  code, out, err = results["evaluated"]
  assert code == 0, err
  rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in out.splitlines() if line.startswith("|")]
  assert rows[0] == ["sampler", "NFE"] and rows[2:] == [["heun", "1"], ["heun", "3"], ["euler", "1"], ["euler", "3"]]
  assert "2 blocks of 20 images (the standard is 50,000" in out and "digits/all (1,797)" in out
  records = [json.loads(line) for line in (folder / "scores" / "scores.jsonl").read_text().splitlines()]
  assert len(records) == 4 * 2 * 4 and {r["checkpoint"]["step"] for r in records} == {24}
  assert {tuple(r["seeds"]) for r in records} == {(0, 19), (20, 39)}
  assert (folder / "scores" / "scores.png").exists() and (folder / "scores" / "images_heun_3.png").exists()
  assert results["evaluated again"][:2] == [0, out]


def test_an_adaptive_sampler_is_listed_with_its_measured_evaluations(results, folder):
  code, out, err = results["evaluated by tolerance"]
  assert code == 0, err
  rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in out.splitlines() if line.startswith("|")][2:]
  assert [row[0] for row in rows] == ["rk45", "unipc"] and int(rows[0][1]) >= 8 and rows[1][1] == "2"
  records = [json.loads(line) for line in (folder / "solvers" / "scores.jsonl").read_text().splitlines()]
  assert [record["nfe"] for record in records] == [int(rows[0][1]), 2]


def test_a_run_with_a_task_is_scored_beside_no_model(results, folder):
  """Rows of the simple way and of each setting; records and pictures, of seven images too; the second time stored."""
  code, out, err = results["task"]
  assert code == 0, err
  rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
  header = ["sampler", "NFE", "PSNR", "PSNR of all pixels", "Fréchet distance (digits)"]
  settings = [["mean colour", "–"], ["decoupled", "1"], ["decoupled", "2"]]
  assert rows[0] == header and [row[:2] for row in rows[2:]] == settings
  assert "2 blocks of 7 images" in out and "digits/test (297)" in out
  records = [json.loads(line) for line in (folder / "task/evaluation/scores.jsonl").read_text().splitlines()]
  assert len(records) == 3 * 2 * 3 and {r["task"]["name"] for r in records} == {"inpaint"}
  assert {r["checkpoint"]["name"] for r in records} == {"mean colour", "task"}
  for name in ("images_mean colour_0.png", "images_decoupled_1.png", "images_decoupled_2.png", "scores.png"):
    assert (folder / "task/evaluation" / name).read_bytes()[:4] == b"\x89PNG"
  size = PIL.Image.open(folder / "task/evaluation/images_decoupled_1.png").size
  assert size == (7 * 33 - 1, 3 * 33 - 1)  # condition, image, truth of 8×8 pixels, four times as large
  assert results["task again"][:2] == [0, out]


def test_own_images_are_filled(results, folder):
  """Pixels around the hole stay as they are; a picture beside shows both; nothing is replaced unasked."""
  code, out, err = results["filled"]
  assert code == 0 and "1 images by step 24, decoupled, NFE 1 a window" in out, err
  own, holes, filled = (np.asarray(PIL.Image.open(folder / name / "a.png")) for name in ("own", "holes", "filled"))
  assert filled.shape == own.shape == (11, 12) and (filled != own)[holes > 0].any()
  np.testing.assert_array_equal(filled[holes == 0], own[holes == 0])
  assert PIL.Image.open(folder / "filled" / "beside" / "a.png").size == (25, 11)
  for name, said in {
    "filled again": "--out={tmp}/filled: {tmp}/filled/a.png is already there",
    "masks for all": "--masks=: a folder of masks is needed for task inpaint",
    "no holes": "a.png (image 0) has no hole",
    "own images of no task": "--workdir={tmp}/run: a run that has no task",
  }.items():
    code, _, err = results[name]
    assert code == 2 and said.format(tmp=folder) in err, (name, err)


def test_recovery_from_the_command_line(results, folder):
  """A row a noise level; what is on file is not computed again, and other models stand beside."""
  code, out, err = results["recovered"]
  assert code == 0, err
  cells = lambda out: [[c.strip() for c in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
  header, _, *rows = cells(out)
  assert header == ["σ", "Fréchet distance (digits)"] and [row[0] for row in rows] == ["0.1", "2"]
  assert "1 block of 20 images" in out and "digits/all (1,797), of which a block has a part" in out
  text = (folder / "recovered" / "recovery.jsonl").read_text()
  assert [json.loads(line)["recovery"]["sigma"] for line in text.splitlines()] == [0.1, 2.0]
  assert {path.name for path in (folder / "recovered").iterdir()} == {
    "recovery.jsonl", "recovery.md", "recovery.png", "recovery_images.png"
  }  # fmt: skip
  code, again, err = results["recovered again"]
  assert code == 0, err
  header, _, *others = cells(again)
  assert header[1:] == [f"{name}: Fréchet distance (digits)" for name in (folder / "run", folder / "other" / "run")]
  assert others == [row + row[1:] for row in rows[::-1]]


def test_a_study_from_the_command_line(results, folder):
  """Trained and scored once; a table, the scores and a plot are written, the same by --collect; a part writes none."""
  code, out, err = results["study"]
  assert code == 0, err
  table = [line for line in out.splitlines() if line.startswith("|")]
  assert table[0].split() == "| steps | Euler 1 | Euler 2 |".split() and len(table) == 4
  assert out.count("[1/2]") == out.count("[2/2]") == 1
  code, again, err = results["study again"]
  assert code == 0 and "/2]" not in again and again.endswith(out[out.index("**Steps**") :]), err
  listed = [line.split() for line in results["study listed"][1].splitlines()]
  assert [words[:3] for words in listed] == [["trained", "2", "scores"]] * 2
  assert results["study collected"][0] == 0, results["study collected"][2]
  for name in ("README.md", "scores.jsonl", "nfe.png"):
    assert (folder / "results" / name).read_bytes() == (folder / "collected" / name).read_bytes()
  assert sorted(path.name for path in (folder / "results").iterdir()) == ["README.md", "nfe.png", "scores.jsonl"]
  code, out, err = results["study in part"]
  assert code == 0 and "2 scores are on file" in out, err


def test_a_part_has_what_its_runs_start_from(results, folder):
  """A pupil is of its teacher's part, and says why it is not trained where that one diverged."""
  code, out, err = results["pupils"]
  names = [line.split()[1].rpartition("/")[2] for line in out.splitlines() if line.startswith("[")]
  assert code == 2 and [name.split("_")[0] for name in names] == ["teacher", "pupil"], err
  last = err.splitlines()[-1]
  assert last.startswith(f"error: {names[0]}: the last 5 updates") and "Traceback" not in err
  assert last.endswith(f"; {names[1]}: not trained, as it starts from {names[0]}")
  assert results["no pupils"][:2] == [0, "--part=1/2: nothing is left for it\n"]


def test_images_that_are_there_are_scored(results, folder):
  """100 held-out digits, of which the real ones are a part, against all digits and against stored statistics."""
  code, out, err = results["images"]
  assert code == 0, err
  assert "1 block of 100 images" in out
  code, out, err = results["reference"]
  assert code == 0 and "297 images of digits/test by digits" in out, err
  code, _, err = results["against a reference"]
  assert code == 0, err
  (record,) = [json.loads(line) for line in (folder / "against" / "scores.jsonl").read_text().splitlines()]
  assert record["reference"]["name"] == "digits.npz" and record["reference"]["num_images"] == 297
  (to_all,) = [json.loads(line) for line in (folder / "given" / "scores.jsonl").read_text().splitlines()]
  assert 0 < to_all["value"] < 10 and to_all["value"] != record["value"]


@pytest.mark.parametrize("text, wanted", [("0-3,7", [0, 1, 2, 3, 7]), ("5", [5]), (" 2 , 4-4 ", [2, 4])])
def test_seeds_are_numbers_and_ranges(text, wanted):
  assert cli.seeds(text) == wanted


@pytest.mark.parametrize("text", ["", ",", "1,", "a", "3-1", "-1", "1-2-3", "1.5", str(2**32), f"0-{2**32}"])
def test_malformed_seeds_are_usage_errors(text):
  with pytest.raises(cli.UsageError, match=r"--seeds=.*expected numbers and ranges"):
    cli.seeds(text)
