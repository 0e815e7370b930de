"""Dynamic Dual-Output diffusion: its Table 1 on 8×8 digits or 16×16 patches of photographs, linear and cosine.

  python experiments/study.py experiments/studies/dual_output.py:digits --out=results/dual_output/digits
  python experiments/study.py experiments/studies/dual_output.py:photos --out=results/dual_output/photos

All of the paper's rows, in 5, 10, 20 and 50 steps: the dual output, r fixed to its mean at each t, either head alone,
and ancestral sampling (DDPM, iDDPM) from one network; DDIM and DDPM of a network that has the noise head alone. In 5
and 10 steps also with estimated images clipped to [−1, 1]. Twelve networks each: on a CPU core an hour and a half for
the digits, three for the photographs.
"""

from diffusion_jax import presets
from diffusion_jax.study import Evaluation, Plot, Run, Study, Table

STEPS, CLIPPED_STEPS = (5, 10, 20, 50), (5, 10)
DUAL, BASELINE = {"network": "dual"}, {"network": "ε alone"}
SCHEDULES = ("linear", "cosine")
UPDATES, IMAGES = {"digits": 2000, "photos": 1000}, {"digits": 500, "photos": 125}
# rows of the paper's Table 1, and the network that each is of
ROWS = {
  "dual output": (DUAL, {}),
  "fixed r_t": (DUAL, {"ratio": "mean"}),
  "only ε": (DUAL, {"ratio": "0"}),
  "only x": (DUAL, {"ratio": "1"}),
  "dual output, ancestral": (DUAL, {"sampler": "ddpm"}),
  "DDIM": (BASELINE, {}),
  "DDPM": (BASELINE, {"sampler": "ddpm"}),
}


def runs(data):
  fields = {f"train.{name}": UPDATES[data] for name in ("num_steps", "checkpoint_every", "sample_every")}
  for network, heads in ((DUAL, "dual"), (BASELINE, "eps")):
    for schedule in SCHEDULES:
      config = f"configs/dual_{data}.py:{schedule}"
      yield Run({"schedule": schedule, **network}, config, {**fields, "dual.heads": heads})


def evaluations():
  for clip, all_steps in (("", STEPS), ("clipped", CLIPPED_STEPS)):
    for row, (network, fields) in ROWS.items():
      for steps in all_steps:
        sampling = {"sampler": "ddim", **fields, "num_steps": steps, "clip": float(bool(clip))}
        yield Evaluation({"row": row, "clip": clip}, sampling, network)


def get_study(data="digits"):
  (data,) = presets.row(data, tuple(UPDATES))
  table = lambda title, clip: Table(title, ("schedule", "row"), ("NFE",), when={"clip": clip})
  return Study(
    about=(
      f"Networks of .75 million parameters after {UPDATES[data]:,} updates of 32 images; scores of {IMAGES[data]} "
      "images, the same seeds for all rows."
    ),
    runs=list(runs(data)),
    evaluations=list(evaluations()),
    metrics=("frechet", "precision", "recall"),
    num_images=IMAGES[data],
    tables=[
      table(f"Table 1 on {data}", ""),
      table(f"Table 1 on {data}, estimated images clipped to [−1, 1]", "clipped"),
    ],
    plots=[Plot(schedule, "NFE", "row", when={"schedule": schedule, "clip": ""}) for schedule in SCHEDULES],
  )  # fmt: skip
