"""A sweep's report, from its folder alone: one table, one plot, and what failed."""

import csv
import difflib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.evaluation import report, scoring
from diffusion_jax.study import Plot, show
from diffusion_jax.sweep import folder, plan, slurm
from diffusion_jax.sweep.description import SweepError


class Row(NamedTuple):
  """A member, as it is now.

  Attributes:
    name: "sampler=heun,num_steps=9".
    path: its folder.
    labels: with "NFE".
    state: see `folder`.
    reason: why it failed or stopped, or what it is doing.
    who: "host:pid" of the process that said so.
    records: its scores as of `bench.score`, with "main" and "study", its labels.
  """

  name: str
  path: Path
  labels: dict
  state: str
  reason: str
  who: str
  records: list[dict]

  @property
  def id(self) -> str:
    """Its folder, "GROUP/ID"."""
    return f"{self.path.parent.parent.name}/{self.path.name}"

  @property
  def log(self) -> Path:
    """What its processes printed."""
    return self.path.parent.parent / "log.txt"


def read(root: Path) -> tuple[dict, list[Row]]:
  """(sweep.json, its members) of a sweep's folder.

  Raises:
    SweepError: no sweep is there.
  """
  if not (root / "sweep.json").exists():
    raise SweepError(f"{root}: no sweep here, sweep.json is missing")
  described = folder.read_json(root / "sweep.json")
  rows = []
  paths = [plan.member_path(root, member["group"], member["id"]) for member in described["members"]]
  for member, path, found in zip(described["members"], paths, slurm.statuses(paths)):
    who = f"{found['host']}:{found['pid']}" if "host" in found else ""
    scores = [{**record, "study": member["labels"]} for record in found.get("scores", [])]
    rows.append(Row(member["name"], path, member["labels"], found["state"], found["reason"], who, scores))
  return described, rows


def metrics(rows: Sequence[Row]) -> dict[str, str]:
  """{metric: its title} of all scores by main extractors, in their order."""
  names = {}
  for record in (record for row in rows for record in row.records if record["main"]):
    names.setdefault(record["metric"], {})[record["extractor"]["name"]] = None
  return {metric: " / ".join(report.title(metric, each) for each in found) for metric, found in names.items()}


def columns(rows: Sequence[Row]) -> list[str]:
  """What `cells` gives: labels, NFE, metrics, "member"."""
  return [*_labels(rows), *metrics(rows).values(), "member"]


def _labels(rows: Sequence[Row]) -> list[str]:
  """All labels in their order, NFE last."""
  return [*dict.fromkeys(name for row in rows for name in row.labels if name != "NFE"), "NFE"]


def cells(row: Row, rows: Sequence[Row]) -> dict[str, object]:
  """{column: value} of a member, those that it has; a score is the mean over blocks."""
  out = {**row.labels, "member": row.id}
  for metric, title in metrics(rows).items():
    for _, value in show.rows(row.records, metric):
      out[title] = value
  return out


def ordered(rows: Sequence[Row], sort: str | None = None, descending: bool | None = None) -> list[Row]:
  """The members that have scores, sorted; those without the column come last.

  Args:
    rows: from `read`.
    sort: a column or a metric's name; the first metric by default.
    descending: largest first; by default only for metrics of which more is better. So the best comes first.

  Raises:
    SweepError: there is no such column; names the nearest.
  """
  names, known = metrics(rows), columns(rows)
  column = next(iter(names.values()), "member") if sort is None else names.get(sort, sort)
  if column not in known:
    near = difflib.get_close_matches(column, [*known, *names], 1, 0.0)
    raise SweepError(f"--sort={sort}: expected one of {', '.join([*known, *names])}; nearest: {near[0]}")
  if descending is None:
    descending = any(names.get(metric) == column for metric in scoring.LARGER_IS_BETTER)
  value = lambda row: cells(row, rows).get(column)
  done = [row for row in rows if row.state == folder.DONE]
  have = [row for row in done if value(row) is not None]
  number_or_text = lambda row: (1, value(row)) if isinstance(value(row), str) else (0, value(row))
  return sorted(have, key=number_or_text, reverse=descending) + [row for row in done if value(row) is None]


def as_csv(rows: Sequence[Row], sort: str | None = None, descending: bool | None = None) -> str:
  """The table with numbers in full, and below it the members without scores, with state, reason and log."""
  out = io.StringIO()
  names = ["name", *columns(rows), "state", "reason", "log"]
  writer = csv.DictWriter(out, names, lineterminator="\n")
  writer.writeheader()
  for row in ordered(rows, sort, descending) + [row for row in rows if row.state != folder.DONE]:
    more = {"name": row.name, "state": row.state, "reason": row.reason, "log": str(row.log)}
    writer.writerow({**cells(row, rows), **more})
  return out.getvalue()


def others(rows: Sequence[Row]) -> str:
  """The members without scores, a line each: what failed with its reason and log, and what is still to come."""
  lines = []
  for state in (folder.FAILED, folder.STOPPED, folder.RUNNING, folder.WAITING, folder.SUBMITTED, folder.MISSING):
    for row in rows:
      if row.state == state:
        what = f"{row.reason} ({row.log})" if state == folder.FAILED else row.reason
        lines.append(f"- {state}: {row.name}" + f": {what}" * bool(what))
  return "\n".join(lines)


def counts(rows: Sequence[Row]) -> str:
  """ "10 done, 2 failed"."""
  states = [row.state for row in rows]
  return ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))


def text(described: dict, rows: Sequence[Row], sort: str | None = None, descending: bool | None = None) -> str:
  """The report in Markdown."""
  header = columns(rows)
  lines = [[_cell(row, name, cells(row, rows)) for name in header] for row in ordered(rows, sort, descending)]
  parts = [described["about"], f"    python experiments/sweep.py run {described['sweep']}", f"{counts(rows)}."]
  parts += [report.markdown(header, lines)] if lines else []
  parts += [_against(rows), others(rows)]
  return "\n\n".join(filter(None, parts))


def _cell(row: Row, name: str, values: dict):
  """Labels as they were given, 1e-05; scores are rounded by the table."""
  return str(row.labels[name]) if name in row.labels else values.get(name)


def _against(rows: Sequence[Row]) -> str:
  found = [record for row in rows for record in row.records]
  if not found:
    return ""
  images = sorted({record["num_images"] for record in found})
  real = sorted({f"{r['reference']['name']} ({r['reference']['num_images']:,})" for r in found})
  note = f"{', '.join(f'{n:,}' for n in images)} images a score. Real images: {', '.join(real)}. "
  return note + ", ".join(sorted({f"JAX {r['versions']['jax']}, {r['device']}" for r in found})) + "."


def draw(described: dict, rows: Sequence[Row], path: Path) -> bool:
  """Draws the plot of all members that have scores; whether there was any."""
  found = [dict(record) for row in rows for record in row.records]
  if not found:
    return False
  plot = Plot(**described["plot"]) if described["plot"] else _plot(rows, next(iter(metrics(rows))))
  lines = [plot.line, *_mixed(plot, rows)]
  for record in found:
    labels = {"": "all", **record["study"]}
    line = ", ".join(_shown(name, labels[name]) for name in lines if name in labels and (name or len(lines) == 1))
    shown = {plot.line: line} if line else {}
    if plot.panel in record["study"]:
      shown[plot.panel] = _shown(plot.panel, labels[plot.panel])
    record["study"] = {**labels, **shown}
  return show.draw(plot, found, path, f"{found[0]['num_images']:,} images a score")


def _shown(name: str, value) -> str:
  return f"{name} {value:g}" if isinstance(value, int | float) else value


def _mixed(plot: Plot, rows: Sequence[Row]) -> list[str]:
  """Labels that a plot does not show, and without which it would take different members for repeats of one.

  Repeats are what differs in the seed alone; where x is NFE, num_steps says the same.
  """
  shown, more = [plot.x, plot.line, plot.panel], []
  rows = [row for row in rows if row.records and plot.x in row.labels]
  for name in _labels(rows):
    if name in shown or name in ("seed", "NFE") or (plot.x == "NFE" and name == "num_steps"):
      continue
    points = {}
    for row in rows:
      point = tuple(row.labels.get(label) for label in [*shown, *more])
      points.setdefault(point, set()).add(row.labels.get(name))
    if any(len(values) > 1 for values in points.values()):
      more.append(name)
  return more


def _plot(rows: Sequence[Row], metric: str) -> Plot:
  """Over NFE or else the first label of numbers; of other labels that vary, the last is lines, the first panels."""
  rows = [row for row in rows if row.records]
  values = {name: {row.labels.get(name) for row in rows} for name in _labels(rows)}
  varying = [name for name in values if len(values[name]) > 1 and name != "NFE"]
  numbers = [name for name in varying if all(isinstance(value, int | float) for value in values[name])]
  x = "NFE" if len(values["NFE"]) > 1 or not numbers else numbers[0]
  rest = [name for name in varying if name != x and not (x == "NFE" and name == "num_steps")]
  return Plot("report", x, rest[-1] if rest else "", rest[0] if len(rest) > 1 else "", metric)
