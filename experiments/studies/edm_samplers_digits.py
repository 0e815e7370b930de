"""EDM's Table 1 and Figures 2, 4 and 5b on 8×8 digits: four trainings, each sampled in many ways.

  python experiments/study.py experiments/studies/edm_samplers_digits.py

12 trainings of 2,400 steps, some four minutes each on a CPU core, and about an hour of sampling.
"""

from diffusion_jax.study import Evaluation, Plot, Run, Study, Table

NAMES = {"vp": "VP", "ve": "VE", "iddpm": "iDDPM", "edm": "EDM"}
PROCESS = {"vp": "vp", "ve": "ve", "iddpm": "edm", "edm": "edm"}
EULER_STEPS, HEUN_STEPS = (10, 20, 40, 80), (3, 5, 9, 18, 40)


def deterministic(column):
  """Figure 2: the original, Heun on EDM's grid, and with σ(t) = t, s(t) = 1; for EDM's own training also ρ."""
  process = PROCESS[column]
  euler = dict(sampler="euler", grid=column, process=process)
  heun = dict(sampler="heun", grid="edm")
  yield "own: Euler", euler, EULER_STEPS
  if column == "edm":
    yield "own: Heun, ρ = 7", dict(heun, process="edm"), HEUN_STEPS
    for rho in (3.0, 5.0, 10.0):
      yield f"Heun, ρ = {rho:g}", dict(heun, process="edm", rho=rho), HEUN_STEPS[1:3]
    return
  yield "Heun, EDM's grid", dict(heun, process=process), HEUN_STEPS[1:4]
  if process != "edm":
    yield "Heun, EDM's grid, σ = t, s = 1", dict(heun, process="edm"), HEUN_STEPS[1:4]


def evaluations():
  for column, name in NAMES.items():
    for line, fields, steps in deterministic(column):
      for n in steps:
        yield Evaluation({"figure": "2", "sampler": line}, dict(fields, num_steps=n), {"training": name})
  stochastic = {
    "VP": ("Euler–Maruyama", dict(sampler="euler_maruyama", grid="vp", process="vp", num_steps=20)),
    "VE": ("predictor–corrector", dict(sampler="predictor_corrector", grid="ve", process="ve", num_steps=10)),
  }
  for name, (line, fields) in stochastic.items():
    yield Evaluation({"figure": "4", "sampler": line}, fields, {"training": name})
  for name in ("VP", "EDM"):
    for churn in (0.0, 2.0, 5.0, 40.0):  # from 7.5 on the clamp of γ makes them one
      fields = dict(sampler="heun", grid="edm", process="edm", num_steps=18, churn=churn)
      yield Evaluation({"figure": "5b", "sampler": "Heun", "S_churn": churn}, fields, {"training": name})


def get_study():
  short = {"train.checkpoint_every": 2400, "train.sample_every": 2400}
  return Study(
    about=(
      "The columns of EDM's Table 1 on 8×8 digits, class-conditional, .75 million parameters, 2,400 steps of 32 "
      "images. VE has σ_max = 10, about the largest distance between two digits."
    ),
    runs=[Run({"training": name}, f"configs/ablations/table1_digits.py:{key}", short) for key, name in NAMES.items()],
    evaluations=list(evaluations()),
    metrics=("frechet",),
    tables=[
      Table("EDM, Table 1 and Figure 2: trainings and deterministic samplers", ("training", "sampler", "NFE"),
            when={"figure": "2"}),
      Table("EDM, Figure 4: the original stochastic samplers", ("training", "sampler", "NFE"), when={"figure": "4"}),
      Table("EDM, Figure 5b: S_churn, Heun, NFE 35", ("training",), ("S_churn",), when={"figure": "5b"}),
    ],
    plots=[
      Plot("figure2", "NFE", "sampler", "training", when={"figure": "2"}),
      Plot("figure5b", "S_churn", "training", when={"figure": "5b"}),
    ],
  )  # fmt: skip
