"""Decoupled diffusion on 8×8 digits: the paper's Tables 1, 4 and 5, and solvers that it names as future work.

  python experiments/study.py experiments/studies/decoupled.py:digits --out=results/decoupled/digits

DDPM is the same U-Net with one head and one decoder, after the same images by the same optimizer. Eleven networks of
three seeds: on a CPU core two hours.
"""

from diffusion_jax import presets
from diffusion_jax.study import Evaluation, Plot, Run, Study, Table

STEPS, TABLE_4_STEPS, SOLVER_EVALUATIONS = (5, 10, 20, 50), (10, 50), (5, 9, 19)
UPDATES, IMAGES = 1500, 500
MAIN = {"network": "DDM", "h_t": "constant", "variant": "U-Net + decoder"}
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
  "Algorithm 2": {"sampler": "decoupled"},
  "Algorithm 2, refit": ALGORITHM_2,
  "DDIM": {"sampler": "ddim"},
  "Euler": {"sampler": "euler"},
  "Heun": {"sampler": "heun"},
  "Heun, t = u²": {"sampler": "heun", **SQUARE},
  "multistep": {"sampler": "multistep"},
  "multistep, t = u²": {"sampler": "multistep", **SQUARE},
}  # of the pair (φ_θ, ε_θ)


def runs():
  fields = {f"train.{name}": UPDATES for name in ("num_steps", "checkpoint_every", "sample_every")}
  ddm = lambda attenuation: f"configs/ddm_digits.py:{attenuation}"
  yield Run(MAIN, ddm("constant"), fields)
  optimizer = {f"optimizer.{name}": value for name, value in presets.decoupled_optimizer(2e-3).items()}
  ddpm = {**fields, **optimizer, "dual.heads": "eps"}
  yield Run({**DDPM, "h_t": "", "variant": ""}, "configs/dual_digits.py:linear", ddpm)
  for attenuation in presets.ATTENUATIONS[1:]:
    yield Run({**MAIN, "h_t": attenuation}, ddm(attenuation), fields)
  for variant, choice in VARIANTS.items():
    yield Run({**MAIN, "variant": variant}, ddm("constant"), {**fields, **choice})


def evaluations():
  """Labels `for` say which table an evaluation is shown in."""
  for steps in STEPS:
    yield Evaluation({"for": "1", "sampler": "Algorithm 2"}, {**ALGORITHM_2, "num_steps": steps}, MAIN)
    for name, fields in DDPM_SAMPLERS.items():
      yield Evaluation({"for": "1", "sampler": name}, {**fields, "num_steps": steps}, DDPM)
  for steps in TABLE_4_STEPS:
    when = {"variant": MAIN["variant"]}
    yield Evaluation({"for": "4", "sampler": "Algorithm 2"}, {**ALGORITHM_2, "num_steps": steps}, when)
  yield Evaluation({"for": "5", "sampler": "Algorithm 2"}, {**ALGORITHM_2, "num_steps": 10}, {"h_t": "constant"})
  for name, fields in SOLVERS.items():
    for evaluations in SOLVER_EVALUATIONS:
      steps = (evaluations + 1) // 2 if fields["sampler"] == "heun" else evaluations
      yield Evaluation({"for": "solvers", "sampler": name}, {**fields, "num_steps": steps}, MAIN)


def get_study(data="digits"):
  presets.row(data, ("digits",))
  return Study(
    about=(
      f"Networks of .75 million parameters (1.1 with two decoders) after {UPDATES:,} updates of 32 images; scores of "
      f"{IMAGES} images, the same seeds for all rows."
    ),
    runs=list(runs()),
    evaluations=list(evaluations()),
    metrics=("frechet", "precision", "recall"),
    num_images=IMAGES,
    tables=[
      Table("Table 1 on digits", ("network", "sampler"), ("NFE",), when={"for": "1"}),
      Table("Table 4 on digits", ("h_t",), ("NFE",), when={"for": "4"}),
      Table("Table 5 on digits", ("variant",), when={"for": "5"}, metrics=("frechet", "precision", "recall")),
      Table("Solvers of DDM, constant h, two decoders", ("sampler",), ("NFE",), when={"for": "solvers"}),
    ],
    plots=[Plot("table_1", "NFE", "sampler", when={"for": "1"}), Plot("table_4", "NFE", "h_t", when={"for": "4"})],
  )  # fmt: skip
