"""Training processes that tests start, watch, kill and compare."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 24  # tiny.get_config().train.num_steps


class Runs:
  """Starts training processes."""

  def __init__(self, folder):
    self.folder = folder

  def start(self, name, devices=1, *overrides, config="toy"):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    env = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": flags,
      "PYTHONPATH": str(ROOT),
    }
    config = ROOT / "tests" / "training" / f"{config}.py"
    argv = [sys.executable, ROOT / "experiments" / "train.py", f"--config={config}", f"--workdir={self.folder / name}"]
    with (self.folder / f"{name}.err").open("w") as err:
      return subprocess.Popen([*argv, *overrides], env=env, stdout=err, stderr=err)

  def finish(self, name, process):
    """Waits; returns what was printed, after asserting exit code 0."""
    code = process.wait(timeout=300)
    text = (self.folder / f"{name}.err").read_text()
    assert code == 0, f"{name} exited {code}:\n{text[-3000:]}"
    return text

  def wait_for_step(self, name, process, step):
    """Returns as soon as the run has logged `step`."""
    path, deadline = self.folder / name / "metrics.jsonl", time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < step:
      assert process.poll() is None and time.monotonic() < deadline, (self.folder / f"{name}.err").read_text()[-3000:]
      time.sleep(0.002)

  def wait_for_write(self, name, process, after):
    """Returns in the middle of the writing of the first checkpoint after a step."""
    folder, deadline = self.folder / name / "checkpoints", time.monotonic() + 300
    while True:
      with contextlib.suppress(FileNotFoundError):  # the folder just got its last name
        for path in folder.glob("*.orbax-checkpoint-tmp*"):
          if int(path.name.split(".")[0]) > after and any(path.rglob("d")):
            return
      assert process.poll() is None and time.monotonic() < deadline, (self.folder / f"{name}.err").read_text()[-3000:]
      time.sleep(0.0005)

  def logged(self, name):
    """The step of the last whole line of metrics; 0 if there is none."""
    path = self.folder / name / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

  def kill(self, process):
    process.kill()
    assert process.wait() == -signal.SIGKILL

  def differences(self, name, other):
    """Files in which two finished runs differ, and steps that only one of them has, in words."""
    out = []
    for file in ("metrics.jsonl", f"samples/step_{STEPS:08d}.png", "config.json"):
      if (self.folder / name / file).read_bytes() != (self.folder / other / file).read_bytes():
        out.append(file)
    if self.steps(name)[-1:] != self.steps(other)[-1:]:
      out.append("the last step")
    return out

  def metrics(self, name):
    return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]

  def copy(self, name, to):
    shutil.copytree(self.folder / name, self.folder / to)

  def steps(self, name):
    """Steps of the complete checkpoints."""
    return sorted(int(path.name) for path in (self.folder / name / "checkpoints").iterdir() if path.name.isdigit())

  def damage(self, name, step):
    """Truncates every file of a checkpoint that holds arrays, as a full disk would."""
    files = [p for p in (self.folder / name / "checkpoints" / str(step)).rglob("*") if p.is_file() and "d" in p.parts]
    assert files
    for path in files:
      os.truncate(path, path.stat().st_size // 2)
