"""The flags that say what is measured, against which real images, on how many."""

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.cli.program import UsageError, checked
from diffusion_jax.data import latents
from diffusion_jax.evaluation import bench, scoring, tasks


class ScoreFlags:
  """The flags that say what is measured, against which real images, on how many.

  With `default` these metrics are measured by default, and with `images` the real images themselves must be there: a
  file of their statistics is not enough, and they are one block by default.
  """

  def __init__(self, default: Sequence[str] | None = None, images: bool = False):
    self._default, self._needs_images = default, images
    metrics, what = ", ".join(scoring.METRICS), ", ".join(default or ()) or "what there is for the data"
    self._metrics = flags.DEFINE_list("metrics", None, f"Some of {metrics}; {what} by default.")
    self._extractor = flags.DEFINE_string(
      "extractor", None, "digits, inception or pixels; that of the data, or inception where --inception is given."
    )
    self._files = {
      "inception": flags.DEFINE_string("inception", None, "Weights: weights-inception-2015-12-05-6726825d.pth."),
      "vgg": flags.DEFINE_string("vgg", None, "Weights: vgg16-397923af.pth, for precision and recall by VGG16 too."),
    }
    self._reference = flags.DEFINE_string("reference", None, "Statistics of the real images: .npz of `mu` and `sigma`.")
    images = "The real images: digits, photos, zip:FILE, folder:PATH, npz:FILE or tfds:NAME; the run's own by default."
    self._data = flags.DEFINE_string("data", None, images)
    task_path = "What belongs to the images of --data, for a run with a task: a folder as config.task.path."
    self._task_path = flags.DEFINE_string("task_path", None, task_path)
    transform = "What brings the images of --data to the size: a config.data.transform."
    self._transform = flags.DEFINE_string("transform", None, transform)
    self._split = flags.DEFINE_string("split", None, "Their split; all of digits, else the run's own by default.")
    self._num_images = flags.DEFINE_integer("num_images", None, "Images a block; as many as the real ones by default.")
    best = "" if images else "; papers report the best of three"
    self._blocks = flags.DEFINE_integer("blocks", 1 if images else 3, f"Blocks of seeds{best}.")

  def check_real(self, config: ConfigDict | None):
    """Raises UsageError unless there are real images: those of a run's config, or by a flag."""
    if (config and config.data.name != "none") or self._data.value:
      return
    if self._needs_images:
      raise UsageError("the real images are missing: --data=digits or --data=zip:FILE")
    if not self._reference.value:
      raise UsageError("the real images are missing: --data=digits, --data=zip:FILE or --reference=FILE.npz")

  def scorers(self, config: ConfigDict | None, image_shape: tuple[int, int, int]) -> list[scoring.Scorer]:
    """What is to be measured.

    Args:
      config: of the run; None if there is none.
      image_shape: (H, W, C) of the images to be scored.

    Raises:
      UsageError: a flag is missing or wrong, or a file cannot be read.
    """
    self.check_real(config)
    own = config is not None and config.data.name != "none"
    config = config.copy_and_resolve_references() if own else config_lib.default()
    if not self._data.value:
      config = latents.before_encoding(config)
    if self._data.value or not own:
      name, _, path = (self._data.value or "").partition(":")
      if name != config.data.name:  # how the run's own images lie and are brought to their size is not how these are
        config.data.update(transform="", data_dir="")
      config.data.update(name=name, path=path, split=self._split.value or "train")
      config.task.path = self._task_path.value or ""
      config.data.transform = self._transform.value or config.data.transform
    else:
      for flag in (self._task_path, self._transform):
        if flag.value:
          raise UsageError(f"--{flag.name}={flag.value}: goes with --data, whose images it is for")
    config.data.update(resolution=image_shape[0], channels=image_shape[-1], num_classes=0)
    if self._split.value:
      config.data.split = self._split.value
    files = {name: flag.value for name, flag in self._files.items()}
    if config.task.name:
      metrics = self._metrics.value or self._default
      return checked(tasks.scorers_for, config, metrics, self._extractor.value, files, self._reference.value)
    return checked(
      bench.scorers_for, config, self._metrics.value or self._default, self._extractor.value, files,
      self._reference.value, whole=not self._split.value, images=self._needs_images,
    )  # fmt: skip

  def protocol(self, scorers: list[scoring.Scorer], available: int | None = None) -> tuple[int, int]:
    """(images a block, blocks); `available` images are there if they are not drawn.

    Raises:
      UsageError: a number is missing or out of range.
    """
    blocks, count = self._blocks.value, self._num_images.value
    if available is not None:
      if flags.FLAGS["blocks"].present and blocks != 1:
        raise UsageError(f"--blocks={blocks}: images that are there already are one block")
      blocks, count = 1, available if count is None else count
      if count > available:
        raise UsageError(f"--num_images={count}: there are {available}")
    if count is None and self._needs_images:
      count = scorers[0].real.num_images
    if count is None:
      count = scorers[0].reference(scorers[0].metrics[0]).num_images or scoring.STANDARD
    least = max(scoring.minimum_images(scorer.metrics) for scorer in scorers)
    if count < least:
      raise UsageError(f"--num_images={count}: at least {least} for these metrics")
    if blocks < 1:
      raise UsageError(f"--blocks={blocks}: at least 1")
    return count, blocks
