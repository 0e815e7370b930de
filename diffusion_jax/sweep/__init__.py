"""Sweeps: many members of one config, launched locally or under Slurm, each trained and scored once.

A sweep is a Python file with a get_sweep() that returns a Sweep; experiments/sweep.py runs it.
"""

from diffusion_jax.study.description import Plot as Plot
from diffusion_jax.sweep.description import Override as Override
from diffusion_jax.sweep.description import Sweep as Sweep
from diffusion_jax.sweep.description import SweepError as SweepError
from diffusion_jax.sweep.description import chain as chain
from diffusion_jax.sweep.description import product as product
from diffusion_jax.sweep.description import values as values
from diffusion_jax.sweep.description import zipped as zipped
