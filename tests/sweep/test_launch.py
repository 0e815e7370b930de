"""The folder of a sweep, its lock, and the local launcher with processes of the test in place of trainings."""

import json
import os
import signal
import subprocess
import sys
import threading
import types

import pytest
from sweep import sweeps

from diffusion_jax.sweep import SweepError, devices, folder, local, worker

HOLD = "import sys, time; from pathlib import Path; from diffusion_jax.sweep import folder\n"
HOLD += "with folder.hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
  """A process that holds the lock of tmp_path / "g"."""
  env = {**os.environ, "PYTHONPATH": str(sweeps.ROOT)}
  process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "g")], env=env, stdout=subprocess.PIPE)
  assert process.stdout.readline() == b"held\n"
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_a_lock_ends_with_its_process(tmp_path, holder):
  workdir, member = tmp_path / "g", tmp_path / "g" / "members" / "a"
  folder.set_status(member, folder.RUNNING, "training")
  assert folder.busy(workdir) and folder.status(member)["state"] == folder.RUNNING
  with pytest.raises(folder.Busy, match="another process is at work there"):
    with folder.hold(workdir, patience=0.1):
      pass
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert not folder.busy(workdir)
  found = folder.status(member)
  assert found["state"] == folder.FAILED and f"process {os.getpid()} on " in found["reason"]
  assert "ended while training: killed, or out of memory" in found["reason"]
  with folder.hold(workdir, patience=0.1):
    assert folder.busy(workdir)


def test_what_only_waits_for_its_scores_has_not_failed(tmp_path):
  folder.set_status(tmp_path / "g" / "members" / "a", folder.WAITING, "trained")
  assert folder.status(tmp_path / "g" / "members" / "a")["state"] == folder.STOPPED
  assert folder.status(tmp_path / "g" / "members" / "b") == {"state": folder.MISSING, "reason": ""}


def test_a_folder_that_cannot_serve(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(SweepError, match="cannot be written"):
    folder.set_status(tmp_path / "file" / "a", folder.DONE)
  with pytest.raises(SweepError, match="cannot be written"):
    with folder.hold(tmp_path / "file" / "a"):
      pass


@pytest.mark.parametrize("text", ["", '{"state', "[]", '{"state": 3}'])
def test_a_status_that_cannot_be_read_has_failed(tmp_path, text):
  """So the member is run again, and the others of its sweep are launched and reported."""
  member = tmp_path / "g" / "members" / "a"
  member.mkdir(parents=True)
  (member / "status.json").write_text(text)
  assert folder.status(member) == {"state": folder.FAILED, "reason": "status cannot be read"}
  assert local.task(tmp_path / "g", ["a"]).left() == ("a",)


WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from diffusion_jax.sweep import folder
workdir, ids = Path(sys.argv[1]), sys.argv[3:]
members = [workdir / "members" / id for id in ids]
say = lambda *line: print(*line, flush=True)
say("sees", os.environ.get("CUDA_VISIBLE_DEVICES"))
if workdir.name == "unborn":
  sys.exit("ImportError: nothing works")
if workdir.name == "warned":  # as Slurm does, before anything is imported
  os.kill(os.getpid(), signal.SIGUSR1)
  os.kill(os.getpid(), signal.SIGUSR2)
for member in members:
  folder.set_status(member, folder.WAITING, "trained")
for member in members:
  folder.set_status(member, folder.RUNNING, "scoring")
  say("scores", member.name)
  if member.name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
  if member.name == "long":
    time.sleep(60)
  folder.set_status(member, folder.DONE, scores=[])
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
  """launch({workdir: ids}, slots, then) -> {member: (state, reason)}, by a launcher whose workers are WORKER."""
  popen = subprocess.Popen
  swapped = lambda command, **kwargs: popen([command[0], "-c", WORKER, *command[3:]], **kwargs)
  monkeypatch.setattr(local.subprocess, "Popen", swapped)
  monkeypatch.setenv("PYTHONPATH", str(sweeps.ROOT))

  def run(groups, slots=({},), on_line=lambda launcher, line: None):
    for name in groups:
      (tmp_path / name).mkdir()
    launcher = local.Launcher({}, slots, say=lambda line: on_line(launcher, line))
    launcher.run([local.task(tmp_path / name, ids) for name, ids in groups.items()])
    paths = {id: tmp_path / name / "members" / id for name, ids in groups.items() for id in ids}
    return {id: (folder.written(path)["state"], folder.written(path)["reason"]) for id, path in paths.items()}

  return run


def wait_until_scoring(member):
  """Not only until it has a status: WORKER says first that it waits for its scores."""
  sweeps.wait_for(lambda: folder.written(member)["state"] == folder.RUNNING)


def test_a_killed_process_fails_the_member_it_was_at_and_no_other(launch, tmp_path):
  """Those behind it in its group get another process."""
  found = launch({"first": ["a", "killed", "b"], "unborn": ["c", "d"], "last": ["e"]})
  assert {id: state for id, (state, _) in found.items()} == {
    "a": "done", "killed": "failed", "b": "done", "c": "failed", "d": "failed", "e": "done"
  }  # fmt: skip
  assert found["killed"][1] == "its process was killed by SIGKILL; the machine may have run out of memory"
  assert found["c"][1] == "its process ended with exit code 1: ImportError: nothing works"
  scored = [line for line in (tmp_path / "first" / "log.txt").read_text().splitlines() if "scores" in line]
  assert scored == ["scores a", "scores killed", "scores b"]


def test_one_process_a_device(launch, tmp_path):
  launch({name: [f"{name}{i}" for i in range(2)] for name in "abc"}, devices.slots("0,3", None))
  seen = [(tmp_path / name / "log.txt").read_text().splitlines()[0] for name in "abc"]
  assert seen[:2] == ["sees 0", "sees 3"] and seen[2] in seen[:2]


def test_a_launcher_that_is_stopped_starts_nothing_more(launch, tmp_path):
  def stop(launcher, line):
    if ", process " in line:  # it was started
      wait_until_scoring(tmp_path / "first" / "members" / "long")
      launcher.stop()

  found = launch({"first": ["long"], "second": ["a"]}, on_line=stop)
  assert found == {"long": ("stopped", "its process was killed by SIGTERM"), "a": ("missing", "")}


def test_slurms_warnings_do_not_reach_processes(launch):
  """They would end one that has not set its handlers yet."""
  assert launch({"warned": ["a"]}) == {"a": ("done", "")}


def test_no_process_outlives_a_launcher_that_raises(launch, tmp_path):
  def fail(launcher, line):
    if ", process " in line:  # it was started
      wait_until_scoring(tmp_path / "first" / "members" / "long")
      raise OSError("no space left on device")

  with pytest.raises(OSError, match="no space left"):
    launch({"first": ["long"]}, on_line=fail)
  found = folder.written(tmp_path / "first" / "members" / "long")
  assert (found["state"], found["reason"]) == ("stopped", "its process was killed by SIGTERM")


def test_sigterm_between_the_start_of_a_process_and_its_registration(launch, tmp_path, monkeypatch):
  launcher, popen = local.Launcher({}), local.subprocess.Popen

  def interrupted(*args, **kwargs):
    process = popen(*args, **kwargs)
    launcher.stop()
    return process

  monkeypatch.setattr(local.subprocess, "Popen", interrupted)
  (tmp_path / "first").mkdir()
  launcher.run([local.task(tmp_path / "first", ["long"])])
  assert folder.written(tmp_path / "first" / "members" / "long")["state"] == "stopped"


@pytest.mark.parametrize(
  "stopping, code, state",
  [
    (True, 0, "stopped"),  # a second SIGTERM met it while it wrote what became of its members
    (True, -signal.SIGTERM, "stopped"),
    (False, -signal.SIGTERM, "stopped"),
    (False, -signal.SIGUSR1, "stopped"),
    (False, -signal.SIGUSR2, "stopped"),
    (False, 0, "failed"),
    (False, -signal.SIGKILL, "failed"),
    (True, -signal.SIGSEGV, "failed"),
    (True, 1, "failed"),
  ],
)
def test_what_was_asked_to_end_has_not_failed(tmp_path, stopping, code, state):
  (tmp_path / "log.txt").write_text("")
  folder.set_status(tmp_path / "members" / "a", folder.RUNNING, "scoring")
  launcher = local.Launcher({}, say=lambda line: None)
  launcher.stopping = stopping
  launcher._ended(local.task(tmp_path, ["a"]), types.SimpleNamespace(pid=os.getpid(), returncode=code))
  assert folder.written(tmp_path / "members" / "a")["state"] == state


CHILD = """
import os, signal, time
from diffusion_jax.sweep import worker
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), os._exit(0)))
worker._end_with(os.environ[worker.LAUNCHER])
print("works", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
env = {**os.environ, "DIFFUSION_JAX_SWEEP_LAUNCHER": str(os.getpid())}
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=env, start_new_session=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_ends_with_its_launcher_however_that_ends(monkeypatch):
  env = {**os.environ, "PYTHONPATH": str(sweeps.ROOT)}
  command = [sys.executable, "-c", PARENT, CHILD]
  with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as launcher:
    assert launcher.stdout.readline() == "works\n"
    launcher.kill()
    assert launcher.stdout.read() == "saved\n"  # up to the end of the process
  monkeypatch.setattr(worker.ctypes, "CDLL", lambda _: types.SimpleNamespace(prctl=lambda *_: 0))
  with pytest.raises(worker._Terminated):  # it ended before the process could ask
    worker._end_with("1" if os.getppid() != 1 else "2")


def test_what_another_launcher_has_been_at_is_left_alone(tmp_path):
  task = local.task(tmp_path, ["a", "b"])
  assert task.left() == ("a", "b")
  folder.set_status(tmp_path / "members" / "a", folder.FAILED, "elsewhere")
  assert task.left() == ("b",) and local.task(tmp_path, ["a", "b"]).left() == ("a", "b")
  folder.set_status(tmp_path / "members" / "b", folder.SUBMITTED)  # nobody has been at it yet
  assert task.left() == ("b",)


def test_devices(monkeypatch):
  assert devices.slots(None, None) == [{}] and devices.slots(None, 3) == [{}] * 3
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
  assert [slot["CUDA_VISIBLE_DEVICES"] for slot in devices.slots("all", None)] == ["2", "5", "7"]
  assert [slot["CUDA_VISIBLE_DEVICES"] for slot in devices.slots("2,0", None)] == ["7", "2"]  # of those that it sees
  assert [slot["TPU_VISIBLE_CHIPS"] for slot in devices.slots("0,1", 1)] == ["2"]
  with pytest.raises(SweepError, match="--jobs=4: --devices=all has 3"):
    devices.slots("all", 4)
  with pytest.raises(SweepError, match="--devices=0,1,0: a device is named twice"):
    devices.slots("0,1,0", None)
  with pytest.raises(SweepError, match="--devices=0,3: there are 3, numbered from 0"):
    devices.slots("0,3", None)
  for none in ("", "-1"):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
    for asked in ("all", "0"):
      with pytest.raises(SweepError, match=f"--devices={asked}: CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS leaves none"):
        devices.slots(asked, None)
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
  monkeypatch.setattr(devices, "visible", lambda: [])
  with pytest.raises(SweepError, match="found neither NVIDIA GPUs"):
    devices.slots("all", None)


def test_gpus_are_counted_without_taking_them(tmp_path, monkeypatch):
  tool = tmp_path / "nvidia-smi"
  tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: x)'\necho 'GPU 1: NVIDIA H100 (UUID: y)'\n")
  tool.chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"):
    monkeypatch.delenv(name, raising=False)
  assert devices.visible() == ["0", "1"]


def test_status_is_replaced_in_one_step(tmp_path):
  """A reader never sees half of a file."""
  write = lambda: folder.set_status(tmp_path, folder.RUNNING, "x" * 10_000)
  write()
  writer = threading.Thread(target=lambda: [write() for _ in range(500)])
  writer.start()
  while writer.is_alive():
    assert len(json.loads((tmp_path / "status.json").read_text())["reason"]) == 10_000
