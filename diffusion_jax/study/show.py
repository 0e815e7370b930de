"""A study's scores as tables and plots: means and spreads over seeds."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from diffusion_jax.evaluation import records, report
from diffusion_jax.study.description import Plot, StudyError, Table


def rows(found: Iterable[dict], metric: str, when: Mapping[str, str] = {}) -> list[tuple[dict, float]]:
  """(labels, value) of one metric by its main extractor: a seed's mean over blocks, in the order of the records."""
  groups, labels = {}, {}
  for record in found:
    study = record["study"]
    if record["metric"] == metric and record["main"] and all(study.get(name) == when[name] for name in when):
      key = records.digest(study)
      labels[key] = study
      groups.setdefault(key, []).append(record["value"])
  return [(labels[key], float(np.mean(values))) for key, values in groups.items()]


def markdown(table: Table, found: Sequence[dict]) -> str:
  """A table of a study in Markdown; empty cells have no score yet.

  Raises:
    StudyError: a cell would hold several scores of one seed, since a label that tells them apart is neither in rows nor
      in columns.
  """
  cells = {}  # {row: {(column, metric): {seed: value}}}
  for metric in table.metrics:
    for labels, value in rows(found, metric, table.when):
      row = tuple(labels.get(name) for name in table.rows)
      column = tuple(labels.get(name) for name in table.columns)
      cell = cells.setdefault(row, {}).setdefault((column, metric), {})
      if labels["seed"] in cell:
        raise StudyError(f"table {table.title!r}: rows and columns do not tell {labels} from another score")
      cell[labels["seed"]] = value
  columns = list(dict.fromkeys(column for row in cells.values() for column in row))
  full = max((len(cell) for row in cells.values() for cell in row.values()), default=0)
  one = len(table.metrics) == 1
  name = lambda column, metric: " ".join([*map(str, column), *([] if one and column else [_title(metric, found)])])
  header = [*table.rows, *(name(*column) for column in columns)]
  values = lambda cell, column: list(cell.get(column, {}).values())
  lines = [[*row, *(_cell(values(cell, column), full) for column in columns)] for row, cell in cells.items()]
  what = f"{_title(table.metrics[0], found)}, " if one and table.columns and cells else ""
  return f"**{table.title}** ({what}{full} seed{'s' * (full != 1)})\n\n{report.markdown(header, lines)}"


def _title(metric: str, found: Sequence[dict]) -> str:
  names = {r["extractor"]["name"]: 0 for r in found if r["metric"] == metric and r["main"]}
  return " / ".join(report.title(metric, name) for name in names) or metric


def _cell(values: Sequence[float] | None, full: int) -> str:
  if not values:
    return ""
  text = report.plus_minus(records.over_blocks(values))
  return text if len(values) == full else f"{text} [{len(values)}]"


def _number(plot: Plot, value) -> float:
  try:
    return float(value)
  except (TypeError, ValueError):
    raise StudyError(f"plot {plot.name!r}: x = {plot.x!r}: expected numbers, got {value!r}") from None


def draw(plot: Plot, found: Sequence[dict], path, note: str = "") -> bool:
  """Draws a plot of a study; whether there was anything to draw. Scores without its x are left out.

  Raises:
    StudyError: a value of its x is no number.
  """
  panels = {}
  for labels, value in rows(found, plot.metric, plot.when):
    if plot.x not in labels:
      continue
    panel = labels.get(plot.panel, "") if plot.panel else _title(plot.metric, found)
    line = panels.setdefault(panel, {}).setdefault(str(labels.get(plot.line)), {})
    line.setdefault(_number(plot, labels[plot.x]), []).append(value)
  points = {
    panel: {
      line: [(x, (stats := records.over_blocks(values))["mean"], stats["std"]) for x, values in by_x.items()]
      for line, by_x in lines.items()
    }
    for panel, lines in panels.items()
  }
  if points:
    ylabel = _title(plot.metric, found) if plot.panel else ""
    report.plot(path, points, "network evaluations" if plot.x == "NFE" else plot.x, ylabel, note)
  return bool(points)
