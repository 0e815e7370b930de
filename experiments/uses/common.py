"""What the uses of a trained run share: the run, its images, and where results go.

Each program is run from the repository's root and writes OUT.png or OUT.gif, and OUT.csv.
"""

import csv
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import cli, methods, sampling
from diffusion_jax.config import ConfigError
from diffusion_jax.data import sources
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.process import Process
from diffusion_jax.types import Params

OUT = flags.DEFINE_string("out", None, "Where to write OUT.png or OUT.gif, and OUT.csv.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is there.")
model_flags = cli.ModelFlags(published=False)


class Subject(NamedTuple):
  """A trained run, as its samplers see it."""

  config: ConfigDict
  method: methods.Method
  process: Process
  grid: np.ndarray
  bind: Callable  # (variables, labels) -> denoise, see sampling.denoiser_of
  variables: Params
  name: str

  @property
  def shape(self) -> tuple[int, int, int]:
    data = self.config.data
    return data.resolution, data.resolution, data.channels

  def in_steps(self, count: int) -> np.ndarray:
    """The grid of the run's sampler in another number of steps."""
    setting = self.config.sampling.copy_and_resolve_references()
    setting.num_steps = count
    return sampling.schedule_of(setting, self.method)[1]


def opened() -> Subject:
  """The run of --workdir, with the flags of its sampling put in.

  Raises:
    UsageError, ConfigError: --out or --workdir is missing, a file is there already, or the run has no ODE.
  """
  for path in _paths():
    if path.exists() and not OVERWRITE.value:
      raise cli.UsageError(f"--out={OUT.value}: {path} is already there; pass --overwrite or another --out")
  model = model_flags.open()
  setting = model.config.sampling
  try:
    bind = sampling.denoiser_of(setting, model.method)
  except ConfigError as error:
    raise cli.UsageError(f"--workdir={model_flags.path}: needs a run that an ODE solver can sample: {error}") from None
  process, grid = sampling.schedule_of(setting, model.method)
  return Subject(model.config, model.method, process, grid, bind, model.variables, model.name)


def real(config, split: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
  """The first images [N, H, W, C] in [−1, 1] of a split of the run's data; their labels [N], None without classes."""
  config = config.copy_and_resolve_references()
  config.data.split = split
  source = sources.from_config(config)
  examples = source.gather(np.arange(min(count or len(source), len(source))))
  labels = np.asarray(examples["label"]) if config.data.num_classes else None
  return sampling.in_range(examples["image"]), labels


def numbers(flag, kind: Callable, least, most) -> list:
  """The comma-separated numbers of a flag, each in [least, most]."""
  try:
    found = [kind(text) for text in flag.value]
  except ValueError:
    found = []
  if not found or not all(least <= number <= most for number in found):
    raise cli.UsageError(f"--{flag.name}={','.join(flag.value)}: expected numbers in [{least:g}, {most:g}]")
  return found


def rms(difference) -> np.ndarray:
  """Root mean square a pixel of each image [B, ...], [B]."""
  difference = np.asarray(difference, np.float64)
  return np.sqrt(np.mean(difference**2, axis=tuple(range(1, difference.ndim))))


def draw(rows, left, below=(), title: str = ""):
  """Writes OUT.png: rows of images [n, H, W, C] in [−1, 1], with a name each."""
  figure, axes = images_lib.figure(1, 1, (len(rows), len(rows[0])), rows[0].shape[1])
  images_lib.draw(axes[0, 0], rows, title, left, below)
  with out(".png").open("wb") as file:
    figure.savefig(file, dpi=images_lib.DPI, bbox_inches="tight", format="png")


def table(header: list[str], rows: list[list]):
  """Writes OUT.csv, and prints it."""
  rows = [[f"{v:.5g}" if isinstance(v, float | np.floating) else v for v in row] for row in rows]
  with out(".csv").open("w") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([header, *rows])
  for row in (header, *rows):
    print("  ".join(f"{value!s:>12}" for value in row))
  print(f"written: {', '.join(str(path) for path in _paths() if path.exists())}")


def out(suffix: str) -> epath.Path:
  path = epath.Path(f"{OUT.value}{suffix}")
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


def _paths() -> list[epath.Path]:
  if not OUT.value:
    raise cli.UsageError("--out is missing: where to write OUT.png or OUT.gif, and OUT.csv")
  return [epath.Path(f"{OUT.value}{suffix}") for suffix in (".png", ".gif", ".csv")]
