"""The flags that say which images go through which autoencoder."""

from absl import flags
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.cli.program import UsageError, checked, define_config
from diffusion_jax.data import latents, sources
from diffusion_jax.training import autoencoders
from diffusion_jax.types import Params


class AutoencoderFlags:
  """The flags --config or --data, with --split, and --autoencoder."""

  def __init__(self):
    self._get_config = define_config(about="Config with the images; or --data.", required=False)
    known = "digits, photos, zip:FILE, folder:PATH, npz:FILE or tfds:NAME"
    self._data = flags.DEFINE_string("data", None, f"The images, in place of those of --config: {known}.")
    self._split = flags.DEFINE_string("split", None, "Their split; train, or that of --config, by default.")
    about = "Workdir of a run of method autoencoder, or a file of published weights (.ckpt, .pt, .pth)."
    self._autoencoder = flags.DEFINE_string("autoencoder", None, about)

  @property
  def path(self) -> str:
    """Of the autoencoder; raises UsageError where it is not given."""
    if not self._autoencoder.value:
      raise UsageError(f"--autoencoder is missing: {flags.FLAGS['autoencoder'].help}")
    return self._autoencoder.value

  def images(self) -> tuple[ConfigDict, sources.Source]:
    """A config whose `data` are the images, and they themselves.

    Raises:
      UsageError: neither --config nor --data is given, or there are no such images.
      ConfigError: the config is wrong.
    """
    config, split = self._get_config(), self._split.value
    if config is None and not self._data.value:
      raise UsageError("--data or --config is needed: the images, such as --data=photos")
    if config is not None:
      config_lib.check(config)
    config = config_lib.default() if config is None else latents.before_encoding(config).copy_and_resolve_references()
    if self._data.value:
      name, _, path = self._data.value.partition(":")
      source = checked(sources.load, name, split or "train", **({"path": path} if path else {}))
      height, width, channels = source.image_shape
      if height != width:
        raise UsageError(f"--data={self._data.value}: square images are needed, these are {height}×{width}")
      config.data.update(name=name, path=path, split=split or "train", transform="", data_dir="")
      config.data.update(resolution=height, channels=channels, num_classes=source.num_classes)
    elif split:
      config.data.split = split
    return config, sources.from_config(config)

  def open(self, config: ConfigDict) -> tuple[autoencoders.Found, Params]:
    """The autoencoder for images of config.data; config.autoencoder is the network of a file of weights.

    Raises:
      UsageError: there is none, or it does not take these images.
    """
    try:
      found = autoencoders.open_at(self.path, config)
      params = autoencoders.load(found)
    except config_lib.ConfigError:
      raise
    except ValueError as error:
      raise UsageError(f"--autoencoder={self.path}: {error}") from None
    network, data = found.network, config.data
    if data.channels not in (1, network.image_channels) or data.resolution % network.factor:
      sides = f"sides that are multiples of {network.factor}"
      expected = f"takes images of 1 or {network.image_channels} channels with {sides}"
      shape = f"{data.resolution}×{data.resolution}×{data.channels}"
      raise UsageError(f"--autoencoder={self.path}: {expected}, not {shape}")
    return found, params
