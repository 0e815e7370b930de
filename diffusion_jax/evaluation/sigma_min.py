"""The smallest level of DPDM's grid, found by score.

The grid `times.dpdm_grid` ends at a σ_min that depends on the number of steps. The paper has a table of it for four
steps and more, found for CIFAR-10. Here it is found for a network: candidates are scored by the Fréchet distance, all
with the same seeds, so that their differences are less noisy than they are. What was found is kept in a run's
sigma_min.json, a list of {"step", "sampling", "num_steps", "by", "sigma_min", "scores"}. Pixels say little of images:
by them a search is made only where it is asked for, and what learned features found goes first.
"""

import functools
import json
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from diffusion_jax import config as config_lib
from diffusion_jax import mesh, sampling, times
from diffusion_jax.data.sources import DataError
from diffusion_jax.evaluation import bench, scoring
from diffusion_jax.evaluation.scoring import Scorer
from diffusion_jax.methods import Method

FIRST_SEED = 1_000_000_000  # far from the seeds 0, 1, … that evaluations use
NUM_IMAGES = 500
FILE = "sigma_min.json"
_CANDIDATES = np.geomspace(1e-4, 3.0, 12)
# Fields that a search is for, or not of: images are drawn without a classifier.
_DECIDED = ("num_steps", "sigma_min", "sigma_min_search", "grid", "rho", "classifier", "classifier_scale")
_FIELDS = {"step", "sampling", "num_steps", "by", "sigma_min", "scores"}
_BY = {"extractor", "weights", "reference", "num_images"}


class Found(NamedTuple):
  """What a search found: the best σ_min, {σ_min: Fréchet distance} of all candidates, and what it was found by."""

  sigma_min: float
  scores: dict[float, float]
  by: dict = {}  # as in sigma_min.json; never changed


def wanted(setting: ConfigDict) -> bool:
  """Whether a config.sampling leaves σ_min to a search: it asks for one, or the paper's table has no such entry."""
  open_end = setting.grid == "dpdm" and not setting.sigma_min and setting.num_steps > 1
  return open_end and (setting.sigma_min_search or not times.dpdm_lists(setting.num_steps))


def candidates(config: ConfigDict, method: Method) -> list[float]:
  """Twelve levels from 1e-4 to 3 and the published one, of which the network and config.sampling make a grid.

  Raises:
    ConfigError: none is left.
  """
  setting = config.sampling
  levels = [float(f"{level:.2g}") for level in _CANDIDATES]
  if times.dpdm_lists(setting.num_steps):
    levels.append(times.dpdm_sigma_min(setting.num_steps))
  known = method.preconditioner
  lo, hi = (0.0, np.inf) if known is None else (float(known.sigma_min), float(known.sigma_max))
  hi = min(hi, setting.sigma_max or 80.0)
  fit, error = [], None
  for level in sorted({max(level, lo) for level in levels if level < hi}) or [hi]:
    try:
      sampling.schedule_of(_with(config, level).sampling, method)
      fit.append(level)
    except config_lib.ConfigError as raised:  # vp up to 80 has no level above .18
      error = raised
  if not fit:
    raise error
  return fit


def search(
  config: ConfigDict,
  method: Method,
  variables,
  scorer: Scorer,
  num_images: int = NUM_IMAGES,
  first: int = FIRST_SEED,
  levels: Sequence[float] | None = None,
  progress: Callable[[int], None] | None = None,
) -> Found:
  """Scores every candidate for the number of steps of config.sampling, without a classifier; all hosts must call it.

  Args:
    config: a run's config; its grid is taken to be "dpdm".
    method: its method.
    variables: its parameters.
    scorer: of the Fréchet distance; it is left as it is.
    num_images: of each candidate, at least 2.
    first: their first seed.
    levels: the candidates, each positive; `candidates` by default.
    progress: called with numbers of images done.

  Raises:
    ValueError: of `scoring.score_block`, or a score is not finite.
    ConfigError: a candidate makes no grid.
  """
  variables, scorer = mesh.everywhere(variables), scorer.fresh(["frechet"])
  config = _unguided(config)
  batch, seeds, scores = 256 * jax.local_device_count(), np.arange(first, first + num_images), {}
  for level in map(float, candidates(config, method) if levels is None else levels):
    draw = functools.partial(sampling.generate, _with(config, level), method, variables, batch_size=batch)
    (found,) = scoring.score_block(draw, seeds, [scorer], progress=progress)
    scores[level] = float(found["frechet"])
    if not np.isfinite(scores[level]):
      raise ValueError(f"the Fréchet distance at sigma_min = {level:g} is {scores[level]}")
  return Found(min(scores, key=scores.get), scores)


def find(
  config: ConfigDict,
  folder,
  step: int | str | None,
  take: Callable[[], tuple[Method, dict]],
  scorer: Scorer,
  num_images: int = NUM_IMAGES,
) -> tuple[Found, bool]:
  """What is on file by a scorer, or else is searched, with a line and a progress bar, and kept; and whether it was.

  All hosts must call it; the first one's file decides.

  Args:
    config: a run's config.
    folder: with the file; None keeps nothing.
    step: of the checkpoint; of a published one whatever names it.
    take: () -> (method, variables), called only where needed.
    scorer: of the Fréchet distance.
    num_images: of each candidate.

  Raises:
    ValueError, ConfigError: as `search`.
  """
  found = _agreed(lambda: stored(folder, config, step, scorer, num_images))
  if found is not None:
    return found, False
  method, variables = take()
  by, levels, first = told_by(scorer, num_images), candidates(config, method), jax.process_index() == 0
  _say(config, f"the best of {len(levels)} levels is searched, {_told(by)} each")
  with tqdm(total=len(levels) * num_images, unit="img", disable=not first, leave=False) as bar:
    found = search(config, method, variables, scorer, num_images, levels=levels, progress=bar.update)._replace(by=by)
  save(folder, config, step, found)
  return found, True


def resolve(
  config: ConfigDict,
  folder,
  step: int | str | None,
  take: Callable[[], tuple[Method, dict]],
  scorers: Sequence[Scorer] | None = None,
  num_images: int = NUM_IMAGES,
  stored_only: bool = False,
) -> ConfigDict | None:
  """The config with its σ_min decided: sampling.sigma_min is put in where a search or its file has one.

  What is on file for the same checkpoint and sampling is taken from there. Says in a line what was chosen. Where none
  can be searched, or by pixels alone without being asked for, the published table serves. Either way the result has
  sampling.sigma_min_search = False, so that records of scores are those of a run that has this σ_min of its own.

  Args:
    config: a run's config.
    folder: as in `find`.
    step: as in `find`.
    take: as in `find`.
    scorers: of an evaluation. The one with the Fréchet distance counts, and what was found by other features or other
      real images does not, unless this one has pixels alone. None takes what is on file by whatever it was found, and
      else the scorer of the run's data.
    num_images: of each candidate.
    stored_only: compute and say nothing; None where a search is needed.

  Raises:
    ConfigError: a search was asked for and cannot be made, or as `search`.
    ValueError: as `search`.
  """
  setting = config.sampling
  if not wanted(setting):
    return _decided(config)
  scorer = next((each for each in scorers or () if "frechet" in each.metrics), None)
  found, new, why = _agreed(lambda: _usable(folder, config, step, scorer, num_images)), False, ""
  if found is None:
    try:
      scorer = scorer or scorer_of(config)
      if config.task.name:
        why = ", as none is searched with a task"
      elif _by_pixels(scorer.extractor.name) and not setting.sigma_min_search:
        why = "; experiments/sigma_min.py --inception=FILE searches one"
    except (config_lib.ConfigError, DataError, ValueError) as error:
      if setting.sigma_min_search:
        raise config_lib.wrong("sampling.sigma_min_search", True, f"none can be searched: {error}") from None
      why = f", as none can be searched: {error}"
    if why:
      if not stored_only:
        _say(config, f"that of {times.DPDM_LEAST} in the published table{why}")
      return _decided(config)
    if stored_only:
      return None
    found, new = find(config, folder, step, take, scorer, num_images)
  if not stored_only:
    how = f"{'searched' if new else 'found before'}, {_told(found.by)}"
    table = f"the published table is for {times.DPDM_LEAST} and more on CIFAR-10"
    _say(config, f"{found.sigma_min:g} ({how}; {table})")
  return _with(config, found.sigma_min)


def scorer_of(config: ConfigDict, inception: str | None = None) -> Scorer:
  """The Fréchet distance to a run's own data, by Inception where its weights are given; errors of `scorers_for`."""
  if config.data.name in ("", "none"):
    raise ValueError("the config has no data")
  (scorer,) = bench.scorers_for(config, ["frechet"], files={"inception": inception})
  return scorer


def stored(
  folder, config: ConfigDict, step: int | str | None, scorer: Scorer | None = None, num_images: int = 2
) -> Found | None:
  """The newest `Found` on file for a checkpoint and config.sampling, by learned features if there is one; or None.

  With `scorer` only by its features and real images, of at least `num_images`.
  """
  wanted_by, identity = None if scorer is None else told_by(scorer, num_images), _identity(config, step)
  found = [
    entry
    for entry in reversed(_entries(folder))
    if all(entry[name] == value for name, value in identity.items())
    and (wanted_by is None or _serves(entry["by"], wanted_by))
  ]
  if not found:
    return None
  best = min(found, key=lambda entry: _by_pixels(entry["by"]["extractor"]))  # the first of its kind
  scores = {float(level): score for level, score in best["scores"].items()}
  return Found(best["sigma_min"], scores, best["by"])


def _usable(folder, config: ConfigDict, step: int | str | None, scorer: Scorer | None, num_images: int) -> Found | None:
  """What is on file that serves an evaluation by a scorer; one by pixels takes what learned features found, too."""
  if scorer is not None and _by_pixels(scorer.extractor.name):
    found = stored(folder, config, step)
    if found is not None and not _by_pixels(found.by["extractor"]):
      return found
  return stored(folder, config, step, scorer, num_images)


def _by_pixels(extractor: str) -> bool:
  return extractor == "pixels"


def _agreed(read: Callable[[], Found | None]) -> Found | None:
  """read() of the first host, on all of them: what is on file decides whether they search together."""
  found = json.loads(mesh.from_first_host(lambda: json.dumps(read())))
  if found is None:
    return None
  level, scores, by = found
  return Found(level, {float(level): score for level, score in scores.items()}, by)


def _serves(by: dict, wanted_by: dict) -> bool:
  key = lambda each: (each["extractor"], each["weights"], each["reference"]["sha256"])
  return key(by) == key(wanted_by) and by["num_images"] >= wanted_by["num_images"]


def save(folder, config: ConfigDict, step: int | str | None, found: Found):
  """Puts what was found into folder/sigma_min.json, in place of what was found by the same; on the first host.

  The file is read, written beside under a name of its own, and renamed, so that what another process found meanwhile
  is kept. A folder that cannot be written gives a warning alone.
  """
  if folder is None or jax.process_index() != 0:
    return
  path, entry = epath.Path(folder) / FILE, {**_identity(config, step), "by": found.by}
  scores = {repr(level): score for level, score in found.scores.items()}
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{FILE}.{uuid.uuid4().hex}.tmp"
    kept = [each for each in _entries(folder) if any(each[name] != value for name, value in entry.items())]
    kept.append({**entry, "sigma_min": found.sigma_min, "scores": scores})
    temporary.write_text(json.dumps(kept, indent=1) + "\n")
    temporary.replace(path)
  except OSError as error:
    logging.warning("%s cannot be written, σ_min will be searched again: %s", path, error)


def _entries(folder) -> list[dict]:
  path = None if folder is None else epath.Path(folder) / FILE
  try:
    found = json.loads(path.read_text()) if path is not None and path.exists() else []
    return [entry for entry in found if entry.keys() >= _FIELDS and entry["by"].keys() >= _BY]
  except (OSError, ValueError, AttributeError, TypeError) as error:
    logging.warning("%s cannot be read, and does not count: %s", path, error)
    return []


def _identity(config: ConfigDict, step: int | str | None) -> dict:
  """What a σ_min was found for: the checkpoint, the number of steps, and all else of sampling that is no default."""
  defaults = config_lib.default().sampling
  fields = {name: value for name, value in config.sampling.items() if name not in _DECIDED and value != defaults[name]}
  return {"step": step, "sampling": fields, "num_steps": config.sampling.num_steps}


def told_by(scorer: Scorer, num_images: int) -> dict:
  """What a search goes by, as sigma_min.json has it."""
  extractor, reference = scorer.extractor, scorer.reference("frechet")
  return {
    "extractor": extractor.name,
    "weights": extractor.weights,
    "reference": {"name": reference.name, "sha256": reference.sha256},
    "num_images": num_images,
  }


def _told(by: dict) -> str:
  return f"{by['num_images']} images by {by['extractor']} against {by['reference']['name']}"


def _with(config: ConfigDict, level: float) -> ConfigDict:
  """Its record is that of a run which has this σ_min of its own."""
  chosen = _decided(config)
  chosen.sampling.update(grid="dpdm", sigma_min=float(level))
  return chosen


def _unguided(config: ConfigDict) -> ConfigDict:
  chosen = config.copy_and_resolve_references()
  chosen.sampling.classifier_scale = 0.0
  return chosen


def _decided(config: ConfigDict) -> ConfigDict:
  """A copy that asks for no search."""
  chosen = config.copy_and_resolve_references()
  chosen.sampling.sigma_min_search = False
  return chosen


def _say(config: ConfigDict, text: str):
  if jax.process_index() == 0:
    print(f"σ_min for {config.sampling.num_steps} steps: {text}", flush=True)
