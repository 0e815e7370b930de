"""Samplers: pure functions sampler(denoise, process, x, grid, keys=None, **options) -> x0."""

from diffusion_jax.samplers.ancestral import ddim, ddpm, decoupled, transition
from diffusion_jax.samplers.direct import dddm, dpdm
from diffusion_jax.samplers.multistep import multistep
from diffusion_jax.samplers.ode import Churn, euler, heun, invert
from diffusion_jax.samplers.sde import euler_maruyama, predictor_corrector

BY_NAME = {
  "euler": euler,
  "heun": heun,
  "ddim": ddim,
  "ddpm": ddpm,
  "decoupled": decoupled,
  "dpdm": dpdm,
  "dddm": dddm,
  "multistep": multistep,
  "euler_maruyama": euler_maruyama,
  "predictor_corrector": predictor_corrector,
}

__all__ = ["BY_NAME", "Churn", "invert", "transition", *BY_NAME]
