"""Evaluation: how far generated images are from real ones."""

from diffusion_jax.evaluation.entropy import inception_score as inception_score
from diffusion_jax.evaluation.frechet import frechet_distance as frechet_distance
from diffusion_jax.evaluation.kernel import kernel_distance as kernel_distance
from diffusion_jax.evaluation.neighbours import precision_recall as precision_recall
from diffusion_jax.evaluation.paired import mae as mae
from diffusion_jax.evaluation.paired import psnr as psnr
from diffusion_jax.evaluation.streaming import Moments as Moments
from diffusion_jax.evaluation.streaming import moments as moments
