"""Sampler × evaluations × method on 8×8 digits: the columns of EDM's Table 1, each by every solver on EDM's grid.

  python experiments/sweep.py run configs/sweeps/digits_samplers.py
  python experiments/sweep.py run configs/sweeps/digits_samplers.py --set=train.num_steps=100 --num_images=200  # a look

36 members in 4 trainings of 2,400 steps. A further method is one more line of METHODS.
"""

from diffusion_jax.sweep import Override, Plot, Sweep, product, values

METHODS = {
  "EDM": "configs/ablations/table1_digits.py:edm",
  "VP": "configs/ablations/table1_digits.py:vp",
  "VE": "configs/ablations/table1_digits.py:ve",
  "iDDPM": "configs/ablations/table1_digits.py:iddpm",
}


def get_sweep():
  solvers = product(
    values("sampling.sampler", ("heun", "ddim", "ddpm")),
    values("sampling.num_steps", (5, 9, 18)),
  )
  on_edm_grid = Override({"sampling.grid": "edm"}, labels={})  # the same for all: no column
  return Sweep(
    config="configs/ablations/table1_digits.py",
    members=product(values("config", METHODS, "method"), [on_edm_grid], solvers),
    metrics=("frechet",),
    plot=Plot("report", "NFE", "sampler", "method"),
  )
