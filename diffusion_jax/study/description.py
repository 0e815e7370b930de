"""What a study is: networks, ways of evaluating them, and the tables and plots that show their scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class StudyError(ValueError):
  """A study that cannot be run; its message is one line."""


class Run(NamedTuple):
  """A network: trained from a config, or published.

  Attributes:
    labels: what tables call it, {"network": "VP", "config": "A"}.
    config: file with a get_config(), "configs/edm_digits.py" or with its argument "configs/edm_cifar10.py:cond-vp-F".
    fields: overrides by dotted names, {"train.num_steps": 1000}.
    checkpoint: a published EDM pickle, which is not trained and has one seed; then `config` is "".
    reference: file of statistics of the real images; by default they are the config's data.
    data: fields of config.data that say what the real images are, where `config` does not.
    init: labels of a run before this one, {"network": "teacher"}, from whose network of the same seed this one starts:
      it is put into config.init_from. They need not be all of its labels, but must be those of no other.
  """

  labels: Mapping[str, str]
  config: str = ""
  fields: Mapping[str, object] = {}
  checkpoint: str = ""
  reference: str | None = None
  data: Mapping[str, object] = {}
  init: Mapping[str, str] = {}


class Evaluation(NamedTuple):
  """A way of sampling, or a noise level that real images are recovered from.

  Attributes:
    labels: what tables call it, {"sampler": "Heun"}.
    sampling: fields of config.sampling, {"sampler": "heun", "num_steps": 18}.
    when: labels of the runs that it is for; all by default.
    recovery: a noise level σ at which real images are perturbed, to be denoised once in place of sampling (see
      `evaluation.recovery`): every one of them once a block, whatever num_images; `sampling` is then empty.
  """

  labels: Mapping[str, str]
  sampling: Mapping[str, object] = {}
  when: Mapping[str, str] = {}
  recovery: float | None = None


class Table(NamedTuple):
  """A table: one row for each combination of the labels `rows`, in a cell mean ± standard deviation over seeds.

  Attributes:
    title: above it.
    rows: labels; "NFE" is the network evaluations.
    columns: labels whose combinations are columns; without any, the metrics are.
    metrics: names of `scoring.METRICS`.
    when: labels that rows are restricted to.
  """

  title: str
  rows: Sequence[str]
  columns: Sequence[str] = ()
  metrics: Sequence[str] = ("frechet",)
  when: Mapping[str, str] = {}


class Plot(NamedTuple):
  """A plot of a metric: panels and lines by labels, the spread over seeds as a band.

  Attributes:
    name: of the PNG.
    x: label on the horizontal axis, of numbers; "NFE" is the network evaluations.
    line: label, one line for each value.
    panel: label, one panel for each value; "" for one panel.
    metric: on the vertical axis.
    when: labels that points are restricted to.
  """

  name: str
  x: str
  line: str
  panel: str = ""
  metric: str = "frechet"
  when: Mapping[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Study:
  """What is run, measured and shown.

  Attributes:
    runs: networks.
    evaluations: ways of sampling each, or of recovering real images.
    tables: shown in this order.
    plots: likewise.
    seeds: config.seed of each run; tables show mean and standard deviation over them.
    metrics: of `scoring.METRICS`; what there is for the data by default.
    num_images: images a score, but of recovery.
    blocks: blocks of seeds a score; a seed's score is their mean.
    extractor: see `bench.scorers_for`.
    about: a paragraph above the results.

  Raises:
    StudyError: `metrics` is not a list of names.
  """

  runs: Sequence[Run]
  evaluations: Sequence[Evaluation] = (Evaluation({}),)
  tables: Sequence[Table] = ()
  plots: Sequence[Plot] = ()
  seeds: Sequence[int] = (0, 1, 2)
  metrics: Sequence[str] | None = None
  num_images: int = 1000
  blocks: int = 1
  extractor: str | None = None
  about: str = ""

  def __post_init__(self):
    if isinstance(self.metrics, str):
      raise StudyError(f"metrics must be a list of names such as ({self.metrics!r},), got {self.metrics!r}")
