"""Dual-Output diffusion: one network estimates noise, image, and which of the two to trust (Benny & Wolf 2022).

    ε_θ, x_θ, r_θ = f_θ(x_t, t)                                                         (eq. 15)
    μ_θ = r_θ·μ_x(x_θ) + (1 − r_θ)·μ_ε(ε_θ)                                             (eq. 16)
    λ^ε·‖ε − ε_θ‖² + λ^x·‖x_0 − x_θ‖² + λ^μ·‖μ̃ − μ_θ‖²,  t ~ U{1, …, T}                 (eq. 17–20)

in which the last term reaches r_θ alone. The network has 2C + 1 outputs (r = sigmoid of the last), x_t as it is for its
input, and the index t − 1 for its noise embedding, as published networks of these chains have. Sampling sees the pair
of `parameterization.dual`, in the chain's own process: "linear", DDPM's, T = 1000, or "cosine", iDDPM's, T = 4000. With
iDDPM's second loss, vlb_weight·T·L_vlb (Nichol & Dhariwal 2021, eq. 16), averaged over pixels as the others are, C more
outputs learn the variance of the reverse step t -> t − 1. With dual.relative L^μ weighs all t alike, so that r is
learned in few updates. With dual.heads = "eps" the network has ε_θ alone, and is DDPM's and DDIM's: the papers'
baselines.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax import losses, samplers, times
from diffusion_jax import parameterization as par
from diffusion_jax import process as process_lib
from diffusion_jax.config import choose
from diffusion_jax.methods import base, batches
from diffusion_jax.training import update as update_lib
from diffusion_jax.types import Array

SAMPLERS = samplers.serving(process_lib.DDPM(), "ddim", "ddpm")
PROCESSES = {"linear": process_lib.DDPM, "cosine": process_lib.Cosine}

# (variables, x [B, H, W, C], t, cond) -> {"eps", "x", "r", "variance"}: [B, H, W, C], but r's logit [B, H, W, 1]
Heads = Callable[..., dict[str, Array]]


def from_config(config, axis_name: str | None = None) -> base.Method:
  """The Dual-Output method of a config.

  Args:
    config: the run's config; reads `dual`, `network`, `data`, `label_dropout` and what training shares.
    axis_name: axis that the update is pmapped over, if it is.

  Returns:
    The method. Its denoise also takes cond["ratio"], a pair (times [K] increasing, values [K]) of r_t in place of the
    network's r_θ, linear between these times and constant beyond them.

  Raises:
    ConfigError: a name or the network is impossible.
  """
  setting, chain = config.dual, process_from_config(config)
  network = network_from_config(config)
  heads = heads_from_config(config, network)
  law = times.discrete(chain.num_steps)

  def denoise(variables, x, t, cond=None):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    out = heads(variables, x, t, cond)
    ratio = (cond or {}).get("ratio")
    ratio = None if ratio is None else jnp.interp(process_lib.as_time(t), *ratio)
    return pair(out, x, t, ratio)

  def pair(out, x, t, ratio=None):
    if "x" not in out:
      return par.dual(chain, out["eps"], 0.0, 0.0, x, t, 0.0, out.get("variance"))
    return par.dual(chain, out["eps"], out["x"], out["r"], x, t, ratio, out.get("variance"))

  draw_times = batches.times_of(law)

  def loss_fn(params, batch):
    x0, eps, cond = batches.examples(config, batch)
    t = draw_times(batch["key"])
    x = chain.perturb(x0, eps, t)
    out = heads({"params": params}, x, t, cond)
    if "x" in out:
      terms = losses.dual_terms(chain, out["eps"], out["x"], out["r"], x0, eps, t, t - 1, setting.relative)
      loss = setting.eps_weight * terms.eps + setting.x_weight * terms.x + setting.mean_weight * terms.mean
      metrics = {"eps_loss": terms.eps, "x_loss": terms.x, "mean_loss": terms.mean, "r": jax.nn.sigmoid(out["r"])}
    else:
      loss, metrics = setting.eps_weight * losses.squared_error(out["eps"], eps) / x0[0].size, {}
    if setting.vlb_weight:
      clean = pair(out, x, t).clean
      bound = losses.variational_bound(chain, clean, out["variance"], x0, t, t - 1) / x0[0].size
      loss += setting.vlb_weight * chain.num_steps * bound
    return jnp.mean(loss), jax.tree.map(jnp.mean, metrics)

  update = update_lib.of_loss(config, loss_fn, axis_name)
  known = par.Unconditioned(chain)
  # L^ε + L^x as a weight of clean images' errors: ε_θ's error is 1/σ of an image's.
  weight = lambda sigma: setting.eps_weight / sigma**2 + setting.x_weight * (setting.heads == "dual")
  init, encode = base.init_of(config, network), base.encode_with(network)
  return base.Method(init, update, denoise, chain, SAMPLERS, known, draw_times, weight=weight, encode=encode)


def process_from_config(config) -> process_lib.Discrete:
  """The chain of config.dual."""
  return choose("dual.process", config.dual.process, PROCESSES)()


def network_from_config(config):
  """The U-Net of a config with this method's heads: 2C + 1 channels, C of ε_θ alone, and C more of a variance."""
  channels = config.data.channels
  heads = (("eps", channels), ("x", channels), ("r", 1))
  heads = choose("dual.heads", config.dual.heads, {"dual": heads, "eps": heads[:1]})
  return base.network_from_config(config, (*heads, ("variance", channels)) if config.dual.vlb_weight else heads)


def heads_from_config(config, network=None) -> Heads:
  """What the network says of (x_t, t), before anything is mixed: for losses, statistics and figures."""
  network, last = network or network_from_config(config), process_from_config(config).num_steps

  def heads(variables, x, t, cond=None):
    index = jnp.clip(process_lib.as_time(t), 1, last) - 1  # the network knows t = 1..T
    index = jnp.broadcast_to(index, x.shape[:1])
    return base.apply_network(network, config, variables, x, index, cond)

  return heads
