"""Free mixing of EDM's Table 1: one column's training with another's grid, process and solver, on 8×8 digits.

  python experiments/train.py --config=configs/ablations/sampling_digits.py:vp-edm-edm-heun --workdir=runs/vp_edm

After the colon: TRAINING-GRID-PROCESS-SOLVER, the first two of vp, ve, iddpm, edm; the process (σ(t), s(t)) of vp,
ve, edm; the solver heun, euler, ddim, ddpm, euler_maruyama or predictor_corrector. VP's β_d and β_min are solved anew
for the grid's range of noise levels.
"""

from diffusion_jax import presets


def get_config(choices="vp-edm-edm-heun"):
  solvers = ("heun", "euler", "ddim", "ddpm", "euler_maruyama", "predictor_corrector")
  training, grid, process, solver = presets.row(
    choices, presets.COLUMNS, presets.COLUMNS, ("vp", "ve", "edm"), solvers
  )
  c = presets.small()
  presets.set_table1(c, training)
  c.sampling.update(grid=grid, process=process, sampler=solver)
  c.train.num_steps = 2_400
  c.train.checkpoint_every = 600
  c.train.sample_every = 1_200
  return c
