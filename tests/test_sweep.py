"""A sweep from the command line: 12 members, two of which fail at run time; what is done is never touched again."""

import csv
import json
import os
import signal

import pytest
from sweep import sweeps

from diffusion_jax.sweep import folder as sweep_folder

TWELVE = (
  sweeps.HEAD
  + f"""Sweep(
    {sweeps.TINY!r},
    chain(
      values("optimizer.learning_rate", (3e-3,), "rate"),  # its process is killed
      product(
        values("optimizer.learning_rate", (1e-3, 2e-3), "rate"),
        chain(
          product(values("sampling.sampler", ("euler", "heun")), values("sampling.num_steps", (1, 2))),
          [{{"sampling.sampler": "euler", "sampling.num_steps": 3}}],
        ),
      ),
      values("optimizer.learning_rate", (1e30,), "rate"),  # diverges
    ),
    metrics=("frechet",), num_images=16,
  )
"""
)


def stamps(root, groups):
  """{file: time of its last change} of everything in some groups' folders."""
  return {path: path.stat().st_mtime_ns for group in groups for path in [root / group, *(root / group).rglob("*")]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sweep")
  (folder / "twelve.py").write_text(TWELVE)
  return folder


@pytest.fixture(scope="module")
def server(folder):
  server = sweeps.Server(folder)
  yield server
  server.close()


def test_two_of_twelve_fail_and_a_rerun_touches_only_them(folder, server):
  root, argv = folder / "runs", ("run", folder / "twelve.py", f"--runs={folder / 'runs'}")
  running = server.start(*argv, **sweeps.SHORT)

  def process():  # of the first group, at work
    for path in root.glob("*/members/*/status.json"):
      return json.loads(path.read_text())["pid"]

  os.kill(sweeps.wait_for(process), signal.SIGKILL)
  code, out, err = running.end()
  assert code == 1 and err.endswith("not done: 2 failed\n"), out + err
  assert "12 members: 0 done, 12 to run in 4 trainings" in out and "10 done, 2 failed." in out

  listed = {m["name"]: m for m in json.loads((root / "sweep.json").read_text())["members"]}
  killed, diverged = listed["rate=0.003"]["group"], listed["rate=1e+30"]["group"]
  others = {m["group"] for m in listed.values()} - {killed, diverged}
  assert len(listed) == 12 and len(others) == 2  # five ways of sampling share a training
  for reason, group in (("was killed by SIGKILL", killed), ("Diverged: the last 2 updates before step", diverged)):
    (line,) = [line for line in out.splitlines() if line.startswith("- failed:") and reason in line]
    assert f"({root / group / 'log.txt'})" in line
  assert "process" in (root / killed / "log.txt").read_text()
  assert "Traceback" in (root / diverged / "log.txt").read_text()

  with open(root / "report.csv") as file:
    rows = list(csv.DictReader(file))
  assert [row["state"] for row in rows] == ["done"] * 10 + ["failed"] * 2
  scores = [float(row["Fréchet distance (digits)"]) for row in rows[:10]]
  assert scores == sorted(scores) and {row["NFE"] for row in rows[:10]} == {"1", "2", "3"}
  assert (root / "report.png").read_bytes()[:4] == b"\x89PNG"
  table = [line for line in out.splitlines() if line.startswith("|")]
  assert len(table) == 12 and table[0].split("|")[1:5] == [" rate  ", " sampler ", " num_steps ", " NFE "]

  # Again, from two terminals at once: each failed group is taken by one of them.
  before = stamps(root, others)
  both = [server.start(*argv, **sweeps.SHORT) for _ in range(2)]
  outs = [process.end()[1] for process in both]
  assert stamps(root, others) == before
  assert all("12 members: 10 done, 2 to run in 2 trainings" in text for text in outs), outs
  for group in (killed, diverged):
    log = (root / group / "log.txt").read_text()
    processes = log.count(f": {next(m['id'] for m in listed.values() if m['group'] == group)}\n")
    assert processes - log.count("another process is at work there") == 2, log  # the first time, and now
  steps = [json.loads(line)["step"] for line in (root / killed / "metrics.jsonl").read_text().splitlines()]
  assert steps == [2, 4]

  code, out, err = server.start("status", root).end()
  assert code == 0 and out.splitlines()[-1] == "11 done, 1 failed", out + err
  code, out, err = server.start("report", root, "--sort=NFE", "--descending").end()
  assert code == 0, err
  nfe = [line.split("|")[4].strip() for line in out.splitlines() if line.startswith("|")][2:]
  assert len(nfe) == 11 and nfe == sorted(nfe, key=int, reverse=True)


def test_sigterm_saves_and_the_same_command_goes_on(folder, server):
  (folder / "one.py").write_text(sweeps.HEAD + f'Sweep({sweeps.TINY!r}, [{{}}], metrics=("frechet",), num_images=16)\n')
  root, long = folder / "one", {"train.num_steps": 1_000_000, "train.checkpoint_every": 1_000_000}
  process = server.start("run", folder / "one.py", f"--runs={root}", **long)
  sweeps.wait_for(lambda: any(path.stat().st_size for path in root.glob("*/metrics.jsonl")))
  process.terminate()
  code, out, err = process.end()
  assert code == 0 and "stopped; the same command goes on" in out, out + err
  (status,) = root.glob("*/members/*/status.json")
  found = json.loads(status.read_text())
  assert found["state"] == "stopped" and "at step" in found["reason"]
  step = int(found["reason"].split()[-1])
  assert (status.parents[2] / "checkpoints" / str(step)).is_dir()
  code, out, err = server.start("list", folder / "one.py", f"--runs={root}", **long).end()
  assert code == 0 and out.startswith("stopped "), out + err
  with sweep_folder.hold(status.parents[2]):
    code, out, err = server.start("run", folder / "one.py", f"--runs={root}", **long).end()
  assert code == 1 and "another process is at work there" in out, out + err
  assert err.endswith("not done: 1 stopped; others are at work elsewhere\n")


MISTAKES = {
  "no command": ((), "expected run FILE"),
  "no file": (("run", "{tmp}/nothing.py"), "nothing.py: no such file"),
  "no sweep": (("status", "{tmp}"), "no sweep here"),
  "field": (("list", "{tmp}/twelve.py", "--set=train.num_stpes=3"), "nearest: config.train.num_steps"),
  "value": (("list", "{tmp}/twelve.py", "--set=train.num_steps"), "expected FIELD=VALUE"),
  "jobs": (("run", "{tmp}/twelve.py", "--jobs=0"), "--jobs=0: at least 1"),
  "launcher": (("run", "{tmp}/twelve.py", "--partition=gpu"), "--partition does not go with --launcher=local"),
  "other launcher": (("run", "{tmp}/twelve.py", "--launcher=slurm", "--devices=all"), "--devices does not go with"),
  "devices": (("run", "{tmp}/twelve.py", "--devices=a"), "--devices=a: expected all, or numbers"),
  "object store": (("run", "{tmp}/twelve.py", "--runs=gs://bucket/s"), "--runs=gs://bucket/s: expected a folder"),
  "device twice": (("run", "{tmp}/twelve.py", "--devices=0,0"), "--devices=0,0: a device is named twice"),
  "plot": (("run", "{tmp}/plot.py"), "plot: x = 'rat': expected a label of the members, one of num_steps, NFE"),
  "other sweep": (("run", "{tmp}/other.py", "--runs={tmp}/held"), "holds the sweep of first.py, not of "),
  "weights": (("run", "{tmp}/twelve.py", "--inception={tmp}/none.pth"), "none.pth: no such file"),
}


def test_a_mistake_is_one_line_and_exit_code_2(folder, server):
  (folder / "wrong.py").write_text(sweeps.HEAD + f'Sweep({sweeps.TINY!r}, [{{"sampling.sampler": "huen"}}])\n')
  wanted = "error: member sampler=huen: config.sampling.sampler = 'huen': expected one of "
  mistakes = {**MISTAKES, "member": (("run", "{tmp}/wrong.py", "--runs={tmp}/new"), wanted)}
  (folder / "plot.py").write_text(
    f"from diffusion_jax.sweep import Plot\n{sweeps.HEAD}"
    f'Sweep({sweeps.TINY!r}, [{{"sampling.num_steps": 2}}], plot=Plot("report", "rat", ""))\n'
  )
  (folder / "other.py").write_text(sweeps.HEAD + f'Sweep({sweeps.TINY!r}, [{{}}], metrics=("frechet",))\n')
  (folder / "held").mkdir()
  (folder / "held" / "sweep.json").write_text('{"sweep": "first.py"}')
  for argv, wanted in mistakes.values():
    code, out, err = server.start(*(arg.replace("{tmp}", str(folder)) for arg in argv)).end()
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, err
    assert wanted in err, err
  assert not (folder / "new").exists()
  assert sorted(path.name for path in (folder / "held").iterdir()) == ["lock", "sweep.json"]


def test_the_default_folder_is_one_of_its_own(folder, server):
  """Whatever the argument of the sweep."""
  text = f"{sweeps.HEAD}Sweep({sweeps.TINY!r}, [{{}}])\n"
  (folder / "any.py").write_text(text.replace("get_sweep()", "get_sweep(argument)"))
  code, out, err = server.start("list", f"{folder / 'any.py'}:../../a b").end()
  assert code == 0 and out.endswith("runs/sweeps/any_a-b\n"), out + err
