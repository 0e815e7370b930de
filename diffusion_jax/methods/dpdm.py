"""DPDM: a pupil whose denoised images have the law of the data ("Data Prediction Denoising Models").

Three networks that start from one diffusion model: the teacher D_p (frozen), the generator d_θ, and D_φ, which follows
the law q of the generator's images. An update draws x_t = x_0 + σε, x̃_0 = d_θ(x_t), x̃_t = x̃_0 + σε̃ with one noise
level σ for both, and takes (Algorithm 1) some steps of (1), then one of (2), each with fresh draws:

    φ:  λ(σ)·‖D_φ(x̃_t; σ) − x̃_0‖²,  x̃_0 held fixed                                      (1)
    θ:  w(σ)·(s_φ − s_p)(x̃_t)·∂x̃_t/∂θ,  s_φ − s_p = (D_φ − D_p)/σ²                      (2)

(2) is the gradient of w·KL(q_σ ‖ p_σ), the smoothed KL of the pupil's images to the data (Theorem 3.2). It is taken as
that of ⟨w(σ)/σ²·(D_φ − D_p), x̃_t⟩ with the first factor held fixed. w is that of denoising score matching, λσ⁴, or 1;
λ is that of the teacher's own loss. All states are those of the EDM process; a teacher of another Gaussian process is
reframed.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax import losses, process, samplers
from diffusion_jax.config import choose
from diffusion_jax.methods import base, batches, dual_output, edm
from diffusion_jax.training import state as state_lib
from diffusion_jax.training import update as update_lib
from diffusion_jax.types import Array, Params, Prediction, like

SAMPLERS = samplers.serving(process.EDM(), "dpdm", "heun", "euler")
DIFFUSION = {"edm": edm.from_config, "dual_output": dual_output.from_config}  # methods of teachers
_EDM = process.EDM()
# Streams of a step's key; 0 is the noise level's, drawn by the teacher's method.
_NOISE, _RENOISE, _FLIP, _LABEL, _AUGMENT, _DROPOUT = range(1, 7)

# (parameters, x [B, H, W, C], σ [B], cond) -> images [B, H, W, C]
Generate = Callable[[Params, Array, Array, dict], Array]


def from_config(config, axis_name: str | None = None) -> base.Method:
  """The DPDM method of a config, whose generator is a network as the teacher's.

  Args:
    config: the run's config; reads `dpdm`, and for the three networks and the law of σ what the teacher's method reads.
    axis_name: axis that the update is pmapped over, if it is.

  Raises:
    ConfigError: a name or the network is impossible.
  """
  diffusion = choose("dpdm.diffusion", config.dpdm.diffusion, DIFFUSION)(config)
  return build(config, diffusion, axis_name=axis_name)


def build(
  config,
  diffusion: base.Method,
  generate: Generate | None = None,
  init_generator: Callable[..., Params] | None = None,
  axis_name: str | None = None,
) -> base.Method:
  """DPDM with any generator.

  Args:
    config: the run's config.
    diffusion: the method of teacher and score network, in a Gaussian process; λ is its weight, else config.edm's.
    generate: the generator; by default the clean image that a network as the teacher's predicts.
    init_generator: (key, example_batch) -> its parameters; by default those of such a network.
    axis_name: axis that the update is pmapped over, if it is.

  A generator of one's own is trained by the loop once a function (config, axis_name) -> Method that calls this is put
  into `methods.BY_NAME`.

  Returns:
    The method; its TrainState has the roles "teacher" (no optimizer state), "generator" (the one with averages) and
    "score" in `params`. `init` draws all three at random: training puts the teacher's weights in (config.init_from), in
    a generator of one's own too only where that is done by hand. Of its metrics, "loss" is the mean of
    λ(σ)·‖D_φ − D_p‖² at x̃_t, which vanishes where the pupil's law is the data's, and is not what (2) descends;
    "score_loss" is that of the last step (1).
  """
  predict = diffusion.denoise
  if diffusion.process != _EDM:
    reframed = lambda variables, cond: lambda x, t: diffusion.denoise(variables, x, t, cond)
    predict = lambda variables, x, sigma, cond=None: process.reframe(
      reframed(variables, cond), diffusion.process, _EDM
    )(x, sigma)
  clean = lambda params, x, sigma, cond: predict({"params": params}, x, sigma, cond).clean
  initial = ("teacher", "score") if generate else ("teacher", "generator", "score")
  generate = generate or clean
  weight = diffusion.weight or edm.weight_from_config(config.edm)
  factor = factor_from_config(config, weight)
  steps = (*range(1, config.dpdm.score_steps + 1), 0)  # streams of an example's key, a step each

  def init(key, example_batch):
    keys = jax.random.split(key, 3)
    networks = [state_lib.inference_variables(diffusion.init(k, example_batch).params)["params"] for k in keys]
    params = dict(zip(("teacher", "generator", "score"), networks))
    if init_generator is not None:
      params["generator"] = init_generator(keys[1], example_batch)
    trained = {role: params[role] for role in ("generator", "score")}
    return state_lib.create(params, update_lib.init_optimizer(config, trained), "generator")

  def noise_levels(keys):
    return diffusion.process.noise_level(diffusion.times(keys))

  def draw(generator, batch):
    """x̃_0, ε̃ and σ of a batch whose "key" is this step's, and the labels."""
    stream = functools.partial(batches.streams, batch["key"])
    x0 = batches.images_of(batch, stream(_FLIP), config.data.flip)
    normal = lambda number: jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(stream(number))
    sigma = noise_levels(batch["key"])
    cond = {"label": batches.labels_of(batch, stream(_LABEL), config)}
    fake = generate(generator, _EDM.perturb(x0, normal(_NOISE), sigma), sigma, cond)
    return fake, normal(_RENOISE), sigma, cond

  def score_loss(generator, score, batch):
    fake, eps, sigma, cond = draw(generator, batch)
    fake = jax.lax.stop_gradient(fake)
    stream = functools.partial(batches.streams, batch["key"])
    fake, augment = batches.augmented(fake, stream(_AUGMENT), config.data.augment if config.dpdm.score_augment else 0.0)
    cond |= {"augment": augment, "dropout": stream(_DROPOUT)}
    pred = clean(score, _EDM.perturb(fake, eps, sigma), sigma, cond)
    return jnp.mean(weight(sigma) * losses.squared_error(pred, fake)), {}

  def generator_loss(teacher, score, generator, batch):
    fake, eps, sigma, cond = draw(generator, batch)
    x = _EDM.perturb(fake, eps, sigma)
    still = jax.lax.stop_gradient(x)
    gap = clean(score, still, sigma, cond) - clean(teacher, still, sigma, cond)
    size = weight(sigma) * losses.squared_norm(gap)
    return jnp.mean(surrogate(gap, x, factor(sigma))), {"gap": jnp.mean(size)}

  def update(state, batch, key):
    keys = state_lib.example_keys(key, state.step, batch["slot"])
    scale = update_lib.loss_scale(config.optimizer, state)
    accumulation = config.train.accumulation
    finite = True
    *score_steps, last = ({**batch, "key": batches.streams(keys, step)} for step in steps)
    for drawn in score_steps:
      loss = functools.partial(score_loss, update_lib.whole(state.params["generator"]))
      (value, _), grads = update_lib.value_and_grad(loss, state.params["score"], drawn, accumulation, scale)
      state, score_metrics = update_lib.update_role(config, state, "score", value, grads, axis_name)
      finite &= score_metrics["skipped"] == 0
    frozen = [update_lib.whole(state.params[role]) for role in ("teacher", "score")]
    loss = functools.partial(generator_loss, *frozen)
    (_, aux), grads = update_lib.value_and_grad(loss, state.params["generator"], last, accumulation, scale)
    state, metrics = update_lib.update_role(config, state, "generator", aux["gap"], grads, axis_name)
    finite &= metrics["skipped"] == 0
    metrics |= {"score_loss": score_metrics["loss"], "score_grad_norm": score_metrics["grad_norm"]}
    return update_lib.count(config, state, finite), {**metrics, "skipped": (~finite).astype(jnp.float32)}

  def denoise(variables, x, t, cond=None):
    if generate is clean:
      return predict(variables, x, t, cond)
    sigma = process.as_time(t)
    image = generate(variables["params"], x, jnp.broadcast_to(sigma, x.shape[:1]), cond or {})
    return Prediction(image, (x - image) / like(sigma, x))

  def times(keys):
    return jnp.stack([noise_levels(batches.streams(keys, step)) for step in steps], axis=1)

  return base.Method(init, update, denoise, _EDM, SAMPLERS, diffusion.preconditioner, times, initial)


def surrogate(gap: Array, x: Array, factor: Array) -> Array:
  """⟨factor·gap, x⟩ whose gradient reaches x alone: that of equation (2); [B].

  Args:
    gap: D_φ − D_p at x, [B, ...].
    x: x̃_t, a function of the generator's parameters, [B, ...].
    factor: w(σ)/σ², scalar or [B].
  """
  return losses.inner(jax.lax.stop_gradient(like(factor, x) * gap), x)


def factor_from_config(config, weight: Callable[[Array], Array]) -> Callable[[Array], Array]:
  """w(σ)/σ² of equation (2) by config.dpdm.generator_weight: λσ² for "diffusion" (with EDM's λ, 1 + σ²/σ_data²); 1/σ²
  for "unit", the smoothed KL itself. `weight` is λ.
  """
  choices = {"diffusion": lambda sigma: weight(sigma) * sigma**2, "unit": lambda sigma: 1 / sigma**2}
  return choose("dpdm.generator_weight", config.dpdm.generator_weight, choices)
