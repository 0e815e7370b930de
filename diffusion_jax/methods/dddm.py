"""DDDM: a network that sees what it last made of the image (Zhang, Wang & Luo 2024).

    f(x̄_0, x_t, t) = x_t − F(x̄_0, x_t, t)                                              (eq. 3)
    E d(f(x̄_0, x_t, t), x_0),  t ~ U{1, …, T}                                          (eq. 5)

By Algorithm 1 every example has an estimate x̄_0 of its own, from N(0, I) before the first epoch: f of the visit before,
in float32 or less, as TrainState.buffer. No gradient passes through it. It belongs to the image as the data have it: a
visit that sees the image mirrored mirrors the estimate too, and what it stores back. A warp cannot be undone, so a
visit that warps the image (data.augment) leaves the estimate as it was before the update. In place of the buffer an
update may make x̄_0 from its own x_t,

    x̄_0^(0) ~ N(0, I),  x̄_0^(i+1) = f(x̄_0^(i), x_t, t),  x̄_0 = x̄_0^(k),  k ~ U{0, …, K}     (1)

which is what Algorithm 2 meets when it samples. The published code stores x_0 itself and minimises

    w·d(f, x_0) + (1 − w)·d(f, x̄_0),  w = 1/(epoch + 1)                                  (2)

both are options here.
"""

import jax
import jax.numpy as jnp

from diffusion_jax import config as config_lib
from diffusion_jax import losses, times
from diffusion_jax import parameterization as par
from diffusion_jax import process as process_lib
from diffusion_jax.data import augment
from diffusion_jax.methods import base, batches, distances
from diffusion_jax.nets import estimated
from diffusion_jax.training import memory
from diffusion_jax.training import state as state_lib
from diffusion_jax.training import update as update_lib
from diffusion_jax.types import normal

SAMPLERS = ("dddm",)
# Streams of an example's key.
_INITIAL, _REFRESH, _ITERATIONS, _FIRST = range(batches.OWN_STREAMS, batches.OWN_STREAMS + 4)


def from_config(config, axis_name: str | None = None) -> base.Method:
  """The DDDM method of a config.

  Args:
    config: the run's config; reads `dddm`, `network`, `data`, `label_dropout` and what training shares.
    axis_name: axis that the update is pmapped over, if it is.

  Returns:
    The method. Its denoise takes x̄_0 [B, H, W, C] as cond["previous"], zeros if there is none. With the buffer a
    batch's "index" [B] holds the examples' numbers, as many of each of this device's slices, in their order; with the
    buffer on the hosts it has "stored" [B, H, W, C], and the update leaves what is to be stored in state.buffer.

  Raises:
    ConfigError: a name or the network is impossible.
  """
  setting, chain = config.dddm, process_from_config(config)
  network = network_from_config(config)
  distance = distances.from_config(config, setting.metric, setting.metric_c)
  buffered, slices = config_lib.remembers(config), config_lib.slices(config)
  on_host = config_lib.on_host(config)

  def denoise(variables, x, t, cond=None):
    x, cond = x.astype(jnp.promote_types(x.dtype, jnp.float32)), cond or {}
    previous = cond.get("previous")
    context = jnp.zeros_like(x) if previous is None else previous
    c_noise = jnp.broadcast_to((process_lib.as_time(t) - 1) * (1000 / chain.num_steps), x.shape[:1])
    out = base.apply_network(network, config, variables, x, c_noise, {**cond, "condition": context})
    return par.from_x0(chain, x - out["out"], x, t)

  draw_times = batches.times_of(times.discrete(chain.num_steps))

  def loss_fn(params, batch):
    x0, eps, cond = batches.examples(config, batch)
    t = draw_times(batch["key"])
    x = chain.perturb(x0, eps, t)
    f = lambda previous, **more: denoise({"params": params}, x, t, {**cond, "previous": previous, **more}).clean
    previous = estimates_of(batch, cond["augment"], lambda previous: f(previous, dropout=None))
    estimate = f(previous)
    loss = distance(estimate, x0)
    if setting.consistency_weight:
      share = 1 / (batch["epoch"] + 1)
      loss = share * loss + (1 - share) * distance(estimate, previous)
    size = x0[0].size
    metrics = {
      "previous_error": jnp.mean(losses.absolute_error(previous, x0)) / size,
      "estimate_error": jnp.mean(losses.absolute_error(estimate, x0)) / size,
    }
    written = x0 if setting.buffer_writes == "clean" else estimate
    return jnp.mean(loss), metrics, jax.lax.stop_gradient(framed(written, batch, cond["augment"]))

  def estimates_of(batch, labels, f):
    """x̄_0 of a batch [B, H, W, C], without gradients, in the frame of the augmented images."""
    noise = normal(batches.streams(batch["key"], _INITIAL), 0, batch["image"].shape[1:])
    if buffered:
      stored = framed(batch["stored"].astype(jnp.float32), batch, None)
      stored = stored if labels is None else augment.warp(stored, labels)
      if not setting.buffer_refresh:
        return stored
      fresh = jax.vmap(lambda key: jax.random.bernoulli(key, setting.buffer_refresh))
      return jnp.where(fresh(batches.streams(batch["key"], _REFRESH))[:, None, None, None], noise, stored)
    most = setting.in_step_iterations if setting.estimates == "in_step" else 0
    count = jax.vmap(lambda key: jax.random.randint(key, (), 0, most + 1))(batches.streams(batch["key"], _ITERATIONS))
    previous = noise
    for i in range(most):
      previous = jnp.where((i < count)[:, None, None, None], jax.lax.stop_gradient(f(previous)), previous)
    return previous

  def framed(images, batch, labels):
    """Images mirrored as the batch's are, which is its own inverse; by `labels` where EDM's augmentation mirrors."""
    images = batches.images_of({"image": images}, batches.streams(batch["key"], batches.AUGMENT), config.data.flip)
    return images if labels is None else augment.flip(images, labels)

  def update(state, batch, key):
    batch = {**batch, "key": state_lib.example_keys(key, state.step, batch["slot"])}
    if setting.consistency_weight:
      epoch = jnp.floor(state.step.astype(jnp.float32) * (config.train.batch_size / setting.num_examples))
      batch["epoch"] = jnp.full(len(batch["slot"]), epoch)
    if buffered and not on_host:
      memory.check(batch["index"], setting.num_examples, slices, len(state.buffer["estimate"]))
      batch["stored"] = memory.read(state.buffer["estimate"], batch["index"], slices)
    accumulation, scale = config.train.accumulation, update_lib.loss_scale(config.optimizer, state)
    (loss, parts, written), grads = update_lib.value_and_grad(loss_fn, state.params["net"], batch, accumulation, scale)
    state, metrics = update_lib.apply_gradients(config, state, "net", loss, grads, axis_name)
    if buffered:
      kept = metrics["skipped"] > 0
      if config.data.augment:
        kept |= augment.moves(augment.draw(batches.streams(batch["key"], batches.AUGMENT), config.data.augment))
      written = jnp.where(jnp.reshape(kept, (-1, 1, 1, 1)), batch["stored"], written)
      if on_host:
        buffer = {"written": written.astype(batch["stored"].dtype)}
      else:
        buffer = {"estimate": memory.write(state.buffer["estimate"], batch["index"], slices, written)}
      state = state.replace(buffer=buffer)
    parts = parts if axis_name is None else jax.lax.pmean(parts, axis_name)
    return state, {**metrics, **parts}

  def init(key, example_batch):
    return base.init_of(config, network)(key, {**example_batch, "condition": example_batch["image"]})

  def remember(key):
    if not setting.num_examples:
      raise config_lib.wrong("dddm.num_examples", 0, "must be the number of examples in the data; training finds it")
    shape = (config.data.resolution, config.data.resolution, config.data.channels)
    key, dtype = jax.random.fold_in(key, _FIRST), jnp.dtype(setting.buffer_dtype)
    return {"estimate": memory.create(key, setting.num_examples, slices, shape, dtype)}

  remember = remember if buffered else None
  return base.Method(init, update, denoise, chain, SAMPLERS, times=draw_times, remember=remember)


def process_from_config(config) -> process_lib.DDPM:
  """DDPM's chain of T steps with β from .1/T to 20/T: the same ᾱ at t/T for every T, nearly."""
  count = config.dddm.num_steps
  return process_lib.DDPM(count, 0.1 / count, 20 / count)


def network_from_config(config) -> estimated.Estimated:
  """The U-Net of a config with what config.dddm says of x̄_0's way into it; raises ConfigError if it cannot be built."""
  setting, tokens = config.dddm, {}
  if setting.conditioning == "attention":
    tokens = {
      "tokens": config.network.channels,
      "token_attention": setting.attention_resolutions,
      "token_bottleneck": setting.attention_bottleneck,
    }
  unet = base.network_from_config(config, (("out", config.data.channels),), **tokens)
  return estimated.Estimated(unet, setting.conditioning, setting.positions)
