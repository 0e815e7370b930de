"""The index of the five papers' tables and figures, and the commands that make them.

  python experiments/paper.py --list                # all of them, with their state
  python experiments/paper.py edm table2            # make it, and print the paper's numbers beside ours
  python experiments/paper.py edm table2 --show     # the same with the results that came out here; computes nothing
  python experiments/paper.py edm table2 --checkpoints=PICKLES --references=STATISTICS --inception=FILE.pth

With the published checkpoints and their data the numbers are the paper's own; without, everything runs on the data that
come with the library, and shows the order of things, not the values. What is made already is not computed again.
"""

import importlib
import os
import shlex
import subprocess
import sys

from absl import flags
from etils import epath
from papers import PAPERS, Entry, Given, Table

from diffusion_jax import cli, files
from diffusion_jax.evaluation import report

_LIST = flags.DEFINE_bool("list", False, "List the tables and figures, of one paper if it is named.")
_SHOW = flags.DEFINE_bool("show", False, "Print the committed results, and the commands; compute nothing.")
_OUT = flags.DEFINE_string("out", "results", "Folder of the results, one folder a paper in it.")
_RUNS = flags.DEFINE_string("runs", "runs/studies", "Folder of the workdirs that are trained.")
_CHECKPOINTS = flags.DEFINE_string("checkpoints", "", "Folder of the published checkpoints.")
_REFERENCES = flags.DEFINE_string("references", "", "Folder of statistics of real images, cifar10-32x32.npz, …")
_INCEPTION = flags.DEFINE_string("inception", "", "Weights: weights-inception-2015-12-05-6726825d.pth.")
_DATA = flags.DEFINE_string("data", "", "Zip of images, in place of the built-in data.")

ROOT = epath.Path(__file__).resolve().parents[1]


def main():
  words = cli.arguments()
  papers = {name: importlib.import_module(f"papers.{name}") for name in PAPERS}
  if words and words[0] not in papers:
    raise cli.UsageError(f"{words[0]}: expected one of {', '.join(papers)}")
  if _LIST.value or not words:
    for name in words[:1] or papers:
      listing(name, papers[name])
    return
  entries = {entry.name: entry for entry in papers[words[0]].ENTRIES}
  if len(words) != 2 or words[1] not in entries:
    raise cli.UsageError(f"{' '.join(words)}: expected {words[0]} and one of {', '.join(entries)}")
  make(words[0], entries[words[1]])


def listing(name: str, paper):
  done = sum(entry.commands is not None for entry in paper.ENTRIES)
  print(f"\n{name}: {paper.TITLE}\n  {done} of {len(paper.ENTRIES)} in")
  width = max(len(entry.name) for entry in paper.ENTRIES)
  for entry in paper.ENTRIES:
    print(f"  {entry.name:{width}}  {state(entry):10}  {entry.about}")


def state(entry: Entry) -> str:
  """"measured": in, with results committed; "in": its commands are there; "to come"."""
  if entry.commands is None:
    return "to come"
  return "measured" if entry.committed and (ROOT / entry.committed).exists() else "in"


def make(paper: str, entry: Entry):
  """Runs an entry's commands, and prints its numbers beside the paper's."""
  out = epath.Path(_OUT.value) / paper
  folders = (out, _RUNS.value, _CHECKPOINTS.value, _REFERENCES.value, _INCEPTION.value, _DATA.value)
  given = Given(*(str(files.absolute(path)) if path else "" for path in folders))  # commands run from ROOT
  print(f"{paper} {entry.name}: {entry.about}\n")
  if entry.published is not None:
    print(f"The paper:\n\n{published(entry.published)}\n")
  if entry.commands is None:
    raise cli.UsageError(f"{paper} {entry.name} is to come: the method is not in yet")
  try:
    commands = entry.commands(given)
  except ValueError as error:
    raise cli.UsageError(str(error)) from None
  if _SHOW.value:
    print("Made by:\n" + "".join(f"\n    {command}" for command in commands))
    if state(entry) == "measured":
      print(f"\nOurs, {entry.committed}:\n\n{(ROOT / entry.committed).read_text()}")
    return
  for command in commands:
    print(f"$ {command}\n", flush=True)
    words = shlex.split(command)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    code = subprocess.run([sys.executable, *words[1:]], env=environment, cwd=ROOT).returncode
    if code:
      sys.exit(code)


def published(table: Table) -> str:
  return report.markdown(table.header, [["" if cell is None else str(cell) for cell in row] for row in table.rows])


if __name__ == "__main__":
  cli.run(main)
