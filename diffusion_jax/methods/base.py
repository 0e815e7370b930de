"""What a method is, and the parts of a config that every method reads alike."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import config as config_lib
from diffusion_jax import latent, times
from diffusion_jax import parameterization as par
from diffusion_jax.data import augment
from diffusion_jax.methods import conditions
from diffusion_jax.nets import conditional, unet
from diffusion_jax.process import Process
from diffusion_jax.training import state as state_lib
from diffusion_jax.training import update as update_lib
from diffusion_jax.types import Array, Key, Params

_ARCHITECTURES = {"ddpmpp": unet.ddpmpp, "ncsnpp": unet.ncsnpp, "adm": unet.adm}
# Streams of an example's key that this module draws from; a method's own have the numbers from OWN_STREAMS on. AUGMENT
# also decides which images data.flip mirrors.
_TIME, _NOISE, _LABEL, AUGMENT, _DROPOUT = range(5)
OWN_STREAMS = 5


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


class Examples(NamedTuple):
  """What a loss needs of a batch.

  Attributes:
    clean: images, or scaled latents, [B, H, W, C].
    eps: noise of the same shape.
    cond: for `Method.denoise`.
  """

  clean: Array
  eps: Array
  cond: dict[str, Array | None]


def init_of(config, network) -> Callable:
  """`Method.init` of a method with one network, "net"."""

  def init(key, example_batch):
    params = {"net": init_network(network, key, example_batch)}
    return state_lib.create(params, update_lib.init_optimizer(config, params))

  return init


def times_of(law: times.Law) -> Callable[[Key], Array]:
  """`Method.times` of a law of t: keys [B] -> [B]."""
  return lambda keys: jax.vmap(lambda key: law(jax.random.fold_in(key, _TIME), 1)[0])(keys)


def examples(config, batch) -> Examples:
  """A batch as a loss needs it, every example by its own key batch["key"] alone."""
  stream = functools.partial(streams, batch["key"])
  clean = images_of(batch, stream(AUGMENT), config.data.flip, config.latent.scale)
  clean, labels = augmented(clean, stream(AUGMENT), config.data.augment)
  eps = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(stream(_NOISE))
  cond = {
    "label": labels_of(batch, stream(_LABEL), config),
    "augment": labels,
    "dropout": stream(_DROPOUT),
    "condition": condition_of(batch, stream(AUGMENT), config.data.flip),
  }
  return Examples(clean, eps, cond)


def images_of(batch, keys: Key, flip: bool, scale: float = 1.0) -> Array:
  """A batch's images [B, H, W, C] in [−1, 1], float32; with `flip` each is mirrored or not by its key alone.

  Of latents it is `latent.draw` with config.latent.scale, each by its key alone, and there is no `flip`.
  """
  if "log_variance" in batch:
    return latent.draw(keys, batch["image"], batch["log_variance"], scale)
  return _in_range(batch["image"], keys, flip)


def condition_of(batch, keys: Key, flip: bool) -> Array | None:
  """A batch's conditions [B, h, w, c], as `images_of` gives the images; None where it has none."""
  return _in_range(batch["condition"], keys, flip) if "condition" in batch else None


def _in_range(images: Array, keys: Key, flip: bool) -> Array:
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 127.5 - 1
  if flip:
    mirror = jax.vmap(jax.random.bernoulli)(keys)
    images = jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)
  return images


def augmented(images: Array, keys: Key, probability: float) -> tuple[Array, Array | None]:
  """EDM's augmentation of images [B, H, W, C], each by its key alone, and its labels [B, 9]; None at probability 0."""
  if not probability:
    return images, None
  labels = augment.draw(keys, probability)
  return augment.warp(images, labels), labels


def labels_of(batch, keys: Key, config) -> Array | None:
  """A batch's labels [B], −1 for the share config.label_dropout of them; None for data without classes."""
  if not config.data.num_classes:
    return None
  drop = jax.vmap(lambda key: jax.random.bernoulli(key, config.label_dropout))(keys)
  return jnp.where(drop, -1, batch["label"])


def streams(keys: Key, number: int) -> Key:
  """The stream of each key [B] with this number: one for each purpose that draws random numbers."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def one_hot(label: Array | None, num_classes: int) -> Array | None:
  """Labels [B] as [B, num_classes]; -1 is no label, zeros. None stays None."""
  return None if label is None or not num_classes else jax.nn.one_hot(label, num_classes)
