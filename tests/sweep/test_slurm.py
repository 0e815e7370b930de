"""The Slurm launcher: the script that sbatch gets, and a whole job through submitit's local executor, interrupted."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from sweep import sweeps

from diffusion_jax.sweep import Sweep, SweepError, folder, local, plan, slurm, values

SBATCH = """#!/bin/sh
cp "$1" "$SCRIPTS/script.sh"
echo "Submitted batch job 12"
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
  """sbatch and srun on the path: the first keeps its script."""
  for name in ("sbatch", "srun"):
    (tmp_path / name).write_text(SBATCH)
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
  monkeypatch.setenv("SCRIPTS", str(tmp_path))
  return tmp_path


def test_the_script_that_sbatch_gets(tools, tmp_path):
  (tmp_path / "three.py").write_text(
    sweeps.HEAD + f'Sweep({sweeps.TINY!r}, values("seed", (0, 1, 2)), metrics=("frechet",), num_images=16)\n'
  )
  root = tmp_path / "my_sweep"
  argv = ["run", tmp_path / "three.py", f"--runs={root}", "--launcher=slurm", "--partition=gpu", "--time=240"]
  argv += ["--gpus_per_node=2", "--cpus_per_task=8", "--mem_gb=32", "--jobs=2"]
  argv += ["--slurm=account=mine", "--slurm=qos=low"]
  commands = {"run": sweeps.arguments(*argv), "status": sweeps.arguments("status", root)}
  results = sweeps.calls(tmp_path / "cache", commands)
  code, out, err = results["run"]
  assert code == 0, err
  assert "3 members: 0 done, 3 to run in 3 trainings" in out and "jobs 12_0, 12_1, 12_2" in out
  options = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", (tmp_path / "script.sh").read_text()))
  assert options["array"] == "0-2%2" and options["signal"] == "USR2@90"
  assert options["partition"] == "gpu" and options["time"] == "240" and options["job-name"] == "sweep_my_sweep"
  assert options["gpus-per-node"] == "2" and options["cpus-per-task"] == "8" and options["mem"] == "32GB"
  assert options["account"] == "mine" and options["qos"] == "low"
  assert "submitit" in (tmp_path / "script.sh").read_text()
  code, out, err = results["status"]
  assert code == 0 and out.splitlines()[-1] == "3 submitted", err


def test_slurm_that_is_not_there_or_refuses(tools, tmp_path, monkeypatch):
  (tools / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
  tasks = [local.task(tmp_path / "g", ["a"])]
  with pytest.raises(SweepError, match="Slurm refused: .*invalid partition"):
    slurm.submit(tasks, {}, slurm.executor(tmp_path))
  assert folder.written(tmp_path / "g" / "members" / "a")["state"] == folder.STOPPED
  monkeypatch.setenv("PATH", "")
  with pytest.raises(SweepError, match="--launcher=slurm: .*srun"):
    slurm.executor(tmp_path)
  monkeypatch.setitem(sys.modules, "submitit", None)
  with pytest.raises(SweepError, match=r"pip install 'diffusion-jax\[slurm\]'"):
    slurm.executor(tmp_path)


def test_a_preempted_job_goes_on_where_it_saved(tmp_path, monkeypatch):
  """Through submitit's local executor: the job is interrupted in its training, queued again, and ends."""
  for name, value in sweeps.environment(tmp_path / "cache").items():
    monkeypatch.setenv(name, value)
  fields = {**sweeps.SHORT, "train.num_steps": 2000, "train.checkpoint_every": 2000, "train.log_every": 10}
  sweep = Sweep(sweeps.TINY, values("sampling.num_steps", (1, 2)), metrics=("frechet",), num_images=16)
  planned = plan.members(sweep, fields)
  plan.write(tmp_path, "two.py", sweep, planned)
  tasks = [local.task(tmp_path / group, [m.id for m in these]) for group, these in plan.groups(planned).items()]
  (job,) = slurm.submit(tasks, {}, slurm.executor(tmp_path, "local", timeout_min=60))
  workdir = tasks[0].workdir
  sweeps.wait_for(lambda: (workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").stat().st_size)

  worker = folder.written(tasks[0].paths()[0])["pid"]
  parent = int(subprocess.run(["ps", "-o", "ppid=", "-p", str(worker)], capture_output=True, text=True).stdout)
  for process in (worker, parent):  # as Slurm signals every process of a job
    os.kill(process, signal.SIGUSR2)
  assert list(job.result().values()) == ["done", "done"]
  log = (workdir / "log.txt").read_text()
  saved = re.search(r"stopped by SIGTERM at step (\d+); saved", log)
  assert saved and f"resumed from step {saved[1]}" in log
  steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert steps[-1] == 2000 and steps == sorted(set(steps))
