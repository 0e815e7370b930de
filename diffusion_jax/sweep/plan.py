"""From a sweep to what is launched: members with stable ids, in groups that share one training.

A group is named after the hash of what determines its updates (`study.run.config_hash`), a member after what
determines its scores besides: sampling, metrics, number of images. So neither the order of fields, nor labels, nor the
place of the folder count, and a sweep that is launched again finds what it has.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import methods
from diffusion_jax.evaluation import features, records, scoring
from diffusion_jax.study import loading
from diffusion_jax.study import run as runs
from diffusion_jax.sweep import folder
from diffusion_jax.sweep.description import Sweep, SweepError, as_override
from diffusion_jax.training import checkpoint

RESERVED = ("name", "NFE", "state", "reason", "log", "member")  # columns of every report


class Member(NamedTuple):
  """One column of settings, as the report shows it, and where it lies."""

  name: str  # "sampler=heun,num_steps=9"
  labels: dict[str, object]  # with "NFE"
  group: str  # 8 hexadecimal digits
  id: str  # 8 hexadecimal digits
  config: ConfigDict
  protocol: dict  # what is measured

  def path(self, root: Path) -> Path:
    """Its folder in a sweep's folder."""
    return member_path(root, self.group, self.id)


def member_path(root: Path, group: str, id: str) -> Path:
  """A member's folder in a sweep's folder."""
  return root / group / "members" / id


def load(path: str) -> Sweep:
  """The sweep of a file, "configs/sweeps/NAME.py" or with an argument of its get_sweep(), "NAME.py:ARGUMENT".

  Raises:
    SweepError, StudyError: there is no such file, or it is not a sweep.
  """
  sweep = loading.call(path, "get_sweep")
  if not isinstance(sweep, Sweep):
    raise SweepError(f"{path}: get_sweep() must return a diffusion_jax.sweep.Sweep, got {type(sweep).__name__}")
  return sweep


def members(sweep: Sweep, fields: Mapping[str, object] = {}, weights: Sequence[str] = ()) -> list[Member]:
  """The members of a sweep, all checked, so that none is refused after hours.

  Args:
    sweep: what is run.
    fields: put into every base config, before the members' own.
    weights: names of the extractors whose weights are given.

  Raises:
    SweepError: there is no member, two are alike, or one cannot be run; names it, the field and what was expected.
  """
  _check_protocol(sweep, weights)
  protocol = {
    "metrics": None if sweep.metrics is None else list(sweep.metrics),
    "num_images": sweep.num_images,
    "blocks": sweep.blocks,
    "extractor": sweep.extractor,
    "weights": sorted(weights),
  }
  out, by_id, by_name, opened = [], {}, {}, {}
  for override in map(as_override, sweep.members):
    member = _member(sweep, override, fields, weights, protocol, opened)
    if member.id in by_id:
      raise SweepError(f"two members are the same run: {by_id[member.id].name} and {member.name}")
    if member.name in by_name:
      raise SweepError(f"two members are called {member.name}: a label must tell them apart")
    by_id[member.id] = by_name[member.name] = member
    out.append(member)
  if not out:
    raise SweepError("the sweep has no members")
  _check_plot(sweep, out, weights)
  return out


def _member(sweep: Sweep, override, fields, weights, protocol: dict, opened: dict) -> Member:
  plain = lambda value: value if isinstance(value, str | int | float) else str(value)
  labels = {label: plain(value) for label, value in override.labels.items()}
  name = ",".join(f"{label}={value}" for label, value in labels.items()) or "base"
  for label in labels:
    if label in RESERVED:
      raise SweepError(f"member {name}: every report has a column {label!r}; values(…, label=…) names another")
  own = dict(override.fields)
  file = own.pop("config", sweep.config)
  try:
    if file not in opened:
      opened[file] = loading.load_config(file, fields)
    config = opened[file].copy_and_resolve_references()
    loading.override(config, own)
    config_lib.check(config)
    _check_metrics(sweep.metrics, _extractor(sweep, config, weights), config.data)
    group = runs.config_hash(config)
    if group not in opened:
      opened[group] = methods.from_config(config)
    nfe = runs.check_sampling(config, opened[group])
  except ValueError as error:  # ConfigError and StudyError are
    raise SweepError(f"member {name}: {' '.join(str(error).split())}") from None
  default = config_lib.default().sampling
  sampling = {key: value for key, value in config.sampling.items() if default[key] != value}
  id = records.digest([group, sampling, protocol])[:8]
  return Member(name, {**labels, "NFE": nfe}, group, id, config, protocol)


def _check_protocol(sweep: Sweep, weights: Sequence[str]):
  if sweep.metrics is not None and not sweep.metrics:
    raise SweepError(f"metrics are {', '.join(scoring.METRICS)}, got none")
  if sweep.extractor is not None and sweep.extractor not in features.NAMES:
    raise SweepError(f"extractor must be one of {', '.join(features.NAMES)}, got {sweep.extractor!r}")
  if sweep.extractor in ("inception", "vgg") and sweep.extractor not in weights:
    raise SweepError(f"extractor {sweep.extractor!r} needs the file of its weights, --{sweep.extractor}")
  for metric in sweep.metrics or ():
    if metric not in scoring.METRICS:
      raise SweepError(f"metrics are {', '.join(scoring.METRICS)}, got {metric!r}")
  least = scoring.minimum_images(sweep.metrics or ("frechet",))
  if sweep.num_images < least or sweep.blocks < 1:
    raise SweepError(f"expected num_images >= {least}, blocks >= 1, got {sweep.num_images}, {sweep.blocks}")


def _extractor(sweep: Sweep, config: ConfigDict, weights: Sequence[str]) -> str:
  """The main extractor of a member, as `bench.scorers_for` chooses it."""
  default = "digits" if config.data.name == "digits" else "inception" if "inception" in weights else "pixels"
  return sweep.extractor or default


def _check_metrics(metrics: Sequence[str] | None, extractor: str, data: ConfigDict):
  """Refuses what opening the extractor, or the first score, would refuse after the training."""
  shape = f"{data.resolution}×{data.resolution}×{data.channels}"
  if data.channels != {"digits": 1, "inception": 3, "vgg": 3}.get(extractor, data.channels):
    raise SweepError(f"extractor {extractor!r} does not take images of {shape}")
  if extractor == "digits" and data.resolution != 8:
    raise SweepError(f"extractor 'digits' takes images of 8×8×1, got {shape}")
  if "inception_score" in (metrics or ()) and extractor in ("vgg", "pixels"):
    raise SweepError(f"inception_score needs class logits, which {extractor} has not; --inception gives a network's")
  wide = extractor == "pixels" and data.channels * data.resolution**2 > scoring.MAX_WIDTH
  if wide and "frechet" in (metrics or ("frechet",)):
    raise SweepError(f"no Fréchet distance of {shape} pixels, at most {scoring.MAX_WIDTH:,}: use Inception's")


def _check_plot(sweep: Sweep, planned: Sequence[Member], weights: Sequence[str]):
  plot = sweep.plot
  if plot is None:
    return
  known = list(dict.fromkeys(name for member in planned for name in member.labels))
  asked = [("x", plot.x), ("line", plot.line), ("panel", plot.panel), *(("when", name) for name in plot.when)]
  for what, name in asked:
    if name not in known and (name or what == "x"):
      raise SweepError(f"plot: {what} = {name!r}: expected a label of the members, one of {', '.join(known)}")
  for value in (member.labels[plot.x] for member in planned if plot.x in member.labels):
    try:
      float(value)
    except ValueError:
      raise SweepError(f"plot: x = {plot.x!r}: expected numbers, got {value!r}; text tells lines apart") from None
  metrics = sweep.metrics
  if metrics is None:  # those of `bench.scorers_for`
    inception = "inception" in [_extractor(sweep, member.config, weights) for member in planned]
    metrics = ["frechet", "precision", "recall", "inception_score" if inception else "memorised"]
  if plot.metric not in metrics:
    raise SweepError(f"plot: metric = {plot.metric!r}: expected one of {', '.join(metrics)}")


def write(root: Path, path: str, sweep: Sweep, planned: Sequence[Member]):
  """Writes what workers and reports need; files that say so already stay untouched.

  Raises:
    SweepError: the folder cannot be written, or holds the sweep of another file.
    WorkdirError: a group's folder holds another config, as when a default of the library has changed since.
  """
  with folder.hold(root, patience=60):  # two launchers may start at once
    _write(root, path, sweep, planned)


def _write(root: Path, path: str, sweep: Sweep, planned: Sequence[Member]):
  _refuse_other(root, path)
  for member in planned:
    checkpoint.check_workdir(root / member.group / "members", member.config)
  for group, (first, *_) in groups(planned).items():
    _write_config(root / group / "members", first.config)
  for member in planned:
    if not (member.path(root) / "member.json").exists():
      value = {"sampling": dict(member.config.sampling), "protocol": member.protocol}
      folder.write_json(member.path(root) / "member.json", value)
  listed = [{"name": m.name, "labels": m.labels, "group": m.group, "id": m.id} for m in planned]
  plot = sweep.plot and sweep.plot._asdict()
  value = {"sweep": path, "about": sweep.about.strip(), "metrics": sweep.metrics, "plot": plot, "members": listed}
  value = json.loads(json.dumps(value))  # tuples become lists, as they are on file
  if not (root / "sweep.json").exists() or folder.read_json(root / "sweep.json") != value:
    folder.write_json(root / "sweep.json", value)


def _refuse_other(root: Path, path: str):
  if not (root / "sweep.json").exists():
    return
  held = str(folder.read_json(root / "sweep.json").get("sweep"))
  if held != path and os.path.realpath(held) != os.path.realpath(path):
    raise SweepError(f"{root} holds the sweep of {held}, not of {path}; --runs names another folder for it")


def _write_config(path: Path, config: ConfigDict):
  """Writes a group's config, where the one that is there says something else, such as where the data were."""
  plain = lambda given: {k: v for k, v in config_lib.flatten(given).items() if not k.startswith("sampling.")}
  if not (path / "config.json").exists() or plain(checkpoint.read_config(path)) != plain(config):
    checkpoint.write_config(path, config)


def groups(planned: Sequence[Member]) -> dict[str, list[Member]]:
  """Members by the training that they share, in the order of the sweep."""
  out = {}
  for member in planned:
    out.setdefault(member.group, []).append(member)
  return out
