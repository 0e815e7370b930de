"""What a method is, and its network by a config, which every method reads alike."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import config as config_lib
from diffusion_jax import parameterization as par
from diffusion_jax.data import augment
from diffusion_jax.methods import conditions
from diffusion_jax.nets import conditional, unet
from diffusion_jax.process import Process
from diffusion_jax.training import state as state_lib
from diffusion_jax.training import update as update_lib
from diffusion_jax.types import Array, Key, Params

_ARCHITECTURES = {"ddpmpp": unet.ddpmpp, "ncsnpp": unet.ncsnpp, "adm": unet.adm}


class Method(NamedTuple):
  """A paper's method: three pure functions, and the process that the third one's x and t belong to.

  Attributes:
    init: (key, example_batch) -> TrainState.
    update: (state, batch, key) -> (state, metrics): one optimisation step; `batch` holds "image" [B, H, W, C],
      "index" and "slot" [B] and, with classes, "label" [B], with a task "condition" [B, h, w, c]; of latents "image" is
      their mean, beside "log_variance"; of examples remembered on the hosts "stored" is what is.
    denoise: (variables, x, t, cond) -> Prediction; cond is None or {"label": [B] int, -1 for none}, in training also
      "augment" [B, 9], the labels of EDM's augmentation, and "dropout", keys [B]. None for a method that draws nothing.
    process: the forward process of denoise's x and t.
    samplers: names of the samplers that serve the method, the default first.
    preconditioner: of a method that has one: the noise levels that its network knows bound the grids.
    times: (keys [B]) -> [B]: the times at which `update` trains the examples with these keys; [B, n] of an update that
      takes n steps, in their order.
    initial: roles of the networks that config.init_from gives its weights to.
    weight: of a method that has one: noise levels -> λ(σ), of the same shape, by which its loss weighs ‖x̂_0 − x_0‖².
    remember: of a method that remembers its examples: key -> TrainState.buffer before the first update.
    encode: of a run with a task: (variables, condition [B, h, w, c] in [−1, 1]) -> cond["condition"] for denoise, which
      takes the condition itself too. None for a run without.
  """

  init: Callable
  update: Callable
  denoise: Callable | None
  process: Process
  samplers: tuple[str, ...]
  preconditioner: par.Preconditioner | None = None
  times: Callable | None = None
  initial: tuple[str, ...] = ("net",)
  weight: Callable | None = None
  encode: Callable | None = None
  remember: Callable | None = None


def network_from_config(config, heads: tuple[tuple[str, int], ...], **more) -> unet.UNet | conditional.Conditional:
  """The U-Net of config.network with the given heads; `more` are fields of the U-Net that a method sets.

  With a task it comes with the encoder of config.condition.

  Raises:
    ConfigError: the network cannot be built.
  """
  encoder, context = (None, ()) if not config.task.name else conditions.encoder_from_config(config)
  fields = {name: value for name, value in config.network.items() if name != "arch"}
  fields["freqs"] = fields["freqs"] or None
  make = config_lib.choose("network.arch", config.network.arch, _ARCHITECTURES)
  try:
    network = make(
      heads=heads,
      resolution=config.data.resolution,
      num_classes=config.data.num_classes,
      augment_dim=augment.NUM_LABELS if config.data.augment else 0,
      context=context,
      cross_attention=config.condition.cross_attention,
      **fields,
      **more,
    )
  except ValueError as error:
    message = f"config.{error}".replace("network.resolution", "data.resolution")
    message = message.replace("resolutions of network.context", "resolutions at which a condition is joined")
    message = message.replace("network.cross_attention", "condition.cross_attention")
    raise config_lib.ConfigError(message.replace("network.token_attention", "dddm.attention_resolutions")) from None
  if encoder is None:
    return network
  return conditional.Conditional(network, encoder, conditions.condition_shape(config))


def init_network(network, key: Key, example_batch) -> Params:
  """Parameters of a network for batches of these shapes."""
  x = jnp.zeros(example_batch["image"].shape)
  more = {"context": jnp.zeros(example_batch["condition"].shape)} if "condition" in example_batch else {}
  return network.init(key, x, jnp.zeros(len(x)), **more)["params"]


def apply_network(network, config, variables, x: Array, c_noise: Array, cond: dict | None):
  """What a network of `network_from_config` says of its input x and c_noise, given `cond` (see `Method.denoise`)."""
  cond = cond or {}
  labels = one_hot(cond.get("label"), config.data.num_classes)
  more = {} if cond.get("condition") is None else {"context": cond["condition"]}
  return network.apply(variables, x, c_noise, labels, cond.get("augment"), cond.get("dropout"), **more)


def encode_with(network) -> Callable | None:
  """`Method.encode` of a network; None for one without a condition."""
  if not isinstance(network, conditional.Conditional):
    return None
  return lambda variables, condition: network.apply(variables, condition, method="encode")


def init_of(config, network) -> Callable:
  """`Method.init` of a method with one network, "net"."""

  def init(key, example_batch):
    params = {"net": init_network(network, key, example_batch)}
    return state_lib.create(params, update_lib.init_optimizer(config, params))

  return init


def one_hot(label: Array | None, num_classes: int) -> Array | None:
  """Labels [B] as [B, num_classes]; -1 is no label, zeros. None stays None."""
  return None if label is None or not num_classes else jax.nn.one_hot(label, num_classes)
