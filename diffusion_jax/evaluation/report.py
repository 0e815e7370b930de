"""Scores to read: tables in Markdown, plots of score against network evaluations."""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from diffusion_jax.evaluation import scoring
from diffusion_jax.evaluation.features import INCEPTION

_NAMES = {
  "inception_score": "Inception Score",
  "precision": "precision",
  "recall": "recall",
  "kernel_distance": "kernel distance",
  "memorised": "memorised share",
  "psnr": "PSNR",
  "psnr_pooled": "PSNR of all pixels",
  "mae": "MAE",
  "mae_binary": "MAE at ½",
}


def title(metric: str, extractor: str) -> str:
  """What a score is called: FID and KID only where Inception's features are compared."""
  own = extractor == INCEPTION
  name = {"frechet": "FID" if own else "Fréchet distance", "kernel_distance": "KID" if own else "kernel distance"}
  text = name.get(metric, _NAMES.get(metric, metric))
  return text if own or extractor == "pairs" or metric == "memorised" else f"{text} ({extractor})"


def cell(stats: Mapping[str, float], metric: str) -> str:
  """Mean ± standard deviation, and the best in brackets: "0.516 ± 0.038 (0.483)"."""
  best = stats["max" if metric in scoring.LARGER_IS_BETTER else "min"]
  return f"{plus_minus(stats)} ({number(best, stats['mean'])})" if stats["min"] < stats["max"] else plus_minus(stats)


def plus_minus(stats: Mapping[str, float]) -> str:
  """Mean ± standard deviation: "0.516 ± 0.038"; the mean alone where there is one value."""
  mean = number(stats["mean"])
  return f"{mean} ± {number(stats['std'], stats['mean'])}" if stats["min"] < stats["max"] else mean


def number(value, scale: float | None = None) -> str:
  """A number to about four digits of `scale` (itself by default), at most four decimals; text stays, None is a dash.

  From 10,000 on without decimals, in thousands.
  """
  if value is None:
    return "–"
  if isinstance(value, str | int) or not np.isfinite(value):
    return str(value)
  if value == 0:
    return "0"
  size = abs(value if scale is None else scale)
  decimals = 4 if size < 0.1 else 3 if size < 10 else 2 if size < 100 else 1 if size < 10_000 else 0
  return f"{value:,.0f}" if decimals == 0 else f"{value:.{decimals}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence]) -> str:
  """A Markdown table whose columns line up as text too."""
  lines = [[str(name) for name in header]] + [[number(value) for value in row] for row in rows]
  for line in lines:
    if len(line) != len(header):
      raise ValueError(f"every row must have {len(header)} cells, got {line}")
  widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
  text = lambda line: "| " + " | ".join(value.ljust(width) for value, width in zip(line, widths)) + " |"
  rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
  return "\n".join([text(lines[0]), rule, *map(text, lines[1:])])


Lines = Mapping[str, Sequence[tuple[float, float, float]]]  # {name: [(x, mean, spread), …]}


def plot(path, panels: Mapping[str, Lines], xlabel: str, ylabel: str = "", note: str = ""):
  """Draws {panel: {line: [(x, mean, spread), …]}} as a PNG, the spread as a band; replaces the file.

  Args:
    path: of the PNG.
    panels: side by side, in their order.
    xlabel: under each of them; the axis is logarithmic where all x are positive.
    ylabel: beside the first; logarithmic where values differ by a factor of 3.
    note: a line above.
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt
  from matplotlib import ticker

  figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
  for ax, (name, lines) in zip(axes[0], panels.items()):
    draw_lines(ax, lines)
    ax.set(title=name, xlabel=xlabel)
    points = [point for line in lines.values() for point in line]
    x, means = ({point[i] for point in points} for i in (0, 1))
    if min(x) > 0:
      ax.set_xscale("log")
      ax.set_xticks(_apart(sorted(x)), minor=False)
      ax.xaxis.set_major_formatter("{x:g}")
      ax.xaxis.set_minor_locator(ticker.NullLocator())
    if 0 < 3 * min(means) < max(means):
      ax.set_yscale("log")
      ax.yaxis.set_major_formatter("{x:g}")
      ax.yaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
  axes[0][0].set_ylabel(ylabel)
  if note:
    figure.suptitle(note, fontsize=9)
  figure.tight_layout()
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("wb") as file:
    figure.savefig(file, dpi=120, format="png")
  plt.close(figure)


def _apart(values: Sequence[float]) -> list[float]:
  """Of rising positive values those well above the last one taken, 13 at most: labels that do not overlap."""
  out, ratio = [], max(1.2, (values[-1] / values[0]) ** (1 / 12))
  for value in values:
    if not out or value >= ratio * out[-1]:
      out.append(value)
  return out


def draw_lines(axes, lines: Lines):
  """Draws named lines of (x, mean, spread) into Matplotlib's axes, the spread as a band."""
  for name, points in lines.items():
    x, mean, spread = np.array(sorted(points)).T
    (line,) = axes.plot(x, mean, "o-", label=name, markersize=3)
    axes.fill_between(x, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0)
  axes.legend(fontsize=7)
