"""Few-step diffusion models in JAX: one waist, five papers, every sampler."""

from diffusion_jax import files as files  # sets how paths reach buckets, before any is used
