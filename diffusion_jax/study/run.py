"""Running a study: what is trained and scored, each once.

A run's workdir is named after a hash of what determines its updates, and its scores are kept there with their
provenance. So a study that is started again does only what is missing, and a changed config is a new run.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import methods, sampling
from diffusion_jax.data import identity
from diffusion_jax.evaluation import bench, features, r_table, records, recovery, sigma_min, tasks
from diffusion_jax.evaluation.scoring import Scorer
from diffusion_jax.interop import edm_checkpoint
from diffusion_jax.study import loading
from diffusion_jax.study.description import Evaluation, Run, Study, StudyError
from diffusion_jax.training import checkpoint, classifiers, loop, predecessor, run_config, warm

_NOT_IMAGES = ("cache", "num_classes", "flip", "augment")  # fields of config.data that real images do not depend on


class Stopped(Exception):
  """SIGTERM arrived while a run was training; what was done is saved."""


class Waiting(Exception):
  """A run cannot be trained before another one."""


class Job(NamedTuple):
  """A run of a study with one seed."""

  run: Run
  seed: int
  config: ConfigDict | None  # None for a published network
  workdir: epath.Path
  init: "Job | None" = None  # whose network this one starts from


def jobs(study: Study, root) -> list[Job]:
  """Everything that is trained, seed by seed, with its workdir under `root`.

  All configs and evaluations are checked first, so that a study does not end in an error after hours.

  Raises:
    StudyError, ConfigError: a config or an evaluation is missing or wrong, two runs or two evaluations of a run have
      the same labels, or a run's `init` is not one run before it with a network that it can start from.
  """
  _refuse_twice("runs", [run.labels for run in study.runs])
  before = [_predecessor(study, i) for i in range(len(study.runs))]
  out = []
  for seed in study.seeds:
    jobs, hashes = [], []  # of this seed, in the order of study.runs
    for run, index in zip(study.runs, before):
      name, init = _slug(run.labels), None if index is None else jobs[index]
      if run.checkpoint:
        jobs.append(Job(run, study.seeds[0], None, epath.Path(root) / f"{epath.Path(run.checkpoint).stem}"))
        hashes.append("")
        continue
      config = loading.load_config(run.config, {**run.fields, "seed": seed})
      if init is not None:
        config.init_from = str(init.workdir if init.config is not None else init.run.checkpoint)
      config_lib.check(config)
      if seed == study.seeds[0]:
        if init is not None and init.config is not None:
          predecessor.fit(config, init.config)
        _check_evaluations(study, run, config, methods.from_config(config))
      own = config_hash(config, None if init is None else hashes[index] or _published_hash(init.run.checkpoint))
      jobs.append(Job(run, seed, config, epath.Path(root) / f"{name}_{seed}_{own}", init))
      hashes.append(own)
    out += [job for job in jobs if job.config is not None or seed == study.seeds[0]]
  return out


def chains(jobs: Sequence[Job]) -> list[list[Job]]:
  """Jobs that belong together, in their order: one that starts from no other one, and those of its seed that do."""
  out = {}
  for job in jobs:
    first = job
    while first.init is not None and first.init.config is not None:
      first = first.init
    out.setdefault(first.workdir, []).append(job)
  return list(out.values())


def _predecessor(study: Study, i: int) -> int | None:
  """The number of the run whose network run i starts from; None where it names none."""
  run = study.runs[i]
  if not run.init:
    return None
  if run.checkpoint or "init_from" in run.fields:
    other = "checkpoint" if run.checkpoint else "fields['init_from']"
    raise StudyError(f"the run {dict(run.labels)} has both init and {other}")
  found = [k for k, each in enumerate(study.runs) if run.init.items() <= each.labels.items()]
  if len(found) != 1:
    many = " and ".join(str(dict(study.runs[k].labels)) for k in found)
    raise StudyError(f"init={dict(run.init)} of the run {dict(run.labels)}: expected one run, got {many or 'none'}")
  if found[0] >= i:
    raise StudyError(f"init={dict(run.init)} of the run {dict(run.labels)}: must stand before it in the list of runs")
  return found[0]


def _published_hash(path: str) -> str:
  try:
    return features.sha256(path)[:8]
  except OSError as error:
    raise StudyError(f"{path} cannot be read: {error}") from None


def _evaluations(study: Study, run: Run, config: ConfigDict) -> list[tuple[Evaluation, ConfigDict]]:
  """The evaluations that are for a run, each with its config."""
  out = []
  for evaluation in study.evaluations:
    if _is_for(evaluation, run):
      chosen = config.copy_and_resolve_references()
      loading.override(chosen, {f"sampling.{name}": value for name, value in evaluation.sampling.items()})
      config_lib.check(chosen)
      out.append((evaluation, chosen))
  return out


def _is_for(evaluation: Evaluation, run: Run) -> bool:
  return all(run.labels.get(name) == value for name, value in evaluation.when.items())


def _check_evaluations(study: Study, run: Run, config: ConfigDict, method: methods.Method):
  labels = []
  for evaluation, chosen in _evaluations(study, run, config):
    nfe = check_sampling(chosen, method) if evaluation.recovery is None else _check_recovery(evaluation, config, method)
    labels.append({**evaluation.labels, "NFE": nfe})
  _refuse_twice(f"evaluations of {dict(run.labels)}", labels)


def check_sampling(config: ConfigDict, method: methods.Method) -> int:
  """Network evaluations an image; raises ConfigError if the method cannot be sampled as config.sampling says."""
  if method.denoise is None:
    raise config_lib.wrong("method", config.method, "draws no images: no evaluation may be for this run")
  classifiers.find(config)
  config_lib.choose("sampling.sampler", config.sampling.sampler, method.samplers)
  return sampling.evaluations(config.sampling, method)


def _check_recovery(evaluation: Evaluation, config: ConfigDict, method: methods.Method) -> int:
  name = f"evaluation {dict(evaluation.labels)}"
  if evaluation.sampling:
    raise StudyError(f"{name}: recovery samples nothing, so sampling must be empty, got {dict(evaluation.sampling)}")
  if config.task.name:
    raise StudyError(f"{name}: recovery = {evaluation.recovery!r}: not for a run that makes images from others")
  try:
    recovery.check(method, evaluation.recovery)
  except ValueError as error:
    raise StudyError(f"{name}: recovery = {evaluation.recovery!r}: {error}") from None
  return recovery.NFE


def _refuse_twice(what: str, labels: Sequence[Mapping]):
  seen = []
  for each in map(dict, labels):
    if each in seen:
      raise StudyError(f"two {what} have the labels {each}")
    seen.append(each)


def config_hash(config: ConfigDict, init: str | None = None) -> str:
  """8 hexadecimal digits of what determines a run's updates: its fields that are not at their defaults, and its data.

  Fields that may differ when a run goes on do not count, but train.num_steps does. Data count as `identity.of_path` has
  it, so that they may be moved; `init`, the hash of the run that it starts from, stands for the place of that one.
  """
  default, given = config_lib.flatten(config_lib.default()), config_lib.flatten(config)
  counts = lambda name: name == "train.num_steps" or not run_config.is_free(name)
  kept = {name: value for name, value in given.items() if default[name] != value and counts(name)}
  if config.data.path:
    kept["data.path"] = identity.of_path(config.data.name, config.data.path)
  if config.task.path:
    kept["task.path"] = identity.of_path("folder", config.task.path)
  if init is not None:
    kept["init_from"] = init
  return records.digest(kept)[:8]


def trained(job: Job) -> bool:
  """Whether a job's network is there, to its last step.

  Raises:
    WorkdirError: its folder holds the run of another config, as when a default has changed since.
  """
  if job.config is None:
    return True
  begun = (job.workdir / "config.json").exists()
  config = warm.resolve(job.config, None, job.workdir) if begun else job.config
  # The folder's name says from which network it started, wherever that was.
  checkpoint.check_workdir(job.workdir, config, started=job.init is not None)
  return predecessor.finished(job.workdir, job.config)


def train(job: Job):
  """Trains a job's network, or goes on with it.

  Raises:
    Waiting: the network that it starts from is not trained.
    Stopped: SIGTERM arrived.
    Diverged, WorkdirError, ConfigError: as `training.loop.train`.
  """
  if job.init is not None and not checkpoint.has_checkpoint(job.workdir) and not trained(job.init):
    raise Waiting(f"{job.workdir} waits for {job.init.workdir}, which is not trained")
  state = loop.train(job.config, job.workdir)
  if int(state.step) < job.config.train.num_steps:
    raise Stopped(f"{job.workdir} at step {int(state.step)}")


class ScorerPool:
  """The scorers of jobs; jobs with the same real images share them, and so the real images' features."""

  def __init__(self, study: Study, files: Mapping[str, str] | None = None):
    """`files` are weights by extractor, see `bench.scorers_for`."""
    self._study, self._files, self._made = study, files, {}

  def of(self, job: Job) -> list[Scorer]:
    """Raises ValueError or ConfigError as `bench.scorers_for`."""
    config = (job.config or config_lib.default()).copy_and_resolve_references()
    if job.config is None:
      config.data.name = ""
    config.data.update(dict(job.run.data))
    recovers = any(e.recovery is not None and _is_for(e, job.run) for e in self._study.evaluations)
    images = ((name, value) for name, value in config.data.items() if name not in _NOT_IMAGES)
    key = *images, *config.task.items(), job.run.reference, recovers
    if key not in self._made:
      wanted = (self._study.metrics, self._study.extractor, self._files, job.run.reference)
      task = config.task.name
      made = tasks.scorers_for(config, *wanted) if task else bench.scorers_for(config, *wanted, images=recovers)
      self._made[key] = made
    return self._made[key]


def evaluate(
  study: Study,
  job: Job,
  scorers: Sequence[Scorer],
  stored_only: bool = False,
  progress: Callable[[int], None] | None = None,
  model: "Opened | None" = None,
) -> list[dict]:
  """The scores of a job's network by all evaluations that are for it.

  Args:
    study: says what is measured.
    job: trained.
    scorers: of the job, from a ScorerPool.
    stored_only: take what is on file, compute nothing.
    progress: called with numbers of images done.
    model: of the job, for several calls; opened here by default.

  Returns:
    Records as of `bench.score`, with "study": {"seed": …, labels of the run and of the evaluation, "NFE"}, and "main":
    whether the extractor is the metric's first one, whose scores tables show.
  """
  model = model or Opened(job)
  log = records.Records(job.workdir / "evaluation" / "scores.jsonl")
  main = {metric: scorer.extractor.name for scorer in reversed(scorers) for metric in scorer.metrics}
  if job.config is None:
    _check_evaluations(study, job.run, model.config, model.take()[0])
  out = []
  for evaluation, config in _evaluations(study, job.run, model.config):
    if evaluation.recovery is None:
      which = model.provenance["step"] or model.provenance["sha256"]
      config = r_table.resolve(config, job.workdir, which, model.take, stored_only=stored_only)
      if config is not None:
        config = sigma_min.resolve(config, job.workdir, which, model.take, scorers, stored_only=stored_only)
      if config is None:
        continue
      subject, num_images = tasks.subject(model.provenance, config, model.take, scorers), study.num_images
    else:
      real = recovery.real_images(scorers)
      subject = recovery.of_model(model.provenance, config, model.take, real, evaluation.recovery)
      num_images = real.num_images
    if stored_only:
      found = [log.get(template) for template in bench.wanted(subject, scorers, num_images, study.blocks)]
      if None in found:
        continue
    else:
      found = bench.score(subject, scorers, log, num_images, study.blocks, progress=progress)
    labels = {"seed": job.seed, **job.run.labels, **evaluation.labels, "NFE": found[0]["nfe"]}
    out += [{**r, "study": labels, "main": main[r["metric"]] == r["extractor"]["name"]} for r in found]
  return out


class Opened:
  """A job's network, loaded when it is first needed; what is compiled for it stays with it."""

  def __init__(self, job: Job):
    self._workdir, self._model = job.workdir, None
    if job.config is None:
      try:
        self.config, method, variables = edm_checkpoint.load_run(job.run.checkpoint)
      except ValueError as error:
        raise StudyError(str(error)) from None
      self._model = method, variables
      sha256 = features.sha256(job.run.checkpoint)
      self.provenance = {"name": epath.Path(job.run.checkpoint).name, "step": None, "sha256": sha256}
    else:
      step = checkpoint.newest(job.workdir)
      self.config = checkpoint.read_config(job.workdir)  # training may have resolved what init_from brings
      self.config.sampling.update(job.config.sampling)
      sha256 = checkpoint.fingerprint(job.workdir, step)
      self.provenance = {"name": job.workdir.name, "step": step, "sha256": sha256}

  def take(self) -> tuple:
    """(method, variables) of the checkpoint that `provenance` names."""
    if self._model is None:
      self._model = checkpoint.load_for_inference(self._workdir, self.provenance["step"], self.config)
    return self._model


def _slug(labels: Mapping[str, str]) -> str:
  return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(map(str, labels.values()))).strip("-").lower() or "run"
