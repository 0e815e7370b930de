"""One process a device: what each process sees of the accelerators of this machine."""

import os
import subprocess
from pathlib import Path

from diffusion_jax.sweep.description import SweepError


def slots(devices: str | None, jobs: int | None) -> list[dict[str, str]]:
  """Environment variables of the processes that run at a time.

  Args:
    devices: "all", or numbers such as "0,2"; None lets every process see all of them.
    jobs: how many processes; by default one, or one a device.

  Raises:
    SweepError: there are no such devices, or more processes than devices.
  """
  if jobs is not None and jobs < 1:
    raise SweepError(f"--jobs={jobs}: at least 1")
  if devices is None:
    return [{}] * (jobs or 1)
  found = visible()
  if devices == "all" and not found:
    raise SweepError("--devices=all: found neither NVIDIA GPUs (nvidia-smi) nor TPU chips; --devices=0,1 names them")
  chosen = found if devices == "all" else [part.strip() for part in devices.split(",")]
  if not all(name.isdigit() for name in chosen) and devices != "all":
    raise SweepError(f"--devices={devices}: expected all, or numbers such as 0,1,3")
  if jobs is not None and jobs > len(chosen):
    raise SweepError(f"--jobs={jobs}: --devices={devices} has {len(chosen)}")
  return [one(name) for name in chosen[:jobs]]


def one(device: str) -> dict[str, str]:
  """The environment of a process that sees one device alone; those of the other vendor's do nothing."""
  single = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
  return {"CUDA_VISIBLE_DEVICES": device, "TPU_VISIBLE_CHIPS": device, **single}


def visible() -> list[str]:
  """The devices of this machine, found without taking them: what the environment leaves of GPUs, or TPU chips."""
  for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"):
    if os.environ.get(name):
      return os.environ[name].split(",")
  try:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
  except (OSError, subprocess.TimeoutExpired):
    listed = ""
  gpus = sum(line.startswith("GPU ") for line in listed.splitlines())
  chips = len(list(Path("/dev").glob("accel[0-9]*"))) or len(list(Path("/dev/vfio").glob("[0-9]*")))
  return [str(i) for i in range(gpus or chips)]
