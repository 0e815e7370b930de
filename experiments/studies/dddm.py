"""DDDM on 8×8 digits: Algorithm 1 as written and its options, beside EDM of the same U-Net and training images.

  python experiments/study.py experiments/studies/dddm.py:digits --out=results/dddm/digits      # Table 1, Figure 5
  python experiments/study.py experiments/studies/dddm.py:classes --out=results/dddm/classes    # Table 2
  python experiments/study.py experiments/studies/dddm.py:options --out=results/dddm/options
  python experiments/study.py experiments/studies/dddm.py:metrics --out=results/dddm/metrics    # Figure 2
  python experiments/study.py experiments/studies/dddm.py:l1 --out=results/dddm/l1
  python experiments/study.py experiments/studies/dddm.py:T --out=results/dddm/T                # Table 3

Three seeds each. The first has networks without classes, as the paper's on CIFAR-10, the second with them, as on
ImageNet; the others are without. The metric is Pseudo-Huber where nothing else is said; "l1" has the options with L1,
the best of the metrics in one step. The paper's Table 3 trains for
T epochs; here all T have the same updates.
"""

from diffusion_jax import presets
from diffusion_jax.study import Evaluation, Plot, Run, Study, Table

UPDATES, IMAGES = 1000, 500
ITERATIONS, HEUN_STEPS = (1, 2, 5, 10, 20, 100), (2, 3, 5, 8, 18)
EDM = {"network": "EDM", "estimates": "", "variant": ""}
WRITTEN = {"network": "DDDM", "estimates": "buffer (Algorithm 1)", "variant": ""}
# What x̄_0 is in training, where it is not the example's last estimate, and the fields that make it so.
ESTIMATES = {
  "buffer, a third refreshed": {"dddm.buffer_refresh": 1 / 3},
  "of the same x_t": {"dddm.estimates": "in_step"},
  "the image itself (published code)": {"dddm.buffer_writes": "clean", "dddm.consistency_weight": True},
}
OPTIONS = {
  "concatenation": {"dddm.conditioning": "concat"},
  "attention without positions": {"dddm.positions": False},
  "dropout .3": {"network.dropout": 0.3},
  "augmentation .12": {"data.augment": 0.12},
  "twice the width": {"network.channels": 64},
  "four times as long": {f"train.{name}": 4 * UPDATES for name in ("num_steps", "checkpoint_every", "sample_every")},
}
METRICS = {
  "L1": {"dddm.metric": "l1"},
  "L2²": {"dddm.metric": "l2"},
  "features": {"dddm.metric": "features"},
  "Pseudo-features": {"dddm.metric": "pseudo_features"},
  "Pseudo-Huber, c = .05": {"dddm.metric_c": 0.05},
  "Pseudo-Huber, c = .5": {"dddm.metric_c": 0.5},
}
_LENGTHS = ("num_steps", "checkpoint_every", "sample_every")
L1_OPTIONS = {
  **OPTIONS,
  "half as long": {f"train.{name}": UPDATES // 2 for name in _LENGTHS},
  "a third refreshed": {"dddm.buffer_refresh": 1 / 3},
  "T = 4000": {"dddm.num_steps": 4000},
  "a quarter as long": {f"train.{name}": UPDATES // 4 for name in _LENGTHS},
  "half as long, dropout .3": {**{f"train.{name}": UPDATES // 2 for name in _LENGTHS}, "network.dropout": 0.3},
}
TIMES = (2000, 4000, 8000)


def runs(study):
  fields = {f"train.{name}": UPDATES for name in ("num_steps", "checkpoint_every", "sample_every")}
  if study != "classes":
    fields |= {"data.num_classes": 0, "label_dropout": 0.0}
  own = {**fields, "dddm.metric": "pseudo_huber"}
  dddm = lambda labels, choice: Run(labels, "configs/dddm_digits.py", {**own, **choice})
  if study in ("digits", "classes"):
    yield Run(EDM, "configs/edm_digits.py", fields)
  yield dddm(WRITTEN, {})
  if study in ("digits", "classes"):
    for name, choice in ESTIMATES.items():
      yield dddm({**WRITTEN, "estimates": name}, choice)
    return
  if study == "T":
    for count in TIMES:
      yield dddm({**WRITTEN, "variant": f"T = {count}"}, {"dddm.num_steps": count})
    return
  if study == "l1":
    for name, choice in {"": {}, **L1_OPTIONS}.items():
      yield dddm({**WRITTEN, "variant": f"L1, {name}" if name else "L1"}, {"dddm.metric": "l1", **choice})
    return
  for name, choice in {"options": OPTIONS, "metrics": METRICS}[study].items():
    yield dddm({**WRITTEN, "variant": name}, choice)


def evaluations():
  for steps in HEUN_STEPS:
    yield Evaluation({"sampler": "Heun"}, {"sampler": "heun", "num_steps": steps}, EDM)
  for count in ITERATIONS:
    yield Evaluation({"sampler": "Algorithm 2"}, {"num_steps": count}, {"network": "DDDM"})


TITLES = {
  "digits": "Without classes",
  "classes": "Given the class",
  "options": "Options, without classes",
  "metrics": "Metrics, without classes",
  "l1": "L1 and options, without classes",
  "T": "T, without classes",
}


def get_study(study="digits"):
  presets.row(study, tuple(TITLES))
  rows = ("network", "estimates", "variant")
  return Study(
    about=(
      f"Networks of EDM's .75 million parameters and what attends to x̄_0, after {UPDATES:,} updates of 32 images where "
      f"nothing else is said; scores of {IMAGES} images, the same seeds for all rows."
    ),
    runs=list(runs(study)),
    evaluations=list(evaluations()),
    metrics=("frechet", "precision", "recall", "memorised"),
    num_images=IMAGES,
    tables=[
      Table(f"{TITLES[study]}: Fréchet distance", (*rows, "sampler"), ("NFE",)),
      Table("Precision, recall and the share of memorised images", (*rows, "sampler", "NFE"), (),
            ("precision", "recall", "memorised")),
    ],
    plots=[Plot("nfe", "NFE", "estimates", "network")],
  )  # fmt: skip
