"""Studies: configs × seeds × evaluations, each trained and scored once, and the tables and plots that come of them.

A study is a Python file with a get_study() that returns a Study; experiments/study.py runs it.
"""

from diffusion_jax.study.description import Evaluation as Evaluation
from diffusion_jax.study.description import Plot as Plot
from diffusion_jax.study.description import Run as Run
from diffusion_jax.study.description import Study as Study
from diffusion_jax.study.description import StudyError as StudyError
from diffusion_jax.study.description import Table as Table
