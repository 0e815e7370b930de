"""EDM's Table 2 (row F), Figure 2 and Figure 4 from NVIDIA's published pickles, by FID.

  python experiments/study.py experiments/studies/edm_published.py:table2,CHECKPOINTS,REFERENCES --inception=FILE.pth

The argument is WHAT,CHECKPOINTS,REFERENCES: table2, figure2 or figure4; the folder of the pickles, under the names they
were published with; the folder of the statistics of real images, cifar10-32x32.npz and so on. Networks that are not
there are left out. 50,000 images in three blocks a score: hours on a GPU for each.
"""

from etils import epath

from diffusion_jax.study import Evaluation, Plot, Run, Study, StudyError, Table

TABLE_2 = {
  f"edm-{data}-{kind}-{network}": ({"data": f"{title} {kind}", "network": network.upper()}, data)
  for data, title, kinds in (
    ("cifar10-32x32", "CIFAR-10", ("cond", "uncond")),
    ("ffhq-64x64", "FFHQ-64", ("uncond",)),
    ("afhqv2-64x64", "AFHQv2-64", ("uncond",)),
  )
  for kind in kinds
  for network in ("vp", "ve")
}
BASELINES = {
  "baseline-cifar10-32x32-uncond-vp": ({"training": "VP"}, "cifar10-32x32"),
  "baseline-cifar10-32x32-uncond-ve": ({"training": "VE"}, "cifar10-32x32"),
  "baseline-imagenet-64x64-cond-adm": ({"training": "iDDPM"}, "imagenet-64x64"),
}
COLUMN = {"VP": ("vp", "vp"), "VE": ("ve", "ve"), "iDDPM": ("iddpm", "edm")}  # grid, process
EULER_STEPS, HEUN_STEPS = (16, 32, 64, 128, 256, 512, 1024), (8, 12, 18, 32, 64, 128, 256)
# S_churn, S_tmin, S_tmax, S_noise of the final paper's grid search; the submitted version does not print them, so check
# them against its Appendix E before citing a result.
CHURN = {"VP": (30, 0.01, 1.0, 1.007), "VE": (80, 0.05, 1.0, 1.007), "iDDPM": (80, 0.05, 50.0, 1.003)}


def figure2():
  for name, (grid, process) in COLUMN.items():
    for n in EULER_STEPS:
      fields = dict(sampler="euler", grid=grid, process=process, num_steps=n)
      yield Evaluation({"sampler": "original: Euler"}, fields, {"training": name})
    for n in HEUN_STEPS:
      fields = dict(sampler="heun", grid="edm", process="edm", num_steps=n)
      yield Evaluation({"sampler": "Heun, EDM's grid, σ = t, s = 1"}, fields, {"training": name})


def figure4():
  for name, (churn, low, high, noise) in CHURN.items():
    for n in HEUN_STEPS[2:]:
      heun = dict(sampler="heun", grid="edm", process="edm", num_steps=n)
      full = dict(heun, churn=float(churn), s_min=low, s_max=high, s_noise=noise)
      for line, fields in {
        "deterministic": heun,
        "S_churn alone": dict(heun, churn=float(churn)),
        "optimal settings": full,
      }.items():
        yield Evaluation({"sampler": line}, fields, {"training": name})


def get_study(argument="table2,checkpoints,references"):
  what, checkpoints, references = (argument.split(",") + ["", ""])[:3]
  if what not in ("table2", "figure2", "figure4"):
    raise StudyError(f"edm_published.py:{argument}: expected table2, figure2 or figure4, CHECKPOINTS, REFERENCES")
  runs = []
  for name, (labels, data) in (TABLE_2 if what == "table2" else BASELINES).items():
    path = epath.Path(checkpoints) / f"{name}.pkl"
    if path.exists():
      runs.append(Run(labels, checkpoint=str(path), reference=str(epath.Path(references) / f"{data}.npz")))
  if not runs:
    raise StudyError(f"{checkpoints or '.'} holds none of the published pickles, such as {next(iter(TABLE_2))}.pkl")
  common = dict(runs=runs, metrics=("frechet",), num_images=50_000, blocks=3, seeds=(0,), extractor="inception")
  if what == "table2":
    table = Table("EDM, Table 2, row F", ("data", "NFE"), ("network",))
    return Study(about="Published networks, deterministic sampler.", tables=[table], **common)
  evaluations = list(figure2() if what == "figure2" else figure4())
  table = Table(f"EDM, {what.capitalize()}", ("training", "sampler", "NFE"))
  plots = [Plot(what, "NFE", "sampler", "training")]
  return Study(about="Published baselines.", evaluations=evaluations, tables=[table], plots=plots, **common)
