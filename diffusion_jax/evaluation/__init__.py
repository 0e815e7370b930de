"""Evaluation: how far generated images are from real ones."""

from diffusion_jax.evaluation.frechet import frechet_distance as frechet_distance
from diffusion_jax.evaluation.frechet import moments as moments
