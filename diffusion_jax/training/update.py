"""The optimisation step that all methods share: gradients, reduction over devices, Adam, EMA, the guard.

    lr    = min(images seen/warmup_images, 1)
            ·max(learning_rate·(1 − images seen/decay_images)^decay_power, min_learning_rate)   (1)
    params ← params − lr·(Adam + weight_decay·params), but those of optimizer.frozen    (Loshchilov & Hutter 2019)
    β     = ½^(batch/h),  h = min(half_life, ramp_up·images seen)                       (2)
            and with a ramp_power β is at most 1 − (1 + updates)^(−ramp_power)
    ema  ← β·ema + (1 − β)·params

Images seen are counted before the step, so the first average is the parameters themselves. A network whose loss or
gradient is not finite is left as it was, and the update counts as skipped. The loss may be scaled by a number before
the backward pass, so that float16 gradients neither vanish nor overflow; the number is fixed, or grows until an update
is not finite.
"""

import contextlib
import fnmatch
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffusion_jax import config as config_lib
from diffusion_jax import mesh
from diffusion_jax.training.state import TrainState, example_keys
from diffusion_jax.types import Array, Params

LOSS_SCALE = "loss_scale"  # beside the roles of opt_state


def optimizer(config) -> optax.GradientTransformation:
  """Adam without its learning rate, after clipping of the global norm if asked for (config.optimizer)."""
  adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam) if config.clip_norm else adam


def init_optimizer(config, params: dict[str, Params]) -> dict:
  """The optimizer state of every role of `params`, and of a dynamic loss scale: it and its count of good updates."""
  states = {role: optimizer(config.optimizer).init(tree) for role, tree in params.items()}
  if config.optimizer.loss_scale_growth:
    states[LOSS_SCALE] = (jnp.float32(config.optimizer.loss_scale), jnp.int32(0))
  return states


def loss_scale(config, state: TrainState) -> Array | float:
  """The number that the loss is multiplied with before the backward pass; config is config.optimizer."""
  return state.opt_state[LOSS_SCALE][0] if config.loss_scale_growth else config.loss_scale


def _next_loss_scale(config, state: TrainState, finite: Array) -> dict:
  """The loss scale after an update: halved if it was not finite, doubled after loss_scale_growth good ones in a row."""
  if not config.loss_scale_growth:
    return {}
  scale, good = state.opt_state[LOSS_SCALE]
  good = jnp.where(finite, good + 1, 0)
  grow = good == config.loss_scale_growth
  scale = jnp.where(finite, jnp.where(grow, jnp.minimum(2 * scale, 2.0**40), scale), jnp.maximum(scale / 2, 1.0))
  return {LOSS_SCALE: (scale, jnp.where(grow, 0, good))}


def learning_rate(config, images_seen: Array) -> Array:
  """Equation (1) of a run's config, the whole rate at once for warmup_images = 0, and for good for decay_power = 0."""
  setting = config.optimizer
  ramp = jnp.minimum(images_seen / setting.warmup_images, 1.0) if setting.warmup_images else 1.0
  if not setting.decay_power:
    return setting.learning_rate * ramp
  left = jnp.maximum(1 - images_seen / config_lib.decay_images(config), 0)
  return ramp * jnp.maximum(setting.learning_rate * left**setting.decay_power, setting.min_learning_rate)


def ema_decay(config, batch_size: int, images_seen: Array) -> Array:
  """β of equation (2); config is config.ema."""
  half_life = jnp.asarray(config.half_life_images, jnp.float32)
  if config.ramp_up:
    half_life = jnp.minimum(half_life, config.ramp_up * images_seen)
  decay = 0.5 ** (batch_size / jnp.maximum(half_life, 1e-8))
  if config.ramp_power:
    decay = jnp.minimum(decay, -jnp.expm1(-config.ramp_power * jnp.log1p(images_seen / batch_size)))
  return decay


_PARAMETERS_SPLIT: list[tuple[Callable, Callable]] = []


@contextlib.contextmanager
def parameters_split(whole: Callable, split: Callable):
  """Inside, `value_and_grad` computes with whole(params) and gives split(gradients): for layouts that split both."""
  _PARAMETERS_SPLIT.append((whole, split))
  try:
    yield
  finally:
    _PARAMETERS_SPLIT.pop()


def whole(params: Params) -> Params:
  """The parameters of a network that a loss evaluates beside the one that `value_and_grad` gives it."""
  return _PARAMETERS_SPLIT[-1][0](params) if _PARAMETERS_SPLIT else params


def value_and_grad(loss: Callable, params: Params, batch, accumulation: int = 1, scale: Array | float = 1.0):
  """((loss, metrics), gradients), averaged over the batch, in `accumulation` parts to save memory.

  Args:
    loss: (params, batch) -> (mean loss, metrics), both means over the batch; or (mean loss, metrics, kept), where kept
      is a pytree of [B, ...], a value an example, which then is returned too: ((loss, metrics, kept), gradients).
    params: what to differentiate by.
    batch: pytree of [B, ...].
    accumulation: number of equal parts of the batch that pass one after another.
    scale: multiplies the loss in the backward pass; what is returned is divided by it.
  """
  split = _PARAMETERS_SPLIT[-1][1] if _PARAMETERS_SPLIT else lambda x: x

  def scaled(params, batch):
    value, metrics, *kept = loss(whole(params), batch)
    return scale * value, (value, metrics, *kept)

  def part_value_and_grad(params, batch):
    (_, out), grads = jax.value_and_grad(scaled, has_aux=True)(params, batch)
    return out, split(jax.tree.map(lambda g: g / scale, grads))

  if accumulation == 1:
    return part_value_and_grad(params, batch)
  # Part i has the examples i, i + accumulation, …: where a batch lies split over devices, so does each part.
  parts = jax.tree.map(lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch)

  def means_and_kept(part):
    (value, metrics, *kept), grads = part_value_and_grad(params, part)
    return ((value, metrics), grads), kept

  shapes, _ = jax.eval_shape(means_and_kept, jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def body(total, part):
    means, kept = means_and_kept(part)
    return jax.tree.map(jnp.add, total, means), kept

  total, kept = jax.lax.scan(body, zeros, parts, unroll=loop_unroll(accumulation))
  (value, metrics), grads = jax.tree.map(lambda x: x / accumulation, total)
  kept = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), kept)  # in the batch's order
  return (value, metrics, *kept), grads


def loop_unroll(length: int) -> int:
  """How far to unroll a loop of updates: whole on CPU, where gradient convolutions in a loop are 25–150× slower."""
  return length if mesh.platform() == "cpu" else 1


def of_loss(config, loss_fn: Callable, axis_name: str | None) -> Callable:
  """`Method.update` of a method with one network, "net": one step down the gradient of a loss.

  Args:
    config: the run's config.
    loss_fn: (params, batch) -> (mean loss, {name: mean of this device's examples}); batch["key"] holds their keys [B].
    axis_name: the pmapped axis that holds the other devices' shares of the batch, if there is one.

  Returns:
    (state, batch, key) -> (state, metrics): those of `apply_gradients`, and the loss's own.
  """

  def update(state, batch, key):
    batch = {**batch, "key": example_keys(key, state.step, batch["slot"])}
    accumulation, scale = config.train.accumulation, loss_scale(config.optimizer, state)
    (loss, parts), grads = value_and_grad(loss_fn, state.params["net"], batch, accumulation, scale)
    state, metrics = apply_gradients(config, state, "net", loss, grads, axis_name)
    parts = parts if axis_name is None else jax.lax.pmean(parts, axis_name)
    return state, {**metrics, **parts}

  return update


def apply_gradients(
  config, state: TrainState, role: str, loss: Array, grads: Params, axis_name: str | None
) -> tuple[TrainState, dict[str, Array]]:
  """The update of a method with one network: `update_role`, counted. The step counter is left to `windowed`."""
  state, metrics = update_role(config, state, role, loss, grads, axis_name)
  return count(config, state, metrics["skipped"] == 0), metrics


def update_role(
  config, state: TrainState, role: str, loss: Array, grads: Params, axis_name: str | None
) -> tuple[TrainState, dict[str, Array]]:
  """One network's share of an update: reduced over `axis_name`, guarded, averaged if its averages are kept.

  Args:
    config: the run's config.
    state: the state before.
    role: which network the gradients belong to.
    loss: mean loss of this device's examples.
    grads: its gradient.
    axis_name: the pmapped axis that holds the other devices' shares of the batch, if there is one.

  Returns:
    The new state, counters as they were, and {"loss", "grad_norm", "learning_rate", "skipped"}, equal on all devices.
  """
  if axis_name is not None:
    loss, grads = jax.lax.pmean((loss, grads), axis_name)
  grads = _unfrozen(config.optimizer, role, grads)
  norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  images_seen = state.step.astype(jnp.float32) * config.train.batch_size
  rate = learning_rate(config, images_seen)
  guarded = lambda new, old: jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)

  updates, opt_state = optimizer(config.optimizer).update(grads, state.opt_state[role], state.params[role])
  decay = config.optimizer.weight_decay
  if decay:  # else not a bit differs from Adam
    updates = jax.tree.map(lambda u, p: u + decay * p, updates, state.params[role])
    updates = _unfrozen(config.optimizer, role, updates)
  params = jax.tree.map(lambda p, u: p - rate * u, state.params[role], updates)
  ema = state.ema
  if role in ema:
    beta = ema_decay(config.ema, config.train.batch_size, images_seen)
    average = jax.tree.map(lambda e, p: beta * e + (1 - beta) * p, ema[role], params)
    ema = {**ema, role: guarded(average, ema[role])}
  state = state.replace(
    params={**state.params, role: guarded(params, state.params[role])},
    ema=ema,
    opt_state={**state.opt_state, role: guarded(opt_state, state.opt_state[role])},
  )
  return state, {"loss": loss, "grad_norm": norm, "learning_rate": rate, "skipped": (~finite).astype(jnp.float32)}


def frozen(config, path: str) -> bool:
  """Whether a parameter, such as "net/enc_8x8_block0/conv0/kernel", stays as it starts; config is config.optimizer."""
  return any(fnmatch.fnmatchcase(path, pattern) for pattern in config.frozen)


def _unfrozen(config, role: str, tree: Params) -> Params:
  """Zeros in place of the leaves whose parameters are frozen."""
  if not config.frozen:
    return tree
  name = lambda path: "/".join([role, *(key.key for key in path)])
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.zeros_like(x) if frozen(config, name(path)) else x, tree
  )  # fmt: skip


def count(config, state: TrainState, finite: Array) -> TrainState:
  """Counts an update, `finite` if those of all its networks were, and moves a dynamic loss scale."""
  return state.replace(
    opt_state={**state.opt_state, **_next_loss_scale(config.optimizer, state, finite)},
    skipped=state.skipped + ~finite,
    skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
  )


def windowed(update: Callable, log_every: int) -> Callable:
  """Wraps a Method's update: counts the step, and sums the metrics of good updates since the last log line.

  The sums are part of the state, so a run that was killed between two log lines logs what an uninterrupted one does.
  """

  def step(state: TrainState, batch, key):
    new, metrics = update(state, batch, key)
    metrics["updates"] = 1 - metrics["skipped"]
    good = metrics["updates"] > 0
    old = state.window or {name: jnp.zeros(()) for name in metrics}
    fresh = state.step % log_every == 0
    window = {
      name: jnp.where(fresh, 0, old[name]) + (value if name == "skipped" else jnp.where(good, value, 0))
      for name, value in metrics.items()
    }
    return new.replace(step=state.step + 1, window=window)

  return step


def window_means(window: dict[str, float]) -> dict[str, float | None]:
  """Means of a window's metrics over its good updates (None where there were none), and the number skipped."""
  window = {name: float(value) for name, value in window.items()}
  updates = window["updates"]
  means = {k: v / updates if updates else None for k, v in window.items() if k not in ("updates", "skipped")}
  return {**means, "skipped": int(window["skipped"])}
