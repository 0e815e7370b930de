"""Samplers: pure functions sampler(denoise, process, x, grid, keys=None, **options) -> x0."""

from diffusion_jax.samplers.ancestral import ddim, ddpm, decoupled, transition
from diffusion_jax.samplers.ode import Churn, euler, heun

BY_NAME = {"euler": euler, "heun": heun, "ddim": ddim, "ddpm": ddpm, "decoupled": decoupled}

__all__ = ["BY_NAME", "Churn", "ddim", "ddpm", "decoupled", "euler", "heun", "transition"]
