"""Scores of generated images against real ones: what of them is kept, and how a block of seeds becomes numbers.

A Scorer joins an extractor, a reference and the metrics wanted. Images pass through it in chunks: the Fréchet distance
keeps float64 moments alone, other metrics keep features [N, d]. A block that is interrupted goes on from its last save
and gives the same bits.
"""

import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath

from diffusion_jax import mesh
from diffusion_jax.evaluation import frechet, kernel, memorisation, neighbours, statistics
from diffusion_jax.evaluation.entropy import inception_score
from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.evaluation.reference import RealImages, Reference, StoredStatistics, in_bytes
from diffusion_jax.evaluation.streaming import Moments

CHUNK = 1024  # images drawn and scored at a time
STANDARD = 50_000  # images of a published FID
SPLITS = 10  # of the Inception Score
KID_SUBSET = 1000  # images a subset of KID, at most
MAX_WIDTH = 8192  # features of a Fréchet distance: its matrices take half a gigabyte each

# What a metric keeps of the generated images, and whether it needs the real ones' features.
METRICS = {
  "frechet": ("moments", False),
  "inception_score": ("logits", False),
  "precision": ("features", True),
  "recall": ("features", True),
  "kernel_distance": ("features", True),
  "memorised": ("features", True),
}
LARGER_IS_BETTER = ("inception_score", "precision", "recall", "psnr", "psnr_pooled")


class Scorer:
  """What one extractor says of a block of images; made anew for each block by `fresh`."""

  def __init__(
    self, extractor: Extractor, metrics: Sequence[str], reference: Reference, real: Reference | None = None
  ):
    """Checks that the metrics can be had.

    Args:
      extractor: its features are compared.
      metrics: some of METRICS.
      reference: the real images.
      real: those of the metrics that need features, where `reference` is a file of statistics.

    Raises:
      ValueError: an unknown metric, an extractor without logits for the Inception Score, memorisation in other
        features than pixels, a metric that needs features of real images where there are none, or statistics of
        another number of features.
    """
    self.extractor, self.metrics = extractor, tuple(metrics)
    self._reference, self._real = reference, real or reference
    for metric in metrics:
      if metric not in METRICS:
        raise ValueError(f"metrics are {', '.join(METRICS)}, got {metric!r}")
      if METRICS[metric][1] and isinstance(self._real, StoredStatistics):
        raise ValueError(f"{metric} needs real images, and {self._real.name} holds their statistics alone")
    if "inception_score" in metrics and not extractor.logits:
      raise ValueError(f"inception_score needs class logits, which {extractor.name} has not")
    if isinstance(reference, StoredStatistics) and len(reference.statistics.mean) != extractor.width:
      d = len(reference.statistics.mean)
      raise ValueError(f"{reference.name} holds statistics of {d} features, {extractor.name} has {extractor.width}")
    if "frechet" in metrics and extractor.width > MAX_WIDTH:
      width = f"{extractor.width:,} features of {extractor.name}"
      raise ValueError(f"no Fréchet distance of {width}, at most {MAX_WIDTH:,}: use Inception's")
    if "memorised" in metrics and extractor.name != "pixels":
      raise ValueError(f"memorised is measured in pixels, not in features of {extractor.name}")
    self._keeps = {METRICS[metric][0] for metric in metrics}
    self._moments: Moments | None = None
    self._rows: dict[str, list[np.ndarray]] = {kind: [] for kind in sorted(self._keeps - {"moments"})}

  def fresh(self, metrics: Sequence[str] | None = None) -> "Scorer":
    """The same without images, for some of its metrics."""
    return Scorer(self.extractor, metrics or self.metrics, self._reference, self._real)

  def reference(self, metric: str) -> Reference:
    """What a metric compares with."""
    return self._real if METRICS[metric][1] else self._reference

  @property
  def real(self) -> RealImages | None:
    """The real images themselves; None where there are statistics alone."""
    return self._real if isinstance(self._real, RealImages) else None

  def extract(self, images, seeds=None) -> dict[str, np.ndarray]:
    """What is to be kept of uint8 images [n, H, W, C], whatever their seeds: {"features", "logits"}, each [n, d]."""
    out = self.extractor(images)
    wanted = {"features": self.extractor.features} if self._keeps & {"moments", "features"} else {}
    if "logits" in self._keeps:
      wanted["logits"] = self.extractor.logits
    return {kind: out[layer] for kind, layer in wanted.items()}

  def add(self, extracted: dict[str, np.ndarray]):
    """Takes the next images' `extract`."""
    if "moments" in self._keeps:
      features = extracted["features"]
      self._moments = (self._moments or Moments.empty(features.shape[1])).add(features)
    for kind, rows in self._rows.items():
      rows.append(extracted[kind])

  def scores(self) -> dict[str, float]:
    """{metric: value} of the images taken so far.

    Raises:
      ValueError: too few images for a metric.
    """
    kept = {kind: np.concatenate(rows) for kind, rows in self._rows.items()}
    real, out = self._real, {}
    if "frechet" in self.metrics:
      mine, target = self._moments.mean_and_covariance(), self._reference.statistics
      out["frechet"] = frechet.frechet_distance(*mine, target.mean, target.covariance)
    if "inception_score" in self.metrics:
      out["inception_score"] = inception_score(kept["logits"], SPLITS)[0]
    if {"precision", "recall"} & set(self.metrics):
      both = neighbours.precision_recall(real.features, kept["features"], neighbours.NEIGHBOURS, lambda: real.balls)
      out |= {name: value for name, value in zip(("precision", "recall"), both) if name in self.metrics}
    if "kernel_distance" in self.metrics:
      size = min(KID_SUBSET, len(kept["features"]), len(real.features))
      out["kernel_distance"] = kernel.kernel_distance(real.features, kept["features"], subset_size=size)[0]
    if "memorised" in self.metrics:
      out["memorised"] = memorisation.memorised_share(kept["features"], real.features)
    return out

  def state(self) -> dict[str, np.ndarray]:
    """Everything taken so far, as arrays for `restore`."""
    out = {kind: np.concatenate(rows) for kind, rows in self._rows.items() if rows}
    if self._moments is not None:
      out |= {f"moments_{name}": np.asarray(value) for name, value in self._moments._asdict().items()}
    return out

  def restore(self, state: dict[str, np.ndarray]):
    self._rows = {kind: [state[kind]] for kind in self._rows}
    if "moments" in self._keeps:
      self._moments = Moments(int(state["moments_count"]), state["moments_mean"], state["moments_scatter"])


def minimum_images(metrics: Sequence[str]) -> int:
  """The fewest images that all of the metrics are defined for."""
  need = dict.fromkeys(("psnr", "psnr_pooled", "mae", "mae_binary"), 1)
  need |= {"inception_score": SPLITS, "precision": neighbours.NEIGHBOURS + 1, "recall": neighbours.NEIGHBOURS + 1}
  return max(need.get(metric, 2) for metric in metrics)


def score_block(
  draw: Callable[[np.ndarray], np.ndarray],
  seeds,
  scorers: Sequence[Scorer],
  partial=None,
  save_seconds: float = 60.0,
  progress: Callable[[int], None] | None = None,
  chunk: int | None = None,
) -> list[dict[str, float]]:
  """Draws images and scores them; with several hosts each draws and extracts its share of every chunk.

  Args:
    draw: (seeds [n]) -> images [n, H, W, C], uint8 or float in about [−1, 1]; image i depends on seed i alone.
    seeds: [N] of this block.
    scorers: what to measure; they are left as they are.
    partial: file that what is kept is saved in meanwhile, removed at the end; None saves nothing.
    save_seconds: time between two saves, at least; what takes long is saved less often. 0 saves after every chunk.
    progress: called with the number of images of each chunk done.
    chunk: images at a time, over all hosts; by default CHUNK, or 256 a device where that is more.

  Returns:
    {metric: value} for each scorer.

  Raises:
    ValueError: a metric's own errors, images that are not finite, or hosts that do not see the same `partial`.
  """
  seeds, partial = np.asarray(seeds), None if partial is None else epath.Path(partial)
  chunk = chunk or max(CHUNK, 256 * jax.device_count())
  scorers, done = _start(scorers, partial, len(seeds))
  mesh.check_same(done, "the folder of the results must be one that all hosts share")
  if progress and done:
    progress(done)
  host, saved, took = jax.process_index(), time.monotonic(), 0.0
  for start in range(done, len(seeds), chunk):
    part = seeds[start : start + chunk]
    mine = part[mesh.host_share(len(part))]
    images = in_bytes(draw(mine))
    for scorer in scorers:
      extracted = {kind: mesh.gather_hosts(rows)[: len(part)] for kind, rows in scorer.extract(images, mine).items()}
      scorer.add(extracted)
    done = start + len(part)
    if progress:
      progress(len(part))
    now = time.monotonic()
    if partial and host == 0 and done < len(seeds) and now - saved >= (save_seconds and max(save_seconds, 20 * took)):
      _save(partial, scorers, done)
      saved = time.monotonic()
      took = saved - now
  out = [scorer.scores() for scorer in scorers]
  if partial and host == 0:
    partial.unlink(missing_ok=True)
  return out


def _save(path: epath.Path, scorers: Sequence[Scorer], done: int):
  arrays = {f"{i}/{name}": value for i, scorer in enumerate(scorers) for name, value in scorer.state().items()}
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f"{path.name}.tmp"
  with temporary.open("wb") as file:
    np.savez(file, done=done, **arrays)
  temporary.replace(path)


def _start(scorers: Sequence[Scorer], partial: epath.Path | None, total: int) -> tuple[list[Scorer], int]:
  """Scorers with the images of a saved block, and how many these are; 0 where there is none that can be read."""
  if partial is not None and partial.exists():
    try:
      with partial.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        arrays = dict(arrays)
      restored, done = [scorer.fresh() for scorer in scorers], int(arrays["done"])
      for i, scorer in enumerate(restored):
        prefix = f"{i}/"
        scorer.restore({name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)})
      if 0 < done < total:
        return restored, done
    except (OSError, ValueError, KeyError, *statistics.DAMAGE):
      logging.warning("%s cannot be read: its images are drawn again", partial)
  return [scorer.fresh() for scorer in scorers], 0
