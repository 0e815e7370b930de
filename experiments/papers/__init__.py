"""The index of the five papers' tables and figures: what each shows, the paper's own numbers, and what makes ours.

A paper is a module of this package with a TITLE and its ENTRIES, in the paper's order; experiments/paper.py reads them.
"""

import shlex
from collections.abc import Callable
from typing import NamedTuple

PAPERS = ("edm", "dual_output", "dddm", "decoupled", "dpdm")


class Table(NamedTuple):
  """Numbers as a paper prints them.

  Attributes:
    header: the columns' names.
    rows: as many cells as the header: text, numbers, or None where the paper has a dash or nothing.
  """

  header: tuple[str, ...]
  rows: tuple[tuple[str | float | int | None, ...], ...]


class Given(NamedTuple):
  """What the user has, and where results go.

  Attributes:
    out: folder of the results.
    runs: folder of the workdirs that studies train.
    checkpoints: folder of the published pickles, under the names they were published with; "" for none.
    references: folder of statistics of real images (cifar10-32x32.npz, …); "" for none.
    inception: file of Inception's weights; "" for none.
    data: zip of images; "" for the built-in data.
  """

  out: str
  runs: str
  checkpoints: str = ""
  references: str = ""
  inception: str = ""
  data: str = ""


def command(program: str, *arguments: str, **flags: str) -> str:
  """A command line of a program under experiments/, as a shell would take it."""
  words = ["python", f"experiments/{program}", *arguments, *(f"--{name}={value}" for name, value in flags.items())]
  return shlex.join(words)


def train(given: Given, config: str, run: str, **fields: str) -> str:
  """Trains RUNS/run by configs/CONFIG and other fields if it is not there, on the data that are given if any."""
  fields = {f"config.{name}": value for name, value in fields.items()}
  data = {"config.data.path": given.data} if given.data else {}
  return command("train.py", config=f"configs/{config}", workdir=f"{given.runs}/{run}", **fields, **data)


def real(given: Given, reference: str) -> dict[str, str]:
  """The flags of an evaluation on real data, as papers have it.

  Raises:
    ValueError: --references or --inception is missing.
  """
  if not given.references or not given.inception:
    raise ValueError("--data needs --references, statistics of the real images, and --inception, its weights")
  files = {"reference": f"{given.references}/{reference}", "inception": given.inception}
  return {**files, "num_images": "50000", "blocks": "1"}


class Entry(NamedTuple):
  """One table or figure of a paper.

  Attributes:
    name: "table2", "figure5"; parts that are made apart are entries of their own, "figure5a".
    about: what it shows, in a line.
    published: the paper's numbers, None for pictures.
    commands: (Given) -> the commands, run from the repository's root, that make ours; None while that is to come.
    committed: text of the results that came out here, from the repository's root; "" for none.
  """

  name: str
  about: str
  published: Table | None = None
  commands: Callable[[Given], list[str]] | None = None
  committed: str = ""
