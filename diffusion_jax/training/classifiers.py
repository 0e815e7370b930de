"""The classifier that config.sampling names: a run of method "classifier", whose averaged weights guide another's."""

from typing import NamedTuple

from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import guidance, mesh
from diffusion_jax.methods import classifier as classifier_method
from diffusion_jax.training import checkpoint, state
from diffusion_jax.training.checkpoint import WorkdirError

METHOD = "classifier"


class Found(NamedTuple):
  """A classifier that can guide a run; its weights are on disk."""

  path: str
  step: int
  config: ConfigDict  # its own
  scale: float

  def provenance(self) -> dict:
    """Its name, step and SHA-256, for records."""
    sha256 = checkpoint.fingerprint(self.path, self.step)
    return {"name": checkpoint.folder_of(self.path).parent.name, "step": self.step, "sha256": sha256}


def from_config(config) -> guidance.Classifier | None:
  """The classifier of a run's config.sampling, its newest whole checkpoint; None where the scale is 0.

  Raises:
    ConfigError: as `find`, or it cannot be read.
  """
  found = find(config)
  return None if found is None else load(found)


def find(config) -> Found | None:
  """Looks for the classifier of a run's config.sampling without reading its weights; None where the scale is 0.

  Raises:
    ConfigError: the scale is negative or without a classifier, there is no run of method "classifier" with a checkpoint
      at config.sampling.classifier, or its images or classes are not those of the run.
  """
  setting, path = config.sampling, config.sampling.classifier
  config_lib.check_guide(setting)
  if not setting.classifier_scale:
    return None
  try:
    own = checkpoint.read_config(path)
    if own.method != METHOD:
      raise _wrong(path, f"expected a run of method {METHOD!r}, not {own.method!r}")
    step = int(mesh.from_first_host(lambda: str(checkpoint.newest_whole(path))))
  except WorkdirError as error:
    raise _wrong(path, str(error).replace(f"--workdir={path}: ", "")) from None
  for name in ("resolution", "channels", "num_classes"):
    if own.data[name] != config.data[name] and not (name == "num_classes" and config.data[name] == 0):
      raise _wrong(path, f"trained with data.{name} = {own.data[name]}, this run has {config.data[name]}")
  return Found(path, step, own, setting.classifier_scale)


def load(found: Found) -> guidance.Classifier:
  """Reads the weights. The classifier is evaluated in float32: in float16 small gradients are lost.

  Raises:
    ConfigError: they cannot be read.
  """
  try:
    averages, own = checkpoint.load_averages(found.path, found.step)
  except WorkdirError as error:
    raise _wrong(found.path, str(error)) from None
  own.network.dtype = "float32"
  logits, chain = classifier_method.logits_from_config(own), classifier_method.process_from_config(own)
  variables = state.inference_variables(averages)
  return guidance.Classifier(logits, chain, own.data.num_classes, variables, found.scale)


def _wrong(path: str, expected: str) -> config_lib.ConfigError:
  return config_lib.wrong("sampling.classifier", path, expected)
