"""DPDM on 8×8 digits: teacher against pupil, by sampler and NFE (Tables 2 and 4, Figure 6), and by recovery (Table 1).

  python experiments/study.py experiments/studies/dpdm_digits.py

Three teachers of 2,400 steps, four minutes each on a CPU core, three pupils of 4,000 alternations, a quarter of an hour
each, and half an hour of sampling. Heun spends odd numbers of evaluations alone; for the even ones stands the teacher's
Euler.
"""

from diffusion_jax.study import Evaluation, Plot, Run, Study, Table

TEACHER, PUPIL = {"network": "teacher (EDM)"}, {"network": "pupil (DPDM)"}
DPDM_STEPS, EULER_STEPS = (1, *range(4, 11), 12, 14, 15, 16, 18), (4, 6, 8, 10, 12, 14, 16, 18)
HEUN_STEPS = (3, 4, 5, 6, 7, 8, 9, 18)
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1.0, 2.0, 5.0, 7.5, 10.0)


def evaluations():
  published = {"sampler": "dpdm", "grid": "dpdm", "sigma_min_search": False}
  for steps in HEUN_STEPS:
    yield Evaluation({"table": "NFE", "sampler": "Heun"}, {"sampler": "heun", "grid": "edm", "num_steps": steps})
  for steps in EULER_STEPS:
    fields = {"sampler": "euler", "grid": "edm", "num_steps": steps}
    yield Evaluation({"table": "NFE", "sampler": "Euler"}, fields, TEACHER)
  for steps in DPDM_STEPS:
    yield Evaluation({"table": "NFE", "sampler": "DPDM"}, {**published, "num_steps": steps})
  for steps in (2, 3, 5):
    searched = {**published, "sigma_min_search": True, "num_steps": steps}
    yield Evaluation({"table": "search", "sampler": "DPDM, σ_min searched"}, searched, PUPIL)
  for sigma in SIGMAS:
    yield Evaluation({"table": "recovery", "sampler": "one denoising", "σ": sigma}, recovery=sigma)


def get_study():
  steps = lambda n: {"train.num_steps": n, "train.checkpoint_every": n, "train.sample_every": n}
  return Study(
    about=(
      "DPDM on 8×8 digits, class-conditional: networks of .75 million parameters; teachers of 2,400 steps of 32, "
      "pupils of 4,000 alternations of 32 images. Pupils are trained with P_mean = 0 in place of the teacher's −1.2."
    ),
    runs=[
      Run(TEACHER, "configs/edm_digits.py", steps(2400)),
      Run(PUPIL, "configs/dpdm_digits.py", steps(4000), init=TEACHER),
    ],
    evaluations=list(evaluations()),
    metrics=("frechet", "precision", "recall"),
    tables=[
      Table("DPDM, Tables 2 and 4: Fréchet distance at equal NFE, and the two samplers crossed", ("sampler", "NFE"),
            ("network",), when={"table": "NFE"}),
      Table("The pupil by DPDM's sampler, σ_min searched for each NFE", ("NFE",), (),
            ("frechet", "precision", "recall"), {"table": "search"}),
      Table("Precision and recall", ("network", "sampler", "NFE"), (), ("precision", "recall"), {"table": "NFE"}),
      Table("DPDM, Table 1: recovery, the Fréchet distance of denoised to clean images", ("σ",), ("network",),
            when={"table": "recovery"}),
    ],
    plots=[
      Plot("nfe", "NFE", "network", "sampler", when={"table": "NFE"}),
      Plot("recovery", "σ", "network", when={"table": "recovery"}),
    ],
  )  # fmt: skip
