"""A classifier of noisy images, whose gradient guides the sampling of other methods (Dhariwal & Nichol 2021, Sec. 4).

    −log p_θ(y|x_t, t),  x_t = α(t)·x_0 + σ(t)·ε,  t ~ U{1, …, T}                       (1)

in a chain, "linear" (DDPM's, T = 1000) or "cosine" (iDDPM's, T = 4000). The network is given x_t as it is and the index
t − 1, as those of Dual-Output are, so that either starts from the other's encoder. Nothing is sampled from it:
`guidance.classifier` has its use.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from diffusion_jax import parameterization as par
from diffusion_jax import process as process_lib
from diffusion_jax import times
from diffusion_jax.config import choose
from diffusion_jax.methods import base, batches
from diffusion_jax.methods.dual_output import PROCESSES
from diffusion_jax.nets import classifier
from diffusion_jax.training import state as state_lib
from diffusion_jax.training import update as update_lib
from diffusion_jax.types import Array, Key, Params

# Streams of an example's key.
_TIME, _NOISE, _FLIP, _DROPOUT = range(4)


def from_config(config, axis_name: str | None = None) -> base.Method:
  """The method of a config; it has neither `denoise` nor samplers.

  Args:
    config: the run's config; reads `classifier`, `network`, `data` and what training shares.
    axis_name: axis that the update is pmapped over, if it is.

  Raises:
    ConfigError: a name or the network is impossible.
  """
  chain, logits = process_from_config(config), logits_from_config(config)
  law = times.discrete(chain.num_steps)

  def init(key, example_batch):
    x = jnp.zeros(example_batch["image"].shape)
    params = logits.network.init(key, x, jnp.zeros(len(x)))["params"]
    return state_lib.create({"net": params}, update_lib.init_optimizer(config, {"net": params}))

  def draw_times(keys):
    return jax.vmap(lambda key: law(jax.random.fold_in(key, _TIME), 1)[0])(keys)

  def loss_fn(params, batch):
    stream = functools.partial(batches.streams, batch["key"])
    x0, t = batches.images_of(batch, stream(_FLIP), config.data.flip), draw_times(batch["key"])
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(stream(_NOISE))
    out = logits({"params": params}, chain.perturb(x0, eps, t), t, stream(_DROPOUT))
    loss = optax.softmax_cross_entropy_with_integer_labels(out, batch["label"])
    return jnp.mean(loss), {"accuracy": jnp.mean(jnp.argmax(out, axis=1) == batch["label"])}

  update = update_lib.of_loss(config, loss_fn, axis_name)
  return base.Method(init, update, None, chain, (), par.Unconditioned(chain), draw_times)


def process_from_config(config) -> process_lib.Discrete:
  """The chain of config.classifier."""
  return choose("classifier.process", config.classifier.process, PROCESSES)()


@dataclasses.dataclass(frozen=True)
class Logits:
  """(variables, x_t [B, H, W, C], t scalar or [B], dropout keys [B] or None) -> logits [B, num_classes] in float32.

  Those of equal networks are equal, so that what is compiled for one serves them all.
  """

  network: classifier.Classifier
  num_steps: int  # T

  def __call__(self, variables: Params, x: Array, t, dropout_keys: Key | None = None) -> Array:
    index = jnp.clip(process_lib.as_time(t), 1, self.num_steps) - 1  # the network knows t = 1..T
    return self.network.apply(variables, x, jnp.broadcast_to(index, x.shape[:1]), dropout_keys)


def logits_from_config(config) -> Logits:
  """What the network of a config says of (x_t, t).

  Raises:
    ConfigError: as `from_config`.
  """
  classes = config.data.num_classes
  network = classifier.over(base.network_from_config(config, (("logits", classes),)), classes)
  return Logits(network, process_from_config(config).num_steps)
