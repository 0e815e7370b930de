"""The index of tables and figures: nothing missing, nothing that points nowhere, and what it prints."""

import importlib
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from papers import PAPERS, Given  # noqa: E402  experiments/ is no package

# Numbered tables and figures of each paper.
COUNTS = {"edm": (2, 5), "dual_output": (2, 8), "dddm": (3, 17), "decoupled": (6, 12), "dpdm": (8, 6)}


def entries(name):
  return importlib.import_module(f"papers.{name}").ENTRIES


@pytest.mark.parametrize("name", PAPERS)
def test_every_numbered_table_and_figure_is_there(name):
  names = [entry.name for entry in entries(name)]
  assert len(set(names)) == len(names)
  for kind, count in zip(("table", "figure"), COUNTS[name]):
    numbers = {int(n.removeprefix(kind).rstrip("ab")) for n in names if n.startswith(kind)}
    assert numbers == set(range(1, count + 1))


@pytest.mark.parametrize("name", PAPERS)
def test_rows_fit_their_header(name):
  for entry in entries(name):
    assert entry.about and "\n" not in entry.about
    for row in entry.published.rows if entry.published else ():
      assert len(row) == len(entry.published.header), entry.name


def test_a_few_numbers_by_hand():
  """Each looked up in its paper: EDM's best, Dual-Output at 5 steps, DDM at 10, DPDM's recovery at σ = 1."""
  cell = lambda paper, name, row, column: next(
    dict(zip(e.published.header, r))[column]
    for e in entries(paper) if e.name == name for r in e.published.rows if r[0] == row
  )  # fmt: skip
  assert cell("edm", "table2", "F + Non-leaky augmentation", "CIFAR-10 conditional VP") == 1.79
  assert cell("edm", "table2", "A Baseline", "FFHQ-64 VE") == 25.95
  flat = lambda paper, name: [v for e in entries(paper) if e.name == name for r in e.published.rows for v in r]
  assert {35.12, 11.68, 41.99, 45.53} <= set(flat("dual_output", "table1"))
  assert {13.92, 58.94} <= set(flat("decoupled", "table4"))
  assert {28.46, 7.11, 229.71} <= set(flat("dpdm", "table1"))


GIVEN = {
  "built-in": Given("out", "runs"),
  "published": Given("out", "runs", "pickles", "references", "inception.pth", "data.zip"),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_commands_name_programs_and_flags_that_exist(given):
  """Every command is a program of this repository; its files under configs/ and experiments/ are there."""
  found = 0
  for name in PAPERS:
    for entry in entries(name):
      if entry.committed:
        assert (ROOT / entry.committed).exists(), entry
      if entry.commands is None or (entry.name == "figure5b" and given.checkpoints):
        continue
      for command in entry.commands(given):
        python, program, *arguments = shlex.split(command)
        assert python == "python" and (ROOT / program).exists(), command
        for argument in arguments:
          file = argument.removeprefix("--config=").partition(":")[0]
          if file.startswith(("experiments/", "configs/")):
            assert (ROOT / file).exists(), command
        found += 1
  assert found >= 7


def test_what_is_missing_is_said():
  (figure,) = [entry for entry in entries("edm") if entry.name == "table2"]
  with pytest.raises(ValueError, match="--checkpoints needs --references"):
    figure.commands(Given("out", "runs", "pickles"))
  (figure,) = [entry for entry in entries("edm") if entry.name == "figure5b"]
  with pytest.raises(ValueError, match="were not published"):
    figure.commands(GIVEN["published"])


def run(*arguments, cwd=ROOT):
  command = [sys.executable, str(ROOT / "experiments/paper.py"), *arguments]
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
  return done.returncode, done.stdout, done.stderr


def test_the_list_and_a_table_made_by_its_command(tmp_path):
  code, out, err = run("--list")
  assert code == 0, err
  missing = [entry for name in PAPERS for entry in entries(name) if entry.commands is None]
  assert all(f"\n{name}: " in out for name in PAPERS) and out.count("  to come ") == len(missing) > 0
  code, out, err = run("edm", "figure3", f"--out={tmp_path}", cwd=tmp_path)  # from wherever
  assert code == 0, err
  assert (tmp_path / "edm" / "figure3.png").exists() and "figure3.py" in out
  code, out, err = run("edm", "table2", "--show")
  assert code == 0 and "| F + Non-leaky augmentation | 1.79 " in out and "experiments/study.py" in out, err
  assert not (tmp_path / "edm" / "table2").exists()
