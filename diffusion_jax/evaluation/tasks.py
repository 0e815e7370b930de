"""Scores of images made from conditions, each against the image it should be.

    superres: PSNR;   saliency: MAE, as it is and binarised at ½;   inpaint: PSNR and the Fréchet distance of

    composite = (1 − mask)·condition + mask·result                                                          (1)

Seed s makes an image from the condition of one example, see `examples_of`. Means are over the images of a block; "psnr"
is the mean of theirs, "psnr_pooled" that of all their pixels together, which a few flat images do not rule; what has no
error counts as 100. Source of the metrics: Huang et al., Section 5.1; images count as they are shown, in bytes.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from diffusion_jax import mesh, sampling
from diffusion_jax.data import latents, sources
from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation import bench, paired, reference, scoring
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.evaluation.reference import in_bytes
from diffusion_jax.evaluation.scoring import Scorer
from diffusion_jax.training import autoencoders

METRICS = {
  "superres": ("psnr", "psnr_pooled"),
  "saliency": ("mae", "mae_binary"),
  "inpaint": ("psnr", "psnr_pooled", "frechet"),
}  # by default
EXTRACTOR = "pairs"  # in records

_MOST_DECIBELS = 100.0  # what an image without any error counts as: flat ones may have none
_HALF = 128  # of bytes: those at least so large are 1


class _Pairs(NamedTuple):
  """In place of a feature extractor: what images are compared with is an image itself."""

  name: str = EXTRACTOR
  weights: str | None = None
  features: str = "bytes"
  logits: str | None = None
  resize: str = ""


class _Truths(NamedTuple):
  """The images of a source as `bench` names what is compared with."""

  name: str
  num_images: int
  sha256: str


class PairedScorer:
  """Means over the pairs of an image and its truth, an image of `source`; to `scoring.score_block` it is a Scorer."""

  extractor = _Pairs()

  def __init__(self, metrics: Sequence[str], source: Source):
    """`metrics` are of BY_NAME, `source` has the truths."""
    self.metrics, self.source, self._rows = tuple(metrics), source, []
    self._reference = _Truths(f"{source.name}/{source.split}", len(source), reference.fingerprint(source))

  def fresh(self, metrics: Sequence[str] | None = None) -> "PairedScorer":
    """The same without images, for some of its metrics."""
    out = object.__new__(PairedScorer)
    out.metrics, out.source, out._rows = tuple(metrics or self.metrics), self.source, []
    out._reference = self._reference
    return out

  def reference(self, metric: str) -> _Truths:
    return self._reference

  def extract(self, images, seeds) -> dict[str, np.ndarray]:
    """{"pairs": [n, metrics]}: each image's scores, of uint8 images [n, H, W, C] made from these seeds."""
    truth = in_bytes(gather(self.source, seeds)["image"])
    return {"pairs": np.stack([BY_NAME[metric](images, truth) for metric in self.metrics], -1)}

  def add(self, extracted: dict[str, np.ndarray]):
    self._rows.append(extracted["pairs"])

  def scores(self) -> dict[str, float]:
    """{metric: mean over the images taken so far}."""
    means = dict(zip(self.metrics, np.concatenate(self._rows).mean(0).tolist()))
    if "psnr_pooled" in means:
      means["psnr_pooled"] = -10 * math.log10(max(means["psnr_pooled"], 10 ** (-_MOST_DECIBELS / 10)))
    return means

  def state(self) -> dict[str, np.ndarray]:
    return {"pairs": np.concatenate(self._rows)} if self._rows else {}

  def restore(self, state: dict[str, np.ndarray]):
    self._rows = [state["pairs"]]


def mae_binary(images, truth) -> np.ndarray:
  """The share of pixels on the wrong side of ½, [B], of uint8 images [B, H, W, C]."""
  return np.mean((images >= _HALF) != (truth >= _HALF), axis=(1, 2, 3))


BY_NAME = {
  "psnr": lambda images, truth: np.minimum(paired.psnr(images, truth), _MOST_DECIBELS),
  "psnr_pooled": paired.mse,  # of whose mean it is the PSNR
  "mae": paired.mae,
  "mae_binary": mae_binary,
}


def examples_of(seeds, size: int) -> np.ndarray:
  """The example of each seed [n]: s·q mod size, q prime to size.

  So `size` seeds in a row have each example once. Fewer are spread over all of them, in any order: of the q near
  the golden section of size it is the one whose q/size is approximated as badly.
  """
  return np.asarray(seeds, np.int64) * _stride(size) % size


@functools.cache
def _stride(size: int) -> int:
  golden = round(size * (math.sqrt(5) - 1) / 2)
  near = range(max(1, golden - 64), min(size, golden + 64) + 1)
  return min((q for q in near if math.gcd(q, size) == 1), key=lambda q: (_largest_quotient(size, q), abs(q - golden)))


def _largest_quotient(a: int, b: int) -> int:
  """Of the continued fraction of a/b."""
  return max(a // b, _largest_quotient(b, a % b)) if b else 0


def gather(source: Source, seeds) -> dict[str, np.ndarray]:
  """What the source has of the examples of these seeds."""
  return source.gather(examples_of(seeds, len(source)))


def composite(images, condition, mask) -> np.ndarray:
  """Equation (1) in bytes: `images` in the holes of `condition`, both [n, H, W, C]; mask [n, H, W, 1], 1 in holes."""
  return np.where(np.asarray(mask) != 0, in_bytes(images), in_bytes(condition))


def of_model(checkpoint: dict, config, open_model: Callable[[], tuple], source: Source) -> bench.Subject:
  """A model with a task, the sampler of config.sampling, and the conditions of a source, as `bench.score` takes it.

  Args:
    checkpoint: as of `bench.Subject`.
    config: the model's; reads `task`, `data`, `latent` and `sampling`.
    open_model: () -> (method, variables); called only where needed.
    source: of conditions, see `data.tasks`.
  """

  def draw():
    method, variables = open_model()
    variables, decoder = mesh.everywhere(variables), autoencoders.from_config(config)
    make = lambda seeds: make_images(config, method, variables, source, seeds, decoder)
    nfe = sampling.evaluations(config.sampling, method)
    if nfe is None:
      seeds, found = range(64), gather(source, range(64))
      labels = found["label"] if config.data.num_classes else None
      nfe = sampling.mean_evaluations(config, method, variables, seeds, labels, condition=found["condition"])
    return make, nfe

  labels = "those of the images" if config.data.num_classes else None
  task = {**config.task, "path": "", "conditions": fingerprint(source)}  # the conditions themselves say where from
  return bench.Subject(checkpoint, draw, dict(config.sampling), labels, task=task)


def scorers_for(
  config,
  metrics: Sequence[str] | None = None,
  extractor: str | None = None,
  files: Mapping[str, str] | None = None,
  file: str | None = None,
) -> list[PairedScorer | Scorer]:
  """The scorers of a config with a task: images beside their truths, and those of `bench.scorers_for`.

  Args:
    config: a run's config, whose `data` and `task` say what conditions and truths are.
    metrics: some of BY_NAME and `scoring.METRICS`; by default METRICS of the task.
    extractor: as of `bench.scorers_for`.
    files: likewise.
    file: of statistics, its `reference`.

  Raises:
    ValueError: something is unknown, missing, or cannot be read.
    ConfigError: there are no such data.
  """
  config, metrics = latents.before_encoding(config), tuple(metrics or METRICS[config.task.name])
  for metric in metrics:
    if metric not in (*BY_NAME, *scoring.METRICS):
      raise ValueError(f"metrics are {', '.join((*BY_NAME, *scoring.METRICS))}, got {metric!r}")
  pairs, others = [m for m in metrics if m in BY_NAME], [m for m in metrics if m not in BY_NAME]
  out = [PairedScorer(pairs, sources.from_config(config))] if pairs else []
  return out + (bench.scorers_for(config, others, extractor, files, file, whole=False) if others else [])


def source_of(scorers: Sequence[PairedScorer | Scorer]) -> Source:
  """The source of conditions and truths whose images these scorers compare with.

  Raises:
    ValueError: there is only a file of statistics.
  """
  for scorer in scorers:
    if isinstance(scorer, PairedScorer):
      return scorer.source
    if scorer.real is not None:
      return scorer.real.source
  raise ValueError("images are made from conditions, and there is only a file of statistics: ask for psnr or mae too")


def subject(checkpoint: dict, config, open_model: Callable[[], tuple], scorers) -> bench.Subject:
  """What is to be scored of a model: `of_model` with a task, else `bench.of_model`."""
  if not config.task.name:
    return bench.of_model(checkpoint, config, open_model)
  return of_model(checkpoint, config, open_model, source_of(scorers))


@functools.lru_cache(maxsize=4)  # every setting that is scored asks for it
def fingerprint(source: Source) -> str:
  """SHA-256 of all conditions of a source, and its holes, in their order."""
  digest = hashlib.sha256()
  for start in range(0, len(source), reference.CHUNK):
    found = source.gather(np.arange(start, min(start + reference.CHUNK, len(source))))
    for name in ("condition", "mask"):
      if name in found:
        digest.update(np.ascontiguousarray(found[name]).tobytes())
  return digest.hexdigest()


def make_images(config, method, variables, source: Source, seeds, decoder=None) -> np.ndarray:
  """Images in bytes [n, H, W, C] from the conditions of these seeds [n]; with holes, composites."""
  seeds = np.asarray(seeds)
  found = gather(source, seeds)
  labels, batch = found["label"] if config.data.num_classes else None, 256 * jax.local_device_count()
  more = {"condition": found["condition"], "decoder": decoder}
  images = sampling.generate(config, method, variables, seeds, labels, batch, **more)
  return composite(images, found["condition"], found["mask"]) if "mask" in found else in_bytes(images)


def beside(source: Source, seeds, images, columns: int = 10) -> np.ndarray:
  """Rows of `columns` for a grid, at most three of each: conditions, the images made from them, truths; in bytes.

  Args:
    source: of conditions and truths.
    seeds: [n].
    images: [n, H, W, C] made from these seeds.
    columns: examples a row, 1 to n.
  """
  count = min(len(images) // columns, 3) * columns
  found = gather(source, seeds[:count])
  return images_lib.compared([found["condition"], images[:count], found["image"]], columns)


def simple(task, source: Source) -> tuple[str, bench.Subject]:
  """What a task comes to without a model: its name, and images for `bench.score`.

  Super-resolution by bicubic interpolation, holes filled with the mean colour around them, nothing salient anywhere.

  Args:
    task: a config.task.
    source: of conditions.
  """

  def draw(seeds):
    found = gather(source, seeds)
    if task.name == "saliency":
      return np.zeros((len(found["image"]), *source.image_shape), np.uint8)
    condition = in_bytes(found["condition"])
    if task.name == "superres":
      return condition
    seen = np.asarray(found["mask"]) == 0
    mean = (condition * seen).sum((1, 2), keepdims=True) / seen.sum((1, 2), keepdims=True)
    return composite(np.round(np.broadcast_to(mean, condition.shape)).astype(np.uint8), condition, found["mask"])

  name = {"superres": "bicubic", "inpaint": "mean colour", "saliency": "nothing salient"}[task.name]
  checkpoint = {"name": name, "step": None, "sha256": fingerprint(source)}
  return name, bench.Subject(checkpoint, lambda: (draw, None), task={**task, "path": ""})
