"""EDM: a preconditioned denoiser trained at random noise levels (Karras et al. 2022).

    D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise)                                       (eq. 7)
    E_{σ, y, n} λ(σ)·‖D(y + n; σ) − y‖²,  n ~ N(0, σ²I)                                 (eq. 8)

The rows of Table 1 are choices of preconditioner, law of σ and weight λ. The method's process is `process.EDM`, whose
time is σ; other processes are reached by `process.reframe`.
"""

import jax
import jax.numpy as jnp

from diffusion_jax import losses, process, times
from diffusion_jax import parameterization as par
from diffusion_jax.config import choose
from diffusion_jax.methods import base
from diffusion_jax.training import state as state_lib
from diffusion_jax.training import update as update_lib

SAMPLERS = ("heun", "euler", "ddim", "ddpm", "decoupled")
# Streams of an example's key.
_SIGMA, _NOISE, _LABEL, _FLIP, _DROPOUT = range(5)


def from_config(config, axis_name: str | None = None) -> base.Method:
  """The EDM method of a config.

  Args:
    config: the run's config; reads `edm`, `network`, `data`, `label_dropout` and what training shares.
    axis_name: axis that the update is pmapped over, if it is.

  Raises:
    ConfigError: a name or the network is impossible.
  """
  network = base.network_from_config(config, (("out", config.data.channels),))
  preconditioner = _preconditioner(config.edm)
  law = _law(config.edm)
  weight = choose(
    "edm.weight",
    config.edm.weight,
    {"edm": lambda s: losses.edm_weight(s, config.edm.sigma_data), "inverse_variance": losses.inverse_variance_weight},
  )
  edm = process.EDM()

  def network_fn(params, label=None, dropout_keys=None):
    labels = base.one_hot(label, config.data.num_classes)
    return lambda x, c_noise: network.apply({"params": params}, x, c_noise, labels, dropout_keys=dropout_keys)["out"]

  def init(key, example_batch):
    x = jnp.zeros(example_batch["image"].shape)
    params = network.init(key, x, jnp.zeros(len(x)))["params"]
    tx = update_lib.optimizer(config.optimizer)
    return state_lib.create({"net": params}, {"net": tx.init(params)})

  def loss_fn(params, batch):
    stream = lambda i: jax.vmap(lambda key: jax.random.fold_in(key, i))(batch["key"])
    y = base.images_of(batch, stream(_FLIP), config.data.flip)
    sigma = jax.vmap(lambda key: law(key, 1)[0])(stream(_SIGMA))
    eps = jax.vmap(lambda key: jax.random.normal(key, y.shape[1:]))(stream(_NOISE))
    label = None
    if config.data.num_classes:
      drop = jax.vmap(lambda key: jax.random.bernoulli(key, config.label_dropout))(stream(_LABEL))
      label = jnp.where(drop, -1, batch["label"])
    denoise = par.precondition(network_fn(params, label, stream(_DROPOUT)), preconditioner)
    pred = denoise(edm.perturb(y, eps, sigma), sigma)
    return jnp.mean(weight(sigma) * losses.squared_error(pred.clean, y)), {}

  def update(state, batch, key):
    batch = {**batch, "key": state_lib.example_keys(key, state.step, batch["slot"])}
    accumulation = config.train.accumulation
    (loss, _), grads = update_lib.value_and_grad(loss_fn, state.params["net"], batch, accumulation)
    return update_lib.apply_gradients(config, state, "net", loss, grads, axis_name)

  def denoise(variables, x, t, cond=None):
    label = None if cond is None else cond.get("label")
    return par.precondition(network_fn(variables["params"], label), preconditioner)(x, t)

  return base.Method(init, update, denoise, edm, SAMPLERS)


def _preconditioner(config) -> par.Preconditioner:
  choices = {
    "edm": lambda: par.EDMPreconditioner(config.sigma_data),
    "vp": par.VPPreconditioner,
    "ve": par.VEPreconditioner,
    "iddpm": par.IDDPMPreconditioner,
  }
  return choose("edm.preconditioner", config.preconditioner, choices)()


def _law(config) -> times.Law:
  choices = {
    "lognormal": lambda: times.lognormal(config.p_mean, config.p_std),
    "log_uniform": times.log_uniform,
    "vp": times.vp_uniform,
    "iddpm": times.iddpm_uniform,
  }
  return choose("edm.noise", config.noise, choices)()
