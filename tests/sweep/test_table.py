"""Reports from a folder alone: sorted tables, CSV, plots, and the members that have no scores."""

import csv
import io

import pytest
from sweep import sweeps

from diffusion_jax.study import StudyError
from diffusion_jax.sweep import Plot, Sweep, SweepError, chain, folder, plan, product, table, values


def record(value, metric="frechet", block=0):
  return {
    "metric": metric,
    "value": value,
    "main": True,
    "extractor": {"name": "digits"},
    "reference": {"name": "digits/all", "num_images": 1797},
    "num_images": 16,
    "seeds": [16 * block, 16 * block + 15],
    "versions": {"jax": "0"},
    "device": "1 × cpu",
  }


def written(root, sweep, scores):
  """The folder of a sweep whose members have these scores (lists of records), states, or no status yet."""
  members = plan.members(sweep)
  plan.write(root, "sweep.py", sweep, members)
  for member, given in zip(members, scores):
    if isinstance(given, str):
      folder.set_status(member.path(root), given, "because")
    elif given:
      folder.set_status(member.path(root), folder.DONE, scores=given)
  return table.read(root)


@pytest.fixture
def five(tmp_path):
  """Two learning rates × two samplers and a fifth: done, done, done, failed, missing."""
  members = chain(
    product(values("optimizer.learning_rate", (1e-5, 2e-3)), values("sampling.sampler", ("heun", "euler"))),
    [{"sampling.sampler": "heun"}],
  )
  both = lambda distance, recall: [record(distance), record(distance + 2, block=1), record(recall, "recall")]
  sweep = Sweep(sweeps.TINY, members, num_images=16, blocks=2, metrics=("frechet", "recall"), about="Why.")
  return written(tmp_path, sweep, [both(4.0, 0.5), both(2.0, 0.25), both(3.0, 0.75), "failed", None])


def column(text, name):
  lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
  return [line[lines[0].index(name)] for line in lines[2:]]


def test_the_best_comes_first_in_every_column(five):
  distance, recall = "Fréchet distance (digits)", "recall (digits)"
  assert column(table.text(*five), distance) == ["3.000", "4.000", "5.000"]  # means over blocks
  assert column(table.text(*five, sort="recall"), recall) == ["0.750", "0.500", "0.250"]
  assert column(table.text(*five, sort=recall, descending=False), recall) == ["0.250", "0.500", "0.750"]
  assert column(table.text(*five, sort="frechet", descending=True), distance) == ["5.000", "4.000", "3.000"]
  assert column(table.text(*five, sort="learning_rate"), "learning_rate") == ["1e-05", "1e-05", "0.002"]
  assert column(table.text(*five, sort="sampler"), "sampler") == ["euler", "heun", "heun"]
  with pytest.raises(SweepError, match="--sort=smapler: expected one of learning_rate, .*; nearest: sampler"):
    table.text(*five, sort="smapler")


def test_what_has_no_scores_is_listed_below(five):
  text = table.text(*five)
  assert "Why." in text and "3 done, 1 failed, 1 missing." in text
  failed = five[1][3]
  assert f"- failed: learning_rate=0.002,sampler=euler: because ({failed.log})" in text
  assert "- missing: sampler=heun\n" in text + "\n"
  assert str(failed.log).endswith("/log.txt")


def test_csv_has_all_members_and_numbers_in_full(five):
  rows = list(csv.DictReader(io.StringIO(table.as_csv(five[1]))))
  assert [row["state"] for row in rows] == ["done"] * 3 + ["failed", "missing"]
  assert [row["Fréchet distance (digits)"] for row in rows] == ["3.0", "4.0", "5.0", "", ""]
  assert rows[0]["learning_rate"] == "1e-05" and rows[0]["NFE"] == "3" and rows[4]["learning_rate"] == ""
  assert rows[3]["reason"] == "because" and rows[3]["member"] == five[1][3].id
  assert list(rows[0])[-3:] == ["state", "reason", "log"]


def test_a_plot_of_whatever_varies(five, tmp_path):
  assert table.draw(*five, tmp_path / "a.png") and (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
  rate, half_life = values("optimizer.learning_rate", (1e-3, 2e-3)), values("ema.half_life_images", (100, 200))
  seeds, sampler = values("seed", (0, 1)), values("sampling.sampler", ("heun", "euler"))
  steps = values("sampling.num_steps", (1, 2))
  for i, (members, wanted) in enumerate([
    (product(rate, half_life), Plot("report", "learning_rate", "half_life_images")),
    (product(rate, sampler, steps), Plot("report", "NFE", "sampler", "learning_rate")),
    (product(values("seed", (3,)), steps), Plot("report", "NFE", "")),
    (seeds, Plot("report", "seed", "")),
    ([{}], Plot("report", "NFE", "")),
  ]):  # fmt: skip
    sweep = Sweep(sweeps.TINY, members, metrics=("frechet",), num_images=16)
    described, rows = written(tmp_path / str(i), sweep, [[record(float(j))] for j in range(len(members))])
    assert table._plot(rows, "frechet") == wanted
    assert table.draw(described, rows, tmp_path / f"{i}.png")


@pytest.fixture
def lines(monkeypatch):
  """{line: number of its points} of the plot that is drawn next."""
  seen = {}
  plot = lambda path, panels, *args: seen.update({k: len(v) for lines in panels.values() for k, v in lines.items()})
  monkeypatch.setattr(table.show.report, "plot", plot)
  return seen


def test_members_that_differ_are_no_repeats_in_a_plot(lines, tmp_path):
  """Labels that are neither x, lines nor panels go into the line's name."""
  rate, half_life = values("optimizer.learning_rate", (1e-3, 2e-3), "rate"), values("ema.half_life_images", (5, 7), "h")
  sampler, steps = values("sampling.sampler", ("heun", "euler")), values("sampling.num_steps", (1, 2))
  members = product(sampler, rate, half_life, steps)
  scores = [[record(float(i))] for i in range(len(members))]
  sweep = Sweep(sweeps.TINY, members, metrics=("frechet",), num_images=16)
  described, rows = written(tmp_path / "default", sweep, scores)
  assert table.draw(described, rows, tmp_path / "a.png")
  assert lines == {f"h {h}, rate {r}": 2 for h in (5, 7) for r in (0.001, 0.002)}
  lines.clear()
  plot = Plot("report", "NFE", "sampler", "h")
  table.draw({**described, "plot": plot._asdict()}, rows, tmp_path / "a.png")
  assert lines == {f"{s}, rate {r}": 2 for s in ("heun", "euler") for r in (0.001, 0.002)}


def test_seeds_are_repeats_in_a_plot(lines, tmp_path):
  members = product(values("seed", (0, 1)), values("optimizer.learning_rate", (1e-3, 2e-3), "rate"))
  sweep = Sweep(sweeps.TINY, members, metrics=("frechet",), num_images=16, plot=Plot("report", "rate", ""))
  assert table.draw(*written(tmp_path, sweep, [[record(float(i))] for i in range(4)]), tmp_path / "a.png")
  assert lines == {"all": 2}


def test_text_on_the_x_axis_of_a_sweep_that_was_planned_before(five, tmp_path):
  described, rows = five
  with pytest.raises(StudyError, match="x = 'sampler': expected numbers, got 'heun'"):
    table.draw({**described, "plot": Plot("report", "sampler", "")._asdict()}, rows, tmp_path / "a.png")


def test_nothing_is_done_yet(tmp_path):
  described, rows = written(tmp_path, Sweep(sweeps.TINY, values("seed", (0, 1))), [None, "submitted"])
  text = table.text(described, rows)
  assert "1 missing, 1 submitted." in text and "|" not in text
  assert table.as_csv(rows).count("\n") == 3 and not table.draw(described, rows, tmp_path / "a.png")
  with pytest.raises(SweepError, match="no sweep here"):
    table.read(tmp_path / "elsewhere")


def test_a_plan_written_again_touches_nothing(tmp_path):
  sweep = Sweep(sweeps.TINY, values("seed", (0, 1)), metrics=("frechet",), plot=Plot("report", "seed", ""))
  written(tmp_path, sweep, [])
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
  written(tmp_path, sweep, [])
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
