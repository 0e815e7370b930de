"""Scores of images made from conditions, each against the image it should be.

    superres: PSNR;   saliency: MAE, as it is and binarised at ½;   inpaint: PSNR and the Fréchet distance of

    composite = (1 − mask)·condition + mask·result                                                          (1)

Seed s makes an image from the condition of example s mod N, so a block of N seeds makes each once. Means are over the
images of a block. Source of the metrics: Huang et al., Section 5.1; images count as they are shown, in bytes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

import jax

from diffusion_jax import mesh, sampling
from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation import bench, paired, reference
from diffusion_jax.evaluation.reference import in_bytes

METRICS = {"superres": ("psnr",), "saliency": ("mae", "mae_binary"), "inpaint": ("psnr", "frechet")}
EXTRACTOR = "pairs"  # in records

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
  """Means over the pairs of an image and its truth; to `scoring.score_block` it is a Scorer."""

  extractor, real = _Pairs(), None

  def __init__(self, metrics: Sequence[str], source: Source):
    """`metrics` are of BY_NAME, `source` has the truths."""
    self.metrics, self._source, self._rows = tuple(metrics), source, []
    self._reference = _Truths(f"{source.name}/{source.split}", len(source), reference.fingerprint(source))

  def fresh(self, metrics: Sequence[str] | None = None) -> "PairedScorer":
    """The same without images, for some of its metrics."""
    out = object.__new__(PairedScorer)
    out.metrics, out._source, out._rows = tuple(metrics or self.metrics), self._source, []
    out._reference = self._reference
    return out

  def reference(self, metric: str) -> _Truths:
    return self._reference

  def extract(self, images, seeds) -> dict[str, np.ndarray]:
    """{"pairs": [n, metrics]}: each image's scores, of uint8 images [n, H, W, C] made from these seeds."""
    truth = in_bytes(self._source.gather(np.asarray(seeds) % len(self._source))["image"])
    return {"pairs": np.stack([BY_NAME[metric](images, truth) for metric in self.metrics], -1)}

  def add(self, extracted: dict[str, np.ndarray]):
    self._rows.append(extracted["pairs"])

  def scores(self) -> dict[str, float]:
    """{metric: mean over the images taken so far}."""
    return dict(zip(self.metrics, np.concatenate(self._rows).mean(0).tolist()))

  def state(self) -> dict[str, np.ndarray]:
    return {"pairs": np.concatenate(self._rows)} if self._rows else {}

  def restore(self, state: dict[str, np.ndarray]):
    self._rows = [state["pairs"]]


def mae_binary(images, truth) -> np.ndarray:
  """The share of pixels on the wrong side of ½, [B], of uint8 images [B, H, W, C]."""
  return np.mean((images >= _HALF) != (truth >= _HALF), axis=(1, 2, 3))


BY_NAME = {"psnr": paired.psnr, "mae": paired.mae, "mae_binary": mae_binary}


def composite(images, condition, mask) -> np.ndarray:
  """Equation (1) in bytes: `images` in the holes of `condition`, both [n, H, W, C]; mask [n, H, W, 1], 1 in holes."""
  return np.where(np.asarray(mask) != 0, in_bytes(images), in_bytes(condition))


def of_model(checkpoint: dict, config, open_model: Callable[[], tuple], source: Source) -> bench.Subject:
  """A model with a task, the sampler of config.sampling, and the conditions of a source, as `bench.score` takes it.

  Args:
    checkpoint: as of `bench.Subject`.
    config: the model's; reads `task`, `data` and `sampling`.
    open_model: () -> (method, variables); called only where needed.
    source: of conditions, see `data.tasks`.
  """

  def draw():
    method, variables = open_model()
    variables = mesh.everywhere(variables)
    make = lambda seeds: make_images(config, method, variables, source, seeds)
    return make, sampling.evaluations(config.sampling, method)

  labels = "those of the images" if config.data.num_classes else None
  task = {**config.task, "conditions": reference.fingerprint(source)}
  return bench.Subject(checkpoint, draw, dict(config.sampling), labels, task=task)


def make_images(config, method, variables, source: Source, seeds) -> np.ndarray:
  """Images in bytes [n, H, W, C] from the conditions of examples s mod N; with holes, composites."""
  seeds = np.asarray(seeds)
  found = source.gather(seeds % len(source))
  labels, batch = found["label"] if config.data.num_classes else None, 256 * jax.local_device_count()
  images = sampling.generate(config, method, variables, seeds, labels, batch, condition=found["condition"])
  return composite(images, found["condition"], found["mask"]) if "mask" in found else in_bytes(images)


def simple(task: str, source: Source) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
  """What a task comes to without a model: (its name, seeds -> images in bytes).

  Super-resolution by bicubic interpolation, holes filled with the mean colour around them, nothing salient anywhere.
  """

  def draw(seeds):
    found = source.gather(np.asarray(seeds) % len(source))
    if task == "saliency":
      return np.zeros((len(found["image"]), *source.image_shape), np.uint8)
    condition = in_bytes(found["condition"])
    if task == "superres":
      return condition
    seen = np.asarray(found["mask"]) == 0
    mean = (condition * seen).sum((1, 2), keepdims=True) / seen.sum((1, 2), keepdims=True)
    return composite(np.round(np.broadcast_to(mean, condition.shape)).astype(np.uint8), condition, found["mask"])

  return {"superres": "bicubic", "inpaint": "mean colour", "saliency": "nothing salient"}[task], draw
