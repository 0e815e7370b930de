"""Dynamic Dual-Output diffusion: its Table 1 on 8×8 digits and 16×16 patches of photographs, linear and cosine.

  python experiments/study.py experiments/studies/dual_output.py

All of the paper's rows, in 5, 10, 20 and 50 steps: the dual output, r fixed to its mean at each t, either head alone,
and ancestral sampling (DDPM, iDDPM) from one network; DDIM and DDPM of a network that has the noise head alone. In 5
and 10 steps also with estimated images clipped to [−1, 1]. On two CPU cores some three hours.
"""

from diffusion_jax.study import Evaluation, Plot, Run, Study, Table

STEPS, CLIPPED_STEPS = (5, 10, 20, 50), (5, 10)
DUAL, BASELINE = {"network": "dual"}, {"network": "ε alone"}
DATA = {"digits": ("configs/dual_digits.py", 2000), "photos": ("configs/dual_photos.py", 1000)}
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


def runs():
  for network, heads in ((DUAL, "dual"), (BASELINE, "eps")):
    for data, (config, steps) in DATA.items():
      for schedule in ("linear", "cosine"):
        fields = {f"train.{name}": steps for name in ("num_steps", "checkpoint_every", "sample_every")}
        fields["dual.heads"] = heads
        yield Run({"data": data, "schedule": schedule, **network}, f"{config}:{schedule}", fields)


def evaluations():
  for clip, all_steps in (("", STEPS), ("clipped", CLIPPED_STEPS)):
    for row, (network, fields) in ROWS.items():
      for steps in all_steps:
        sampling = {"sampler": "ddim", **fields, "num_steps": steps, "clip": float(bool(clip))}
        yield Evaluation({"row": row, "clip": clip}, sampling, network)


def get_study():
  table = lambda data, clip: Table(
    f"Table 1 on {data}{', estimated images clipped' if clip else ''}", ("schedule", "row"), ("NFE",),
    when={"data": data, "clip": clip},
  )  # fmt: skip
  plot = lambda data, schedule: Plot(
    f"{data}_{schedule}", "NFE", "row", when={"data": data, "schedule": schedule, "clip": ""}
  )  # fmt: skip
  return Study(
    about=(
      "Networks of .75 million parameters, 2,000 updates of 32 digits, class-conditional, or 1,000 of 32 patches of "
      "photographs, unconditional. The Fréchet distance is that of 500 images, the same seeds for all rows."
    ),
    runs=list(runs()),
    evaluations=list(evaluations()),
    metrics=("frechet", "precision", "recall"),
    num_images=500,
    tables=[table(data, clip) for data in DATA for clip in ("", "clipped")],
    plots=[plot(data, schedule) for data in DATA for schedule in ("linear", "cosine")],
  )
