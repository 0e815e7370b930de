"""The bench: what is scored, in blocks of seeds, each score computed once and written down with its provenance.

    block b has the seeds  first + b·num_images, …, first + (b+1)·num_images − 1                       (1)

The protocol of papers is three blocks of 50,000 images, of which EDM reports the smallest FID. Other numbers are
allowed; records say whether the number was the standard one.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from diffusion_jax import mesh, sampling
from diffusion_jax.data import latents, sources
from diffusion_jax.evaluation import features, neighbours, scoring
from diffusion_jax.evaluation import records as records_lib
from diffusion_jax.evaluation.records import Records
from diffusion_jax.evaluation.reference import RealImages, StoredStatistics
from diffusion_jax.evaluation.scoring import Scorer
from diffusion_jax.training import autoencoders, classifiers

Draw = Callable[[np.ndarray], np.ndarray]  # seeds [n] -> images [n, H, W, C]

_OPTIONS = {
  "inception_score": {"splits": scoring.SPLITS},
  "precision": {"k": neighbours.NEIGHBOURS},
  "recall": {"k": neighbours.NEIGHBOURS},
  "kernel_distance": {"subset_size": scoring.KID_SUBSET},
}


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is scored, and how its images are drawn.

  Attributes:
    checkpoint: {"name", "step", "sha256"} of a run or of a file.
    draw: () -> (the function from seeds to images, network evaluations an image); called only where needed.
    sampling: the fields of config.sampling; None for images that are there already.
    labels: how classes were chosen, in words; None without classes.
    recovery: {"sigma", "images": SHA-256} where real images are perturbed and denoised, see `recovery.of_model`.
    classifier: {"name", "step", "sha256"} of the one that guides, if one does.
    task: the fields of config.task with the SHA-256 of the conditions, see `tasks.of_model`.
  """

  checkpoint: dict
  draw: Callable[[], tuple[Draw, int | None]]
  sampling: dict | None = None
  labels: str | None = None
  recovery: dict | None = None
  classifier: dict | None = None
  task: dict | None = None


def of_model(checkpoint: dict, config, open_model: Callable[[], tuple]) -> Subject:
  """A model with the sampler of config.sampling; open_model() -> (method, variables) is called only where needed.

  Raises:
    ConfigError: its classifier or autoencoder is not there, or cannot serve it.
  """
  found = classifiers.find(config)
  autoencoders.find(config)

  def draw():
    method, variables = open_model()
    variables = mesh.everywhere(variables)
    classifier = None if found is None else classifiers.load(found)
    batch = 256 * jax.local_device_count()
    guides = {"classifier": classifier, "decoder": autoencoders.from_config(config)}
    run = lambda seeds: sampling.generate(config, method, variables, seeds, batch_size=batch, **guides)
    return run, sampling.mean_evaluations(config, method, variables, range(64), classifier=classifier)

  classes = config.data.num_classes or (0 if found is None else found.config.data.num_classes)
  labels = f"seed modulo {classes}" if classes else None
  guide = None if found is None else found.provenance()
  return Subject(checkpoint, draw, dict(config.sampling), labels, classifier=guide)


def scorers_for(
  config,
  metrics: Sequence[str] | None = None,
  extractor: str | None = None,
  files: Mapping[str, str] | None = None,
  reference: str | None = None,
  whole: bool = True,
  progress: Callable[[int], None] | None = None,
  images: bool = False,
) -> list[Scorer]:
  """The scorers of a config's data.

  Precision and recall are those of the main extractor, and of VGG16 too where its weights are given; memorisation is
  measured in pixels against config.data.split.

  Args:
    config: a run's config, or any other whose `data` says what the real images are; for latents those before encoding.
    metrics: some of `scoring.METRICS`; by default what the extractor has, and with `reference` what needs no more.
    extractor: "digits", "inception" or "pixels"; by default digits for digits, Inception where its weights are given,
      and else pixels.
    files: weights by extractor, {"inception": path, "vgg": path}.
    reference: file of statistics that stands for the real images.
    whole: take all digits as the real ones, whatever config.data.split.
    progress: called with numbers of real images done.
    images: have the real images at hand (`Scorer.real`) where `reference` is enough for the metrics, too.

  Raises:
    ValueError: something is unknown, missing, or cannot be read.
    ConfigError: there are no such data.
  """
  files = {name: path for name, path in (files or {}).items() if path}
  config = latents.before_encoding(config)
  data = config.data
  main = extractor or ("digits" if data.name == "digits" else "inception" if "inception" in files else "pixels")
  if metrics is None:
    metrics = ["frechet"] + ["inception_score"] * (main == "inception")
    metrics += [] if reference else ["precision", "recall"] + ["memorised"] * (main != "inception")
  for metric in metrics:
    if metric not in scoring.METRICS:
      raise ValueError(f"metrics are {', '.join(scoring.METRICS)}, got {metric!r}")
    if scoring.METRICS[metric][1] and not data.name:
      raise ValueError(f"{metric} needs the real images themselves (--data), not only their statistics")
  needed = images or not reference or any(scoring.METRICS[metric][1] for metric in metrics)
  train = sources.from_config(config) if data.name and needed else None  # data that nothing needs may be elsewhere
  real = sources.load("digits", "all") if train is not None and data.name == "digits" and whole else train
  open_extractor = lambda name: features.load(name, files.get(name), data.resolution, data.channels)

  out = []
  chosen = [metric for metric in metrics if metric != "memorised"]
  if chosen:
    if real is None and not reference:
      raise ValueError("the real images are missing: neither data nor a file of their statistics")
    network = open_extractor(main)
    own = None if real is None else RealImages(network, real, progress)
    if main == "pixels" and real is train and "memorised" in metrics:
      chosen = metrics  # the same features of the same images
    out.append(Scorer(network, chosen, StoredStatistics(network, reference) if reference else own, own))
  pairs = [metric for metric in metrics if metric in ("precision", "recall")]
  if pairs and "vgg" in files and main != "vgg":
    network = open_extractor("vgg")
    out.append(Scorer(network, pairs, RealImages(network, real, progress)))
  if "memorised" in metrics and "memorised" not in chosen:
    network = open_extractor("pixels")
    out.append(Scorer(network, ["memorised"], RealImages(network, train, progress)))
  return out


def wanted(subject: Subject, scorers: Sequence[Scorer], num_images: int, blocks: int, first: int = 0) -> list[dict]:
  """The records, without values, of all scores of a subject: block by block, in the order of scorers and metrics."""
  out = []
  extra = {name: getattr(subject, name) for name in ("classifier", "recovery", "task")}
  extra = {name: value for name, value in extra.items() if value is not None}  # other records have no such field
  for block in range(blocks):
    start = first + block * num_images
    for scorer in scorers:
      extractor = scorer.extractor
      for metric in scorer.metrics:
        reference = scorer.reference(metric)
        layer = extractor.logits if metric == "inception_score" else extractor.features
        out.append(
          {
            "metric": metric,
            "options": _OPTIONS.get(metric, {}),
            "extractor": {
              "name": extractor.name,
              "weights": extractor.weights,
              "layer": layer,
              "resize": extractor.resize,
            },
            "reference": {
              "name": reference.name,
              "sha256": reference.sha256,
              "num_images": reference.num_images,
            },
            "num_images": num_images,
            "standard": num_images == scoring.STANDARD,
            "seeds": [start, start + num_images - 1],
            "labels": subject.labels,
            "checkpoint": subject.checkpoint,
            "sampling": subject.sampling,
            **extra,
          }
        )
  return out


def score(
  subject: Subject,
  scorers: Sequence[Scorer],
  records: Records,
  num_images: int,
  blocks: int = 1,
  first: int = 0,
  progress: Callable[[int], None] | None = None,
  **options,
) -> list[dict]:
  """The records of a subject; what is on file is taken from there, and a block that was interrupted goes on.

  Args:
    subject: from `of_model`, or any other.
    scorers: what to measure.
    records: the file; a partial block lies beside it.
    num_images: of a block.
    blocks: how many, with seeds by equation (1).
    first: the first seed.
    progress: called with numbers of images done, those on file too; in the end they sum to blocks·num_images.
    **options: of `scoring.score_block`.

  Returns:
    The records of `wanted`, with "value", "nfe", "seconds" of the block, "versions" and "device".

  Raises:
    ValueError: fewer images than a metric needs, or one of a score's own errors.
  """
  least = max(scoring.minimum_images(scorer.metrics) for scorer in scorers)
  if num_images < least or blocks < 1:
    raise ValueError(f"expected at least {least} images and 1 block, got {num_images} and {blocks}")
  draw, nfe = None, None
  for block in range(blocks):
    start = first + block * num_images
    templates = wanted(subject, scorers, num_images, 1, start)
    missing = [template for template in templates if records.get(template) is None]
    known = [template not in missing for template in templates]
    mesh.check_same(known, f"{records.path.parent} must be a folder that all hosts share")
    if not missing:
      if progress:
        progress(num_images)
      continue
    if draw is None:
      draw, nfe = subject.draw()
    needed = _only(scorers, missing)
    partial = records.path.parent / f"partial-{records_lib.digest([records_lib.identity(m) for m in missing])}.npz"
    clock = time.monotonic()
    found = scoring.score_block(
      draw, np.arange(start, start + num_images), needed, partial, progress=progress, **options
    )
    circumstances = {
      "nfe": nfe,
      "seconds": round(time.monotonic() - clock, 1),
      "versions": records_lib.versions(),
      "device": records_lib.device(),
    }
    values = {
      (scorer.extractor.name, metric): value for scorer, part in zip(needed, found) for metric, value in part.items()
    }
    for template in missing:
      value = values[template["extractor"]["name"], template["metric"]]
      if not math.isfinite(value):
        raise ValueError(f"{template['metric']} of seeds {template['seeds']} is {value}")
      template.update(circumstances, value=value)
    if jax.process_index() == 0:
      records.add(missing)
    else:
      records.remember(missing)
  return [records.get(template) for template in wanted(subject, scorers, num_images, blocks, first)]


def _only(scorers: Sequence[Scorer], missing: Sequence[dict]) -> list[Scorer]:
  """Scorers of the missing metrics alone."""
  out = []
  for scorer in scorers:
    named = {m["metric"] for m in missing if m["extractor"]["name"] == scorer.extractor.name}
    metrics = [metric for metric in scorer.metrics if metric in named]
    if metrics:
      out.append(scorer.fresh(metrics))
  return out


def summary(found: Sequence[dict]) -> dict[tuple[str, str], dict[str, float]]:
  """{(metric, extractor): mean, std, min, max over blocks} of one subject's records."""
  groups = {}
  for record in found:
    groups.setdefault((record["metric"], record["extractor"]["name"]), []).append(record["value"])
  return {key: records_lib.over_blocks(values) for key, values in groups.items()}
