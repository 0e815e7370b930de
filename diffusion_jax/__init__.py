"""Few-step diffusion models in JAX: one waist, five papers, every sampler."""
