"""What the figures share: a PNG beside the CSV of what it shows.

A figure's program is run from the repository's root, for instance

  python experiments/figures/figure3.py --out=experiments/results/edm_digits/figure3
"""

import csv

import matplotlib
import numpy as np
from absl import flags
from etils import epath

from diffusion_jax import cli

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  after the choice of a backend without a window

OUT = flags.DEFINE_string("out", None, "Where to write OUT.png and OUT.csv; a folder where there are several figures.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is there.")


def outputs(name: str = "") -> tuple[epath.Path, epath.Path]:
  """OUT.png and OUT.csv, or OUT/NAME.png and OUT/NAME.csv.

  Raises:
    UsageError: --out is missing, or they are there and may not be replaced.
  """
  if not OUT.value:
    raise cli.UsageError(f"--out is missing: {'a folder' if name else 'where to write OUT.png and OUT.csv'}")
  out = str(epath.Path(OUT.value) / name) if name else OUT.value
  png, table = epath.Path(out + ".png"), epath.Path(out + ".csv")
  for path in (png, table):
    if path.exists() and not OVERWRITE.value:
      raise cli.UsageError(f"--out={OUT.value}: {path} is already there; pass --overwrite or another --out")
  png.parent.mkdir(parents=True, exist_ok=True)
  return png, table


def write(figure: plt.Figure, header: list[str], rows: list[list], name: str = ""):
  """Writes the figure and the numbers it shows to `outputs(name)`."""
  png, table = outputs(name)
  with png.open("wb") as file:
    figure.savefig(file, dpi=120, bbox_inches="tight", format="png")
  plt.close(figure)
  with table.open("w") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{v:.6g}" if isinstance(v, float | np.floating) else v for v in row] for row in rows)
  print(f"wrote {png} and {table}")
