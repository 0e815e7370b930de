"""Samplers: pure functions sampler(denoise, process, x, grid, keys=None, **options) -> x0."""

from diffusion_jax.samplers.adaptive import rk45
from diffusion_jax.samplers.ancestral import ddim, ddpm, decoupled, transition
from diffusion_jax.samplers.catalogue import BY_NAME, KINDS, Kind, serving
from diffusion_jax.samplers.direct import dddm, dpdm
from diffusion_jax.samplers.exponential import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, sa_solver, unipc
from diffusion_jax.samplers.multistep import deis, multistep
from diffusion_jax.samplers.ode import Churn, euler, heun, invert
from diffusion_jax.samplers.sde import euler_maruyama, predictor_corrector
from diffusion_jax.samplers.singlestep import dpm_solver_2, dpm_solver_3, dpmpp_2s

__all__ = [
  "BY_NAME", "KINDS", "Churn", "Kind", "dddm", "ddim", "ddpm", "decoupled", "deis", "dpdm", "dpm_solver_2",
  "dpm_solver_3", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_3m", "euler", "euler_maruyama", "heun", "invert",
  "multistep", "predictor_corrector", "rk45", "sa_solver", "serving", "transition", "unipc",
]  # fmt: skip
