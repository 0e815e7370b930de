"""Decoupled diffusion on 8×8 digits: the paper's Tables 1, 4 and 5, and solvers that it names as future work.

  python experiments/study.py experiments/studies/decoupled.py:digits --out=results/decoupled/digits
  python experiments/study.py experiments/studies/decoupled.py:unconditional --out=results/decoupled/unconditional
  python experiments/study.py experiments/studies/decoupled.py:table5 --out=results/decoupled/table5

DDPM is the same U-Net with one head and one decoder, after the same images by the same optimizer; DDM is scored with
two decoders, and with one. The first study has Tables 1 and 4 and the solvers, of networks that are given the digit;
the second Table 1 of networks that are not, as in the paper; the third Table 5. Seven, three and six networks of three
seeds each, two of them in the first and the last: on a CPU core two hours, three quarters of one, and one.
"""

from diffusion_jax import presets
from diffusion_jax.study import Evaluation, Plot, Run, Study, Table

STEPS, TABLE_4_STEPS, SOLVER_EVALUATIONS = (5, 10, 20), (10, 20), (5, 9)
UPDATES, IMAGES = 1000, 500
MAIN = {"network": "DDM", "h_t": "constant", "variant": "U-Net + decoder"}
ONE_DECODER = {**MAIN, "variant": "one decoder"}  # of DDPM's size
DDPM = {"network": "DDPM"}
# rows of Table 5 that are not the paper's own choice, and the fields that make them
VARIANTS = {
  "U-Net + conv": {"decoupled.decoder": "branch"},
  "one decoder": {"decoupled.decoder": "one"},
  "weights 1, 1": {"decoupled.weight": "ones"},
  "weights e^t, e^(1−t)": {"decoupled.weight": "exponential"},
  "l1": {"decoupled.loss": "l1"},
}
ALGORITHM_2 = {"sampler": "decoupled", "refit": 1.0}  # as the published code has it
RESPACED = {"grid": "respaced"}
DDPM_SAMPLERS = {
  "ancestral": {**RESPACED, "sampler": "ddpm"},
  "ancestral, clipped": {**RESPACED, "sampler": "ddpm", "clip": 1.0},
  "DDIM": {**RESPACED, "sampler": "ddim"},
  "DDIM, clipped": {**RESPACED, "sampler": "ddim", "clip": 1.0},
}
SQUARE = {"power": 2.0}  # of the grid: t = (1 − i/n)²
SOLVERS = {
  "Algorithm 2": {"sampler": "decoupled", "refit": 0.0},
  "Algorithm 2, refit": ALGORITHM_2,
  "DDIM": {"sampler": "ddim"},
  "Euler": {"sampler": "euler"},
  "Heun": {"sampler": "heun"},
  "Heun, t = u²": {"sampler": "heun", **SQUARE},
  "multistep": {"sampler": "multistep"},
  "multistep, t = u²": {"sampler": "multistep", **SQUARE},
}  # of the pair (φ_θ, ε_θ)
DDM_SAMPLERS = {"Algorithm 2": ALGORITHM_2, "multistep, t = u²": SOLVERS["multistep, t = u²"]}  # shown in Table 1


def runs(study):
  fields = {f"train.{name}": UPDATES for name in ("num_steps", "checkpoint_every", "sample_every")}
  ddm = lambda attenuation: f"configs/ddm_digits.py:{attenuation}"
  if study == "unconditional":
    fields |= {"data.num_classes": 0, "label_dropout": 0.0}
  yield Run(MAIN, ddm("constant"), fields)
  if study == "table5":
    for variant, choice in VARIANTS.items():
      yield Run({**MAIN, "variant": variant}, ddm("constant"), {**fields, **choice})
    return
  optimizer = {f"optimizer.{name}": value for name, value in presets.decoupled_optimizer(2e-3).items()}
  ddpm = {**fields, **optimizer, "dual.heads": "eps"}
  yield Run({**DDPM, "h_t": "", "variant": ""}, "configs/dual_digits.py:linear", ddpm)
  yield Run(ONE_DECODER, ddm("constant"), {**fields, **VARIANTS[ONE_DECODER["variant"]]})
  for attenuation in presets.ATTENUATIONS[1:] if study == "digits" else ():
    yield Run({**MAIN, "h_t": attenuation}, ddm(attenuation), fields)


def evaluations(study):
  """Labels `for` say which table of the first study one is shown in."""
  if study == "table5":
    yield Evaluation({}, {**ALGORITHM_2, "num_steps": 10})
    return
  for steps in STEPS:
    for name, fields in DDM_SAMPLERS.items():
      for which in (MAIN, ONE_DECODER):
        yield Evaluation({"for": "1", "sampler": name}, {**fields, "num_steps": steps}, which)
    for name, fields in DDPM_SAMPLERS.items():
      yield Evaluation({"for": "1", "sampler": name}, {**fields, "num_steps": steps}, DDPM)
  if study == "unconditional":
    return
  for steps in TABLE_4_STEPS:
    when = {"network": "DDM", "variant": MAIN["variant"]}
    yield Evaluation({"for": "4", "sampler": "Algorithm 2"}, {**ALGORITHM_2, "num_steps": steps}, when)
  for name, fields in SOLVERS.items():
    for evaluations in SOLVER_EVALUATIONS:
      steps = (evaluations + 1) // 2 if fields["sampler"] == "heun" else evaluations
      yield Evaluation({"for": "solvers", "sampler": name}, {**fields, "num_steps": steps}, MAIN)


TABLES = {
  "digits": [
    Table("Table 1 on digits", ("network", "variant", "sampler"), ("NFE",), when={"for": "1"}),
    Table("Table 4 on digits", ("h_t",), ("NFE",), when={"for": "4"}),
    Table("Solvers of DDM, constant h, two decoders", ("sampler",), ("NFE",), when={"for": "solvers"}),
  ],
  "unconditional": [Table("Table 1 on digits, without classes", ("network", "variant", "sampler"), ("NFE",))],
  "table5": [Table("Table 5 on digits, 10 steps", ("variant",), metrics=("frechet", "precision", "recall"))],
}
PLOTS = {
  "digits": [
    Plot("table_1", "NFE", "sampler", "variant", when={"for": "1"}),
    Plot("table_4", "NFE", "h_t", when={"for": "4"}),
  ],
  "unconditional": [Plot("table_1", "NFE", "sampler", "variant")],
  "table5": [],
}


def get_study(study="digits"):
  presets.row(study, tuple(TABLES))
  return Study(
    about=(
      f"Networks of .75 million parameters, 1.35 with two decoders, after {UPDATES:,} updates of 32 images; scores of "
      f"{IMAGES} images, the same seeds for all rows."
    ),
    runs=list(runs(study)),
    evaluations=list(evaluations(study)),
    metrics=("frechet", "precision", "recall"),
    num_images=IMAGES,
    tables=TABLES[study],
    plots=PLOTS[study],
  )
