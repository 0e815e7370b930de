"""The four columns of EDM's Table 1, each trained and sampled in its own way, on 8×8 digits.

  python experiments/train.py --config=configs/ablations/table1_digits.py:vp --workdir=runs/table1/vp_0
  python experiments/evaluate.py --workdir=runs/table1/vp_0 --num_steps=50
  python experiments/evaluate.py --workdir=runs/table1/vp_0 --sampler=heun --grid=edm --process=edm --num_steps=9

After the colon: vp, ve, iddpm or edm; ve has σ_max = 10, since two digits are at most 9.6 apart (technique 1 of Song &
Ermon 2020), and ve100 the paper's 100; iddpm_vlb adds L_vlb and the learned variance, for iDDPM's ancestral sampler:

  python experiments/evaluate.py --workdir=runs/table1/iddpm_vlb_0 --num_steps=100

A run is sampled with any other grid, process and solver by flags, as in the third command. Results to expect:
experiments/results/edm_digits.
"""

from diffusion_jax import presets


def get_config(column="edm"):
  (column,) = presets.row(column, (*presets.COLUMNS, "ve100", "iddpm_vlb"))
  c = presets.small()
  presets.set_table1(c, column.removesuffix("_vlb").removesuffix("100"))
  if column == "ve":
    c.edm.sigma_max = 10.0
  if column == "iddpm_vlb":
    c.edm.vlb_weight = 0.001
    c.sampling.update(sampler="ddpm", process="vp", variance="learned")
  c.sampling.num_steps = 18 if column == "edm" else 50
  c.train.num_steps = 2_400
  c.train.checkpoint_every = 600
  c.train.sample_every = 1_200
  return c
