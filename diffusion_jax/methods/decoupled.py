"""Decoupled diffusion: one network estimates how the image fades to zero, and the noise apart from it (Huang et al.).

    x_t = x_0 + H_t(φ) + √t·ε,  x_0 + H_1(φ) = 0                                        (eq. 6)
    φ_θ, ε_θ = f_θ(x_t, t)
    λ_1(t)·‖φ_θ − φ‖² + λ_2(t)·‖ε_θ − ε‖²,  t ~ U[10⁻⁴, 1)                              (eq. 10)

φ's free parameters are drawn anew for every example and update. The heads need not agree: samplers take both as they
are. Preconditioned or not, they become the pair by `parameterization.decoupled`. The published code adds

    reconstruction_weight·(1 − t)²·(MAE + LPIPS)(x̂_0, x_0),  x̂_0 = x_t − H_t(φ_θ) − √t·ε_θ   (1)

where LPIPS counts by config.decoupled.reconstruction_lpips. One encoder serves two decoders, or one decoder, with or
without a branch of two convolutions for the noise (Table 5).
"""


import jax
import jax.numpy as jnp

from diffusion_jax import losses, samplers, times
from diffusion_jax import parameterization as par
from diffusion_jax import process as process_lib
from diffusion_jax.config import choose
from diffusion_jax.methods import base, batches, distances
from diffusion_jax.samplers.ancestral import reconstruct
from diffusion_jax.training import update as update_lib

FIRST = ("decoupled", "ddim", "euler", "heun", "multistep")
LOSSES = {"l2": losses.squared_error, "l1": losses.absolute_error}
DECODERS = {"two": {"decoders": 2}, "branch": {"branch": True}, "one": {}}
_PHI = batches.OWN_STREAMS  # stream of an example's key, from which φ's free parameters come


def from_config(config, axis_name: str | None = None) -> base.Method:
  """The decoupled method of a config.

  Args:
    config: the run's config; reads `decoupled`, `lpips`, `network`, `data`, `label_dropout` and what training shares.
    axis_name: axis that the update is pmapped over, if it is.

  Returns:
    The method, whose process is that of config.decoupled. Samplers that need noise levels serve it for the constant
    attenuation alone.

  Raises:
    ConfigError: a name or the network is impossible.
  """
  setting, process = config.decoupled, process_from_config(config)
  network = network_from_config(config)
  law = times.uniform(setting.t_min, 1.0)
  distance = choose("decoupled.loss", setting.loss, LOSSES)
  auto = losses.DECOUPLED_WEIGHTS["inverse" if process.parameters == 1 else "ones"]
  weights = choose("decoupled.weight", setting.weight, {"auto": auto, **losses.DECOUPLED_WEIGHTS})
  if setting.reconstruction_lpips:
    lpips = distances.from_config(config, "lpips", field="decoupled.reconstruction_lpips")

  def denoise(variables, x, t, cond=None):
    def network_fn(x, c_noise):
      out = base.apply_network(network, config, variables, x, c_noise, cond)
      return out["phi"], out["eps"]

    return par.decoupled(network_fn, process, setting.preconditioned)(x, t)

  draw_times = batches.times_of(law)

  def loss_fn(params, batch):
    x0, eps, cond = batches.examples(config, batch)
    t = draw_times(batch["key"])
    phi = process.encode(batches.streams(batch["key"], _PHI), x0)
    x = process.perturb(phi, eps, t)
    pred = denoise({"params": params}, x, t, cond)
    terms = losses.decoupled_terms(pred.clean, pred.eps, phi, eps, distance)
    weight = weights(t)
    loss = weight[0] * terms.phi + weight[1] * terms.eps
    metrics = {"phi_loss": terms.phi, "eps_loss": terms.eps}
    if setting.reconstruction_weight:
      rebuilt = reconstruct(process, pred, x, t)
      error = metrics["reconstruction_error"] = losses.absolute_error(rebuilt, x0) / x0[0].size
      if setting.reconstruction_lpips:
        metrics["reconstruction_lpips"] = lpips(rebuilt, x0)
        error = error + metrics["reconstruction_lpips"]
      loss += setting.reconstruction_weight * (1 - t) ** 2 * error
    return jnp.mean(loss), jax.tree.map(jnp.mean, metrics)

  update = update_lib.of_loss(config, loss_fn, axis_name)
  served = samplers.serving(process, *FIRST)
  init, encode = base.init_of(config, network), base.encode_with(network)
  return base.Method(init, update, denoise, process, served, times=draw_times, encode=encode)


def process_from_config(config) -> process_lib.Decoupled:
  """The process of config.decoupled."""
  name = choose("decoupled.attenuation", config.decoupled.attenuation, tuple(process_lib.ATTENUATIONS))
  return process_lib.Decoupled(name, config.decoupled.clamp)


def network_from_config(config):
  """The U-Net of a config with this method's heads: k·C channels of φ, C of ε, by config.decoupled.decoder."""
  channels = config.data.channels
  heads = (("phi", process_from_config(config).parameters * channels), ("eps", channels))
  choice = choose("decoupled.decoder", config.decoupled.decoder, DECODERS)
  return base.network_from_config(config, heads, **choice)
