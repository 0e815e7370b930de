"""What a sweep is: a base config and its members, each some fields of it overridden.

    product(values("sampling.sampler", ("heun", "euler")), values("sampling.num_steps", (5, 9)))      4 members
    zipped(values("train.batch_size", (32, 64)), values("optimizer.learning_rate", (1e-3, 2e-3)))      2 members
    chain(these, those)                                                                   the members of both

An axis is a list of overrides; product, zipped and chain make one of several. An override is also written as a plain
{"dotted.field": value}. The field "config" is the file of the base config itself.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from diffusion_jax.study.description import Plot, StudyError


class SweepError(StudyError):
  """A sweep that cannot be run; its message is one line."""


class Override(NamedTuple):
  """Fields of a config, and what tables call them.

  Attributes:
    fields: by dotted names, {"optimizer.learning_rate": 1e-3}.
    labels: columns of the report, {"rate": 1e-3}.
  """

  fields: Mapping[str, object]
  labels: Mapping[str, object]


Axis = Sequence[Override | Mapping[str, object]]


def values(field: str, given: Iterable | Mapping[object, object], label: str = "") -> list[Override]:
  """An axis of one field.

  Args:
    field: its dotted name.
    given: its values, or {what tables call it: value}.
    label: its column; the last part of its name by default.
  """
  named = given.items() if isinstance(given, Mapping) else [(value, value) for value in given]
  return [Override({field: value}, {label or _column(field): name}) for name, value in named]


def product(*axes: Axis) -> list[Override]:
  """Every combination of one override from each axis, the last axis fastest.

  Raises:
    SweepError: two axes set the same field or the same label.
  """
  return [_merged(chosen) for chosen in itertools.product(*axes)]


def zipped(*axes: Axis) -> list[Override]:
  """The first overrides of all axes together, the second ones together, and so on.

  Raises:
    SweepError: the axes differ in length, or two set the same field or the same label.
  """
  lengths = [len(axis) for axis in axes]
  if len(set(lengths)) > 1:
    raise SweepError(f"zipped: expected axes of one length, got {lengths}")
  return [_merged(chosen) for chosen in zip(*axes)]


def chain(*axes: Axis) -> list[Override]:
  """The overrides of all axes, one axis after another."""
  return [as_override(each) for axis in axes for each in axis]


def as_override(given: Override | Mapping[str, object]) -> Override:
  """An override of a plain {field: value}, whose labels are the last parts of the names.

  Raises:
    SweepError: it is neither, or two of its fields have the same last part.
  """
  if isinstance(given, Override):
    return given
  if not isinstance(given, Mapping):
    raise SweepError(f"expected an override such as {{'train.num_steps': 100}}, got {given!r}")
  return _merged([values(field, (value,))[0] for field, value in given.items()])


def _column(field: str) -> str:
  return field.rpartition(".")[2]


def _merged(chosen: Iterable[Override | Mapping[str, object]]) -> Override:
  fields, labels = {}, {}
  for override in map(as_override, chosen):
    for what, known, more in (("field", fields, override.fields), ("label", labels, override.labels)):
      for name in more:
        if name in known:
          hint = "; values(…, label=…) names a column" if what == "label" else ""
          raise SweepError(f"two overrides of a member set the {what} {name!r}{hint}")
      known.update(more)
  return Override(fields, labels)


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What is trained and scored.

  Attributes:
    config: file of the base config, as --config takes it.
    members: overrides of it, from the functions above.
    metrics: of `scoring.METRICS`; what there is for the data by default. The report is sorted by the first.
    num_images: images a score.
    blocks: blocks of seeds a score.
    extractor: see `bench.scorers_for`.
    plot: of the report; by default over NFE, or over the first label of numbers where NFE is the same for all.
    about: a paragraph above the report.
  """

  config: str
  members: Axis
  metrics: Sequence[str] | None = None
  num_images: int = 1000
  blocks: int = 1
  extractor: str | None = None
  plot: Plot | None = None
  about: str = ""
