"""Dan Zhang, Jingjing Wang and Feng Luo, "Directly Denoising Diffusion Models", ICML 2024."""

from papers import Entry, Given, Table, command, real, train

TITLE = "Directly Denoising Diffusion Models"

_CIFAR10, _IMAGENET = "dddm_cifar10.py", "dddm_imagenet64.py"
_REFERENCES = {_CIFAR10: "cifar10-32x32.npz", _IMAGENET: "imagenet-64x64.npz"}
_DEEP = {"network.num_blocks": "2"}  # of the small network, which has one a resolution


def _run_of(config: str) -> str:
  """dddm_cifar10_8000 of dddm_cifar10.py:8000, dddm_digits of dddm_digits.py."""
  return config.replace(".py", "").replace(":", "_")


def _trained(given: Given, file: str, rows: tuple[str, ...]) -> dict[str, str]:
  """{workdir: training} of rows of a config where its data are given; else of digits, deep where a row is."""
  if given.data:
    configs = [f"{file}:{row}" for row in rows]
    return {f"{given.runs}/{_run_of(config)}": train(given, config, _run_of(config)) for config in configs}
  depths = dict.fromkeys("deep" in row for row in rows)
  runs = {"dddm_digits_deep" if deep else "dddm_digits": _DEEP if deep else {} for deep in depths}
  return {f"{given.runs}/{run}": train(given, "dddm_digits.py", run, **fields) for run, fields in runs.items()}


def _study(row: str):
  """A row of the study on digits, into OUT/row."""

  def commands(given: Given) -> list[str]:
    return [command("study.py", f"experiments/studies/dddm.py:{row}", runs=given.runs, out=f"{given.out}/{row}")]

  return commands


def _scores(name: str, study: str, nfe: str, file: str, *rows: str, metrics: str = "frechet"):
  """Scores by iterations of rows of a config where its data are given; else a study on digits, or where "" as well."""

  def commands(given: Given) -> list[str]:
    if study and not given.data:
      return _study(study)(given)
    files = {"nfe": nfe, "metrics": metrics, **(real(given, _REFERENCES[file]) if given.data else {})}
    made = []
    for workdir, training in _trained(given, file, rows).items():
      out = f"{given.out}/{name}_{workdir.rpartition('/')[2]}"
      made += [training, command("evaluate.py", workdir=workdir, **files, out=out)]
    return made

  return commands


def _samples(figure: str, iterations: str, file: str, row: str):
  """Images of a row of a config where its data are given, else of digits, into OUT/figure."""

  def commands(given: Given) -> list[str]:
    ((workdir, training),) = _trained(given, file, (row,)).items()
    flags = {"workdir": workdir, "iterations": iterations, "out": f"{given.out}/{figure}"}
    return [training, command("figures/dddm.py", **flags) + " --overwrite"]

  return commands


def _grids():
  """Figures 6 to 17: a page for each data set, architecture and number of iterations."""
  data = (("CIFAR-10", _CIFAR10, "1000", "1000-deep"), ("ImageNet-64", _IMAGENET, "plain", "deep"))
  pages = [(name, file, row) for name, file, *both in data for row in both]
  numbers = (("One-step", "1"), ("Two-step", "2"), ("1000-step", "1000"))
  for i, ((name, file, row), (steps, iterations)) in enumerate((a, b) for a in pages for b in numbers):
    figure, model = f"figure{i + 6}", "DDDM-deep" if "deep" in row else "DDDM"
    yield Entry(figure, f"{steps} samples of {model} on {name}", commands=_samples(figure, iterations, file, row))


ENTRIES = (
  Entry("figure1", "Diagram of training: the estimate of the previous epoch conditions the next one"),
  Entry(
    "figure2",
    "FID on CIFAR-10 by training metric (L1, L2², LPIPS, Pseudo-Huber, Pseudo-LPIPS), and by c",
    commands=_study("metrics"),
  ),
  Entry(
    "table1",
    "FID and Inception Score on unconditional CIFAR-10, beside other methods; illegible cells are empty",
    Table(
      ("group", "method", "NFE", "FID", "IS"),
      (
        ("fast samplers & distillation", "DDIM", 10, 13.36, None),
        ("fast samplers & distillation", "DPM-solver-fast", 10, 4.70, None),
        ("fast samplers & distillation", "3-DEIS", 10, 4.17, None),
        ("fast samplers & distillation", "UniPC", 10, 3.87, None),
        ("fast samplers & distillation", "DFNO (LPIPS)", 1, 3.78, None),
        ("fast samplers & distillation", "2-Rectified Flow", 1, 4.85, 9.01),
        ("fast samplers & distillation", "Knowledge Distillation", 1, 9.36, None),
        ("fast samplers & distillation", "TRACT", 1, 3.78, None),
        ("fast samplers & distillation", "TRACT", 2, 3.32, None),
        ("fast samplers & distillation", "Diff-Instruct", 1, 4.53, 9.89),
        ("fast samplers & distillation", "CD (LPIPS)", 1, 3.55, 9.48),
        ("fast samplers & distillation", "CD (LPIPS)", 2, 2.93, 9.75),
        ("direct generation", "Score SDE", 2000, 2.38, 9.83),
        ("direct generation", "Score SDE (deep)", 2000, 2.20, 9.89),
        ("direct generation", "DDPM", 1000, 3.17, 9.46),
        ("direct generation", "LSGM", 147, 2.10, None),
        ("direct generation", "PFGM", 110, 2.35, 9.68),
        ("direct generation", "EDM", 35, 2.04, 9.84),
        ("direct generation", "EDM-G++", 35, 1.77, None),
        ("direct generation", "NVAE", 1, 23.5, 7.18),
        ("direct generation", "BigGAN", 1, 14.7, 9.22),
        ("direct generation", "StyleGAN2", 1, 8.32, 9.21),
        ("direct generation", "StyleGAN2-ADA", 1, 2.92, 9.83),
        ("direct generation", "CT (LPIPS)", 1, 8.70, 8.49),
        ("direct generation", "CT (LPIPS)", 2, 5.83, 8.85),
        ("direct generation", "iCT", 1, 2.83, 9.54),
        ("direct generation", "iCT", 2, None, 9.80),
        ("direct generation", "iCT-deep", 1, 2.51, 9.76),
        ("direct generation", "iCT-deep", 2, 2.24, None),
        ("direct generation", "DDDM (T=1000)", 1, 2.90, None),
        ("direct generation", "DDDM (T=1000)", 2, 2.79, None),
        ("direct generation", "DDDM (T=1000)", 1000, 1.87, None),
        ("direct generation", "DDDM (T=8000)", 1, 2.82, None),
        ("direct generation", "DDDM (T=8000)", 2, None, None),
        ("direct generation", "DDDM (T=8000)", 1000, 1.74, None),
        ("direct generation", "DDDM-deep (T=1000)", 1, 2.57, None),
        ("direct generation", "DDDM-deep (T=1000)", 2, 2.33, None),
        ("direct generation", "DDDM-deep (T=1000)", 1000, 1.79, 9.95),
      ),
    ),
    _scores("table1", "digits", "1,2,1000", _CIFAR10, "1000", "8000", "1000-deep", metrics="frechet,inception_score"),
  ),
  Entry(
    "table2",
    "FID, precision and recall on class-conditional ImageNet-64, beside other methods",
    Table(
      ("group", "method", "NFE", "FID", "precision", "recall"),
      (
        ("fast samplers & distillation", "DDIM", 50, 13.7, 0.65, 0.56),
        ("fast samplers & distillation", "DDIM", 10, 18.3, 0.60, 0.49),
        ("fast samplers & distillation", "DPM solver", 10, 7.93, None, None),
        ("fast samplers & distillation", "DPM solver", 20, 3.42, None, None),
        ("fast samplers & distillation", "DEIS", 10, 6.65, None, None),
        ("fast samplers & distillation", "DEIS", 20, 3.10, None, None),
        ("fast samplers & distillation", "DFNO (LPIPS)", 1, 7.83, 0.61, None),
        ("fast samplers & distillation", "TRACT", 1, 7.43, None, None),
        ("fast samplers & distillation", "TRACT", 2, 4.97, None, None),
        ("fast samplers & distillation", "BOOT", 1, 16.3, 0.68, 0.36),
        ("fast samplers & distillation", "Diff-Instruct", 1, 5.57, None, None),
        ("fast samplers & distillation", "PD (LPIPS)", 1, 7.88, 0.66, 0.63),
        ("fast samplers & distillation", "PD (LPIPS)", 2, 5.74, 0.67, 0.65),
        ("fast samplers & distillation", "PD (LPIPS)", 4, 4.92, 0.68, 0.65),
        ("fast samplers & distillation", "CD (LPIPS)", 1, 6.20, 0.68, 0.63),
        ("fast samplers & distillation", "CD (LPIPS)", 2, 4.70, 0.69, 0.64),
        ("fast samplers & distillation", "CD (LPIPS)", 3, 4.32, 0.70, 0.64),
        ("direct generation", "RIN", 1000, 1.23, None, None),
        ("direct generation", "DDPM", 250, 11.0, 0.67, 0.58),
        ("direct generation", "iDDPM", 250, 2.92, 0.74, 0.62),
        ("direct generation", "ADM", 250, 2.07, 0.74, 0.63),
        ("direct generation", "EDM", 511, 1.36, None, None),
        ("direct generation", "BigGAN-deep", 1, 4.06, 0.79, 0.48),
        ("direct generation", "CT (LPIPS)", 1, 13.0, 0.71, 0.47),
        ("direct generation", "CT (LPIPS)", 2, 11.1, 0.69, 0.56),
        ("direct generation", "iCT", 1, 4.02, 0.70, 0.63),
        ("direct generation", "iCT", 2, 3.20, 0.73, 0.63),
        ("direct generation", "iCT-deep", 1, 3.25, 0.72, 0.63),
        ("direct generation", "iCT-deep", 2, 2.77, 0.74, 0.62),
        ("direct generation", "DDDM (T=1000)", 1, 4.21, 0.71, 0.64),
        ("direct generation", "DDDM (T=1000)", 2, 3.53, 0.73, 0.64),
        ("direct generation", "DDDM (T=1000)", 1000, 2.76, 0.75, 0.65),
        ("direct generation", "DDDM-deep (T=1000)", 1, 3.47, 0.71, 0.63),
        ("direct generation", "DDDM-deep (T=1000)", 2, 3.08, 0.74, 0.66),
        ("direct generation", "DDDM-deep (T=1000)", 1000, 2.11, 0.73, 0.67),
      ),
    ),
    _scores("table2", "digits", "1,2,1000", _IMAGENET, "plain", "deep", metrics="frechet,precision,recall"),
  ),
  Entry(
    "figure3",
    "One-step and two-step samples of DDDM-deep on ImageNet-64",
    commands=_samples("figure3", "1,2", _IMAGENET, "deep"),
  ),
  Entry(
    "table3",
    "One-step FID on CIFAR-10 by T, with as many epochs",
    Table(
      ("T", "epochs", "FID, one step"),
      ((1000, 1000, 2.90), (2000, 2000, 2.86), (4000, 4000, 2.83), (8000, 8000, 2.82)),
    ),
    _scores("table3", "T", "1", _CIFAR10, "1000", "2000", "4000", "8000"),
  ),
  Entry(
    "figure4",
    "One-step and two-step samples of DDDM-deep on CIFAR-10",
    commands=_samples("figure4", "1,2", _CIFAR10, "1000-deep"),
  ),
  Entry(
    "figure5",
    "FID by number of iterations at inference, for both data sets and architectures",
    commands=_scores("figure5", "", "1,2,5,10,20,50,100,200,500,1000", _CIFAR10, "1000", "1000-deep"),
  ),
  *_grids(),
)
