"""EDM: a preconditioned denoiser trained at random noise levels (Karras et al. 2022).

    D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise)                                       (eq. 7)
    E_{σ, y, n} λ(σ)·‖D(y + n; σ) − y‖²,  n ~ N(0, σ²I)                                 (eq. 8)

The columns of Table 1 are choices of preconditioner, law of σ and weight λ. The method's process is `process.EDM`,
whose time is σ; other processes are reached by `process.reframe`. iDDPM's second loss (Nichol & Dhariwal 2021, eq. 16)

    L_simple + vlb_weight·M·L_j,  j ~ U{0, …, M−1}                                      (1)

teaches a second head the variance of the reverse step u_j → u_{j+1} of the variance-preserving chain.
"""

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax import losses, process, samplers, times
from diffusion_jax import parameterization as par
from diffusion_jax.config import choose
from diffusion_jax.methods import base, batches
from diffusion_jax.training import update as update_lib
from diffusion_jax.types import Array, Prediction

SAMPLERS = samplers.serving(process.EDM(), "heun", "euler")


def from_config(config, axis_name: str | None = None) -> base.Method:
  """The EDM method of a config.

  Args:
    config: the run's config; reads `edm`, `network`, `data`, `label_dropout` and what training shares.
    axis_name: axis that the update is pmapped over, if it is.

  Raises:
    ConfigError: a name or the network is impossible.
  """
  heads = ("out", "variance") if config.edm.vlb_weight else ("out",)
  network = base.network_from_config(config, tuple((head, config.data.channels) for head in heads))
  preconditioner = _preconditioner(config.edm)
  law = _law(config.edm)
  weight = weight_from_config(config.edm)
  edm = process.EDM()

  def denoise(variables, x, t, cond=None):
    def network_fn(x, c_noise):
      out = base.apply_network(network, config, variables, x, c_noise, cond)
      return (out["out"], out["variance"]) if config.edm.vlb_weight else out["out"]

    return par.precondition(network_fn, preconditioner)(x, t)

  noise_levels = batches.times_of(law)

  def loss_fn(params, batch):
    y, eps, cond = batches.examples(config, batch)
    sigma = noise_levels(batch["key"])
    x = edm.perturb(y, eps, sigma)
    pred = denoise({"params": params}, x, sigma, cond)
    loss = weight(sigma) * losses.squared_error(pred.clean, y)
    if config.edm.vlb_weight:
      loss += config.edm.vlb_weight * preconditioner.num_levels * _variational_bound(preconditioner, pred, y, sigma)
    return jnp.mean(loss), {}

  update = update_lib.of_loss(config, loss_fn, axis_name)
  init, encode = base.init_of(config, network), base.encode_with(network)
  return base.Method(
    init, update, denoise, edm, SAMPLERS, preconditioner, noise_levels, weight=weight, encode=encode
  )


def weight_from_config(config) -> Callable[[Array], Array]:
  """λ(σ) of a config.edm: noise levels -> weights, of the same shape."""
  return choose(
    "edm.weight",
    config.weight,
    {"edm": lambda s: losses.edm_weight(s, config.sigma_data), "inverse_variance": losses.inverse_variance_weight},
  )


def _variational_bound(preconditioner: par.IDDPMPreconditioner, pred: Prediction, y: Array, sigma: Array) -> Array:
  """L_j of equation (1), [B]: the step from σ = u_j to u_{j+1}, in the frame of the variance-preserving chain."""
  vp, levels = process.VP(), jnp.asarray(times.iddpm_levels(preconditioner.num_levels), sigma.dtype)
  j = jnp.argmin(jnp.abs(levels[:-1] - sigma[:, None]), axis=1)
  t, s = vp.inverse(levels[j]), vp.inverse(levels[j + 1])
  return losses.variational_bound(vp, pred.clean, pred.log_variance, y, t, s)


def _preconditioner(config) -> par.Preconditioner:
  choices = {
    "edm": lambda: par.EDMPreconditioner(config.sigma_data),
    "vp": par.VPPreconditioner,
    "ve": lambda: par.VEPreconditioner(config.sigma_min, config.sigma_max),
    "iddpm": par.IDDPMPreconditioner,
  }
  return choose("edm.preconditioner", config.preconditioner, choices)()


def _law(config) -> times.Law:
  choices = {
    "lognormal": lambda: times.lognormal(config.p_mean, config.p_std),
    "log_uniform": lambda: times.log_uniform(config.sigma_min, config.sigma_max),
    "vp": times.vp_uniform,
    "iddpm": times.iddpm_uniform,
  }
  return choose("edm.noise", config.noise, choices)()
