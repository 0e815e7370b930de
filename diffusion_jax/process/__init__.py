"""Forward processes: how a clean image becomes noise, and the field that leads back.

    x_t = m(c, t) + σ(t)·ε,   ε ~ N(0, I)                                               (1)
    dx/dt = ∂m/∂t(ĉ, t) + σ'(t)·ε̂                                                       (2)
    Gaussian:    c = x_0,  m(x_0, t) = α(t)·x_0;   noise level σ(t)/α(t) (EDM's σ)      (3)
    Decoupled:   c = φ,    m(φ, t) = H_t(φ) − H_1(φ),  H_t = ∫_0^t h,  x_0 = −H_1(φ)    (4)

A process is a frozen, hashable dataclass of numbers; its methods are pure functions of t, a scalar or [B], and of
images [B, H, W, C]. Derivatives in t come from automatic differentiation of m and σ.

Sources: Karras et al. 2022, Table 1 (EDM, VP, VE); Ho et al. 2020 (DDPM); Nichol & Dhariwal 2021 (Cosine);
Huang et al., Decoupled Diffusion Models.
"""

from diffusion_jax.process.attenuation import ATTENUATIONS, SINE_SCALE
from diffusion_jax.process.base import MAX_NOISE_LEVEL, Gaussian, Process, as_time, reframe
from diffusion_jax.process.decoupled import Decoupled
from diffusion_jax.process.gaussian import DDPM, EDM, VE, VP, Cosine, Discrete

__all__ = [
  "ATTENUATIONS", "DDPM", "EDM", "MAX_NOISE_LEVEL", "SINE_SCALE", "VE", "VP", "Cosine", "Decoupled", "Discrete",
  "Gaussian", "Process", "as_time", "reframe",
]  # fmt: skip
