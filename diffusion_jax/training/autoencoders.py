"""The autoencoder that config.latent names: a run of method "autoencoder", or published weights of KL-f4."""

from typing import NamedTuple

import numpy as np
from etils import epath

from diffusion_jax import config as config_lib
from diffusion_jax import latent, mesh
from diffusion_jax.evaluation import features
from diffusion_jax.interop import tensor_reader
from diffusion_jax.methods import autoencoder as autoencoder_method
from diffusion_jax.nets import autoencoder
from diffusion_jax.training import checkpoint
from diffusion_jax.training.checkpoint import WorkdirError
from diffusion_jax.types import Params

METHOD = "autoencoder"
WEIGHTS = (".ckpt", ".pt", ".pth")  # endings of published weights
_ENTRY = "state_dict"  # of the tensors in a file of latent diffusion


class Found(NamedTuple):
  """An autoencoder whose weights are on disk."""

  path: str
  step: int | None  # None for published weights
  network: autoencoder.Autoencoder
  sha256: str

  def provenance(self) -> dict:
    """Its name, step and SHA-256, for records."""
    name = epath.Path(self.path).name if self.step is None else checkpoint.folder_of(self.path).parent.name
    return {"name": name, "step": self.step, "sha256": self.sha256}


def from_config(config) -> latent.Decoder | None:
  """What decodes a run's images; None where its data are no latents.

  Raises:
    ConfigError: as `find`, or the weights cannot be read.
  """
  found = find(config)
  if found is None:
    return None
  try:
    return latent.Decoder(found.network, load(found), config.latent.scale, _is_grey(config))
  except ValueError as error:
    raise _wrong(config, error) from None


def find(config) -> Found | None:
  """Looks for the autoencoder of config.latent without reading its weights; None where the data are no latents.

  Of a run it is the checkpoint that encoded the data (config.latent.sha256).

  Raises:
    ConfigError: there is none, or its latents are not those of the data.
  """
  if config.data.name != config_lib.LATENTS:
    return None
  try:
    found = open_at(config.latent.autoencoder, config, config.latent.sha256)
  except ValueError as error:
    raise _wrong(config, error) from None
  if found.network.latent_channels != config.data.channels:
    expected = f"its latents have {found.network.latent_channels} channels, config.data.channels = "
    raise _wrong(config, f"{expected}{config.data.channels}")
  return found


def open_at(path: str, config, sha256: str = "") -> Found:
  """An autoencoder by its place.

  Args:
    path: workdir of a run of method "autoencoder", or a file of weights.
    config: its config.autoencoder is the network of a file.
    sha256: that it must have; of a run the newest checkpoint otherwise.

  Raises:
    ValueError: there is none, or none with this SHA-256; one line without the path.
    ConfigError: config.autoencoder is impossible.
  """
  if path.endswith(WEIGHTS):
    if not epath.Path(path).is_file():
      raise ValueError("no such file")
    found = Found(path, None, autoencoder_method.network_from_config(config, 3), features.sha256(path))
    known = [found]
  else:
    known = _of_run(path, sha256)
  for found in known:
    if sha256 in ("", found.sha256):
      return found
  raise ValueError(f"it did not encode the data: their autoencoder's SHA-256 is {sha256}, not {known[0].sha256}")


def _of_run(path: str, sha256: str) -> list[Found]:
  """The newest whole checkpoint of a run; where one is asked for, all of them, the newest first."""
  try:
    own = checkpoint.read_config(path)
    if own.method != METHOD:
      raise ValueError(f"expected a run of method {METHOD!r}, not {own.method!r}")
    newest = int(mesh.from_first_host(lambda: str(checkpoint.newest_whole(path))))
  except WorkdirError as error:
    raise ValueError(str(error).replace(f"--workdir={path}: ", "")) from None
  network = autoencoder_method.network_from_config(own, own.data.channels)
  older = [step for step in checkpoint.steps_of(checkpoint.folder_of(path)) if step < newest] if sha256 else []
  return [Found(path, step, network, checkpoint.fingerprint(path, step)) for step in [newest, *older[::-1]]]


def load(found: Found) -> Params:
  """Reads the weights; those of a run are its averages.

  Raises:
    ValueError: they cannot be read, or are another network's.
  """
  if found.step is not None:
    (params,) = checkpoint.load_averages(found.path, found.step)[0].values()
    return params
  value = tensor_reader.read(found.path)
  tensors = value.get(_ENTRY, value) if isinstance(value, dict) else {}
  tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, np.ndarray)}
  if not tensors:
    raise ValueError("it holds no tensors by name")
  return autoencoder.from_state_dict(tensors, found.network)


def image_shape(config) -> tuple[int, int, int]:
  """(H, W, C) of a run's images, decoded where its data are latents.

  Raises:
    ConfigError: as `find`.
  """
  data, found = config.data, find(config)
  if found is None:
    return (data.resolution, data.resolution, data.channels)
  side = found.network.factor * data.resolution
  return (side, side, 1 if _is_grey(config) else found.network.image_channels)


def _is_grey(config) -> bool:
  """Whether images were encoded as three equal channels."""
  return config.task.name == "saliency"


def _wrong(config, expected) -> config_lib.ConfigError:
  return config_lib.wrong("latent.autoencoder", config.latent.autoencoder, str(expected))
