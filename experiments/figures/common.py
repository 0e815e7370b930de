"""What the figures share: a PNG beside the CSV of what it shows, and scores of runs that are computed once.

A figure's program is run from the repository's root, for instance

  python experiments/figures/figure2.py --runs=runs/table1 --out=experiments/results/edm_digits/figure2
"""

import csv
import json

import matplotlib
import numpy as np
from absl import flags
from etils import epath

from diffusion_jax import cli, sampling
from diffusion_jax import config as config_lib
from diffusion_jax.evaluation import digits
from diffusion_jax.training import checkpoint

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  after the choice of a backend without a window

OUT = flags.DEFINE_string("out", None, "Where to write OUT.png and OUT.csv.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace OUT.png and OUT.csv if they are there.")


def outputs() -> tuple[epath.Path, epath.Path]:
  """OUT.png and OUT.csv; a UsageError if --out is missing, or they are there and may not be replaced."""
  if not OUT.value:
    raise cli.UsageError("--out is missing: where to write OUT.png and OUT.csv")
  png, table = epath.Path(OUT.value + ".png"), epath.Path(OUT.value + ".csv")
  for path in (png, table):
    if path.exists() and not OVERWRITE.value:
      raise cli.UsageError(f"--out={OUT.value}: {path} is already there; pass --overwrite or another --out")
  png.parent.mkdir(parents=True, exist_ok=True)
  return png, table


def write(figure: plt.Figure, header: list[str], rows: list[list]):
  """Writes the figure and the numbers it shows."""
  png, table = outputs()
  figure.savefig(png, dpi=120, bbox_inches="tight")
  plt.close(figure)
  with table.open("w") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{v:.6g}" if isinstance(v, float | np.floating) else v for v in row] for row in rows)
  print(f"wrote {png} and {table}")


class Scores:
  """Fréchet distances of digit runs, each computed once: WORKDIR/scores.jsonl keeps them, so a figure may be resumed.

  Attributes:
    num_images: images a score, seeds 0, 1, …; the same for all that are compared, since few images raise it.
  """

  def __init__(self, num_images: int):
    self.num_images, self._model = num_images, (None, None)

  def __call__(self, workdir, **fields) -> tuple[int, float]:
    """(evaluations an image, Fréchet distance) of a run's newest checkpoint under config.sampling with `fields`."""
    workdir = epath.Path(workdir)
    config = checkpoint.read_config(workdir)
    if config.data.name != "digits":
      raise config_lib.wrong("data.name", config.data.name, "the built-in score is that of digits")
    config.sampling.update(fields)
    if self._model[0] != workdir:
      self._model = workdir, checkpoint.load_for_inference(workdir)
    method, variables, step = self._model[1]
    key = {"step": step, "num_images": self.num_images, "sampling": dict(config.sampling)}
    cache = workdir / "scores.jsonl"
    for line in cache.read_text().splitlines() if cache.exists() else []:
      record = json.loads(line)
      if record["key"] == key:
        return record["nfe"], record["frechet"]
    images = sampling.generate(config, method, variables, np.arange(self.num_images))
    nfe = sampling.evaluations(config.sampling, method)
    record = {"key": key, "nfe": nfe, "frechet": digits.score(images)["frechet"]}
    with cache.open("a") as file:
      file.write(json.dumps(record) + "\n")
    print(f"{workdir.name} {fields} NFE {record['nfe']}: {record['frechet']:.3f}", flush=True)
    return record["nfe"], record["frechet"]


def seeds_of(runs: epath.Path, column: str) -> list[epath.Path]:
  """The workdirs RUNS/COLUMN_0, RUNS/COLUMN_1, …; a UsageError if there is none."""
  found = sorted(path for path in epath.Path(runs).glob(f"{column}_[0-9]*") if (path / "config.json").exists())
  if not found:
    raise cli.UsageError(f"--runs={runs}: no run {column}_0 there; train configs/ablations/table1_digits.py:{column}")
  return found


def mean_and_spread(values) -> tuple[float, float]:
  """Mean and standard deviation over seeds (0 for one seed)."""
  return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def draw_lines(axes, lines: dict[str, list[tuple[float, float, float]]]):
  """Draws named lines of (x, mean, spread), with the spread as a band."""
  for name, points in lines.items():
    x, mean, spread = np.array(points).T
    (line,) = axes.plot(x, mean, "o-", label=name, markersize=3)
    axes.fill_between(x, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0)
  axes.legend(fontsize=7)
