"""What a config with a task says of its condition: its shape, the encoder that sees it, where the U-Net takes it in."""

import math

from diffusion_jax import config as config_lib
from diffusion_jax.data.base import Source
from diffusion_jax.nets import conditional

ENCODERS = ("conv", "swin_t", "swin_s", "swin_b")


def encoder_from_config(config) -> tuple[conditional.ConvEncoder | conditional.SwinEncoder, tuple]:
  """The encoder of config.condition, and pairs (size, channels) of its features that the U-Net has a level for.

  Raises:
    ConfigError: the encoder is unknown, does not fit the condition, or none of its features has the size of a level.
  """
  setting, network = config.condition, config.network
  size, _, channels = condition_shape(config)
  field = f"condition.{'resolution' if setting.resolution else 'encoder'}"
  levels = [config.data.resolution >> level for level in range(len(network.channel_mult))]
  name = config_lib.choose("condition.encoder", setting.encoder, ENCODERS)
  if name == "conv":
    for swin in ("upsample", "weights"):
      if setting[swin] != config_lib.default().condition[swin]:
        expected = f"must be {config_lib.default().condition[swin]!r} for the encoder conv"
        raise config_lib.wrong(f"condition.{swin}", setting[swin], expected)
    more = round(math.log2(size / config.data.resolution))  # levels above the U-Net's
    if size != config.data.resolution * 2**more or more < 0:
      expected = f"must be data.resolution ({config.data.resolution}) times a power of 2 for the encoder conv"
      raise config_lib.wrong("condition.resolution", size, expected)
    widths = tuple(network.channels * mult for mult in network.channel_mult)
    encoder = conditional.ConvEncoder((network.channels,) * more + widths)
  else:
    if channels != 3:
      raise config_lib.wrong("condition.encoder", name, f"sees 3 channels, the condition has {channels}: conv sees any")
    encoder = conditional.SwinEncoder(name.removeprefix("swin_"), setting.upsample)
  context = tuple(pair for pair in dict(encoder.sizes(size)).items() if pair[0] in levels)
  if not context:
    sizes = [pair[0] for pair in encoder.sizes(size)]
    expected = f"features of {sizes} pixels a side meet no level of the U-Net, {levels}; see condition.upsample"
    raise config_lib.wrong(field, setting[field.split(".")[1]], expected)
  return encoder, context


def check(config, source: Source):
  """Raises ConfigError unless the source of a config with a task has conditions of the shape that it says."""
  if config.task.name and source.condition_shape != condition_shape(config):
    expected = f"the conditions of {config.data.name} are {source.condition_shape}"
    raise config_lib.wrong("condition.resolution, condition.channels", condition_shape(config), expected)


def condition_shape(config) -> tuple[int, int, int]:
  """(h, w, c) of the condition of a config with a task."""
  size = config.condition.resolution or config.data.resolution
  own = 3 if config.task.name == "saliency" else config.data.channels
  return size, size, config.condition.channels or own
