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
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
cat "$SCRIPTS/states"
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
  """sbatch, srun and sacct on the path: the first keeps its script, the last says what is in the file "states"."""
  for name, script in (("sbatch", SBATCH), ("srun", SBATCH), ("sacct", SACCT)):
    (tmp_path / name).write_text(script)
    (tmp_path / name).chmod(0o755)
  (tmp_path / "states").write_text("")
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
  results = sweeps.calls(commands)
  code, out, err = results["run"]
  assert code == 0, err
  assert "3 members: 0 done, 3 to run in 3 trainings" in out and "jobs 12_0, 12_1, 12_2" in out
  options = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", (tmp_path / "script.sh").read_text()))
  assert options["array"] == "0-2%2" and options["signal"] == "USR2@90"
  assert options["partition"] == "gpu" and options["time"] == "240" and options["job-name"] == "sweep_my_sweep"
  assert options["gpus-per-node"] == "2" and options["cpus-per-task"] == "8" and options["mem"] == "32GB"
  assert options["account"] == "mine" and options["qos"] == "low"
  script = (tmp_path / "script.sh").read_text()
  assert "submitit" in script and "#SBATCH --requeue\n" in script
  code, out, err = results["status"]
  assert code == 0 and out.splitlines()[-1] == "3 submitted", err


def test_slurm_that_is_not_there_or_refuses(tools, tmp_path, monkeypatch):
  (tools / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
  folder.set_status(tmp_path / "g" / "members" / "a", folder.FAILED, "diverged")
  tasks = [local.task(tmp_path / "g", ["a"])]
  with pytest.raises(SweepError, match="Slurm refused: .*invalid partition"):
    slurm.submit(tasks, {}, slurm.executor(tmp_path))
  assert folder.written(tmp_path / "g" / "members" / "a")["reason"] == "diverged"
  monkeypatch.setenv("PATH", "")
  with pytest.raises(SweepError, match="--launcher=slurm: .*srun"):
    slurm.executor(tmp_path)
  monkeypatch.setitem(sys.modules, "submitit", None)
  with pytest.raises(SweepError, match=r"pip install 'diffusion-jax\[slurm\]'"):
    slurm.executor(tmp_path)


def submit(root, groups):
  """(number of jobs, what was said) of groups with members as they are now."""
  said = []
  tasks = [local.task(root / name, ids) for name, ids in groups.items()]
  jobs = slurm.submit(tasks, {}, slurm.executor(root), said.append)
  return len(jobs), said


def test_what_waits_in_the_queue_or_is_at_work_is_not_submitted_again(tools, tmp_path):
  members = {id: tmp_path / id / "members" / id for id in "abc"}
  state = lambda id: slurm.statuses([members[id]])[0]["state"]
  with folder.hold(tmp_path / "c"):
    folder.set_status(members["c"], folder.RUNNING, "training")
    count, said = submit(tmp_path, {id: [id] for id in "abc"})
    assert count == 2 and said == ["c: a process is at work there"]
    assert [state(id) for id in "abc"] == ["submitted", "submitted", "running"]
  found = folder.written(members["b"])
  assert (found["job"], found["reason"]) == ("12_1", "Slurm job 12_1")

  (tmp_path / "states").write_text("12_0|RUNNING|n1\n12_1|PENDING|\n")
  count, said = submit(tmp_path, {id: [id] for id in "ab"})
  assert count == 0 and said[1] == "b: is in the queue already: Slurm job 12_1"

  (tmp_path / "states").write_text("12_0|CANCELLED by 1000|n1\n12_1|PENDING|\n")
  (cancelled,) = slurm.statuses([members["a"]])
  assert (cancelled["state"], cancelled["reason"]) == ("stopped", "Slurm job 12_0 is no more: cancelled by 1000")
  assert state("b") == "submitted" and submit(tmp_path, {id: [id] for id in "ab"})[0] == 1

  (tmp_path / "states").write_text("")  # sacct knows nothing: the job is new, or long forgotten
  assert state("b") == "submitted"
  folder.write_json(members["b"] / "status.json", {**found, "time": found["time"] - 3600})
  assert state("b") == "stopped"


def test_a_job_that_was_faster_than_submit_keeps_its_status(tools, tmp_path):
  task = local.task(tmp_path / "g", ["a", "b"])
  folder.set_status(task.paths()[0], folder.DONE, scores=[])
  slurm._set_submitted(task, "12")
  assert [folder.written(path)["state"] for path in task.paths()] == ["done", "submitted"]


def test_a_job_that_is_queued_again_says_so(tmp_path, monkeypatch):
  monkeypatch.setenv("SLURM_JOB_ID", "12")
  job, members = slurm.Job(tmp_path, ["a", "b"], {}), [tmp_path / "members" / id for id in "ab"]
  folder.set_status(members[0], folder.FAILED, "diverged")
  folder.set_status(members[1], folder.STOPPED, "at step 3")
  job.checkpoint()
  assert [folder.written(path)["state"] for path in members] == ["failed", "submitted"]
  assert folder.written(members[1])["job"] == "12"


def test_a_preempted_job_goes_on_where_it_saved(tmp_path, monkeypatch):
  """Through submitit's local executor: the job is interrupted in its training, queued again, and ends."""
  for name, value in sweeps.environment().items():
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
