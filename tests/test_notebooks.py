"""What a new user runs first: the notebook, and the Python of the README."""

import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from diffusion_jax.study import run

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "experiments").rglob("*.ipynb"))
TINY = {
  "network.channels": 8,
  "network.channel_mult": [1],
  "network.num_blocks": 1,
  "network.attention_resolutions": [],
  "train.batch_size": 8,
  "train.num_steps": 2,
  "train.log_every": 1,
}


def readme_block(word: str) -> str:
  """The README's one Python block that holds `word`."""
  blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
  (block,) = [block for block in blocks if word in block]
  return block


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert cell.outputs == [] and cell.execution_count is None


def test_quickstart_compiles_its_sampler_once_and_the_readme_loads_its_run(tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")  # one device, as a user has
  monkeypatch.setenv("QUICKSTART_RUNS", str(tmp_path / "runs"))
  monkeypatch.setenv("QUICKSTART_CONFIG", json.dumps(TINY))
  monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
  path = ROOT / "experiments" / "colab" / "quickstart.ipynb"
  notebook = nbformat.read(path, as_version=4)
  client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}})
  client.execute()  # raises at the first cell with an error

  printed = ["".join(o.text for o in c.get("outputs", []) if o.output_type == "stream" and o.name == "stdout")
             for c in notebook.cells]  # fmt: skip
  (timings,) = [text for text in printed if " steps: " in text]
  counts = re.findall(r"(\d+) steps: .* compilations so far: (\d+)", timings)
  assert len({steps for steps, _ in counts}) >= 5
  assert {count for _, count in counts} == {"1"}
  pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
  assert len(pictures) == 4  # step counts, churn, guidance, trajectories; a widget holds its own

  (tmp_path / "runs" / "quickstart").rename(tmp_path / "runs" / "edm_digits")
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(readme_block("load_for_inference"), names)
  assert names["images"].shape == (64, 8, 8, 1) and np.isfinite(names["images"]).all()


@pytest.mark.slow  # most of its minutes compile; its functions have tests of their own
def test_uses_runs_and_shows_each_use(tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("USES_RUNS", str(tmp_path / "runs"))
  monkeypatch.setenv("USES_CONFIG", json.dumps(TINY))
  monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
  path = ROOT / "experiments" / "colab" / "uses.ipynb"
  notebook = nbformat.read(path, as_version=4)
  NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
  outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
  pictures = [kind for o in outputs for kind in o.get("data", {}) if kind in ("image/png", "image/gif")]
  assert pictures == ["image/png"] * 4 + ["image/gif"]  # inversion, interpolation, SDEdit, inpainting; the animation
  printed = "".join("".join(o.text) for o in outputs if o.output_type == "stream" and o.name == "stdout")
  assert float(re.search(r"there and back: rms ([.0-9]+)", printed)[1]) < 0.05
  assert len(re.findall(r"([-.0-9]+) ± [.0-9]+ bits a dimension", printed)) == 2


def test_readme_sampler_is_exact(capsys):
  exec(readme_block("def denoise"), {})
  for line in capsys.readouterr().out.splitlines():
    mean, std = map(float, line.split()[-2:])
    assert mean == pytest.approx(0.3, abs=0.01) and std == pytest.approx(0.5, abs=0.01)


def test_study_of_the_readme(tmp_path):
  """It names configs that exist, and its table has labels of its runs and evaluations."""
  names = {}
  exec(readme_block("def get_study"), names)
  study = names["get_study"]()
  assert len(run.jobs(study, tmp_path)) == 6
  labels = {"NFE", *study.runs[0].labels, *study.evaluations[0].labels}
  assert {*study.tables[0].rows, *study.tables[0].columns} <= labels
