"""One process a device: what each process sees of the accelerators of this machine."""

import itertools
import os
import subprocess
from pathlib import Path

from diffusion_jax.sweep.description import SweepError

_NAMES = ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")


def slots(devices: str | None, jobs: int | None) -> list[dict[str, str]]:
  """Environment variables of the processes that run at a time.

  Args:
    devices: "all", or numbers such as "0,2", counted among those that this process sees; None lets every process see
      all of them.
    jobs: how many processes; by default one, or one a device.

  Raises:
    SweepError: there are no such devices, one is named twice, or there are more processes than devices.
  """
  if jobs is not None and jobs < 1:
    raise SweepError(f"--jobs={jobs}: at least 1")
  if devices is None:
    return [{}] * (jobs or 1)
  chosen = _chosen(devices)
  if jobs is not None and jobs > len(chosen):
    raise SweepError(f"--jobs={jobs}: --devices={devices} has {len(chosen)}")
  return [one(name) for name in chosen[:jobs]]


def _chosen(devices: str) -> list[str]:
  """What the environment calls the devices of --devices."""
  numbers = [part.strip() for part in devices.split(",")]
  if devices != "all" and not all(number.isdecimal() for number in numbers):
    raise SweepError(f"--devices={devices}: expected all, or numbers such as 0,1,3")
  found = visible()
  if not found and any(os.environ.get(name) is not None for name in _NAMES):
    raise SweepError(f"--devices={devices}: {' or '.join(_NAMES)} leaves none")
  if devices == "all":
    if not found:
      raise SweepError("--devices=all: found neither NVIDIA GPUs (nvidia-smi) nor TPU chips; --devices=0,1 names them")
    return found
  indices = [int(number) for number in numbers]
  if len(set(indices)) < len(indices):
    raise SweepError(f"--devices={devices}: a device is named twice")
  if not found:  # of a kind that is not found here: as they are named
    return [str(i) for i in indices]
  if max(indices) >= len(found):
    raise SweepError(f"--devices={devices}: there are {len(found)}, numbered from 0")
  return [found[i] for i in indices]


def one(device: str) -> dict[str, str]:
  """The environment of a process that sees one device alone; those of the other vendor's do nothing."""
  single = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
  return {"CUDA_VISIBLE_DEVICES": device, "TPU_VISIBLE_CHIPS": device, **single}


def visible() -> list[str]:
  """The devices of this machine, found without taking them: what the environment leaves of GPUs, or TPU chips."""
  given = [os.environ[name] for name in _NAMES if os.environ.get(name) is not None]
  if given:
    names = [name.strip() for name in next(filter(None, given), "").split(",")]
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # CUDA's way of saying none
  try:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
  except (OSError, subprocess.TimeoutExpired):
    listed = ""
  gpus = sum(line.startswith("GPU ") for line in listed.splitlines())
  chips = len(list(Path("/dev").glob("accel[0-9]*"))) or len(list(Path("/dev/vfio").glob("[0-9]*")))
  return [str(i) for i in range(gpus or chips)]
