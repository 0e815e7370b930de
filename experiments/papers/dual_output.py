"""Yaniv Benny and Lior Wolf, "Dynamic Dual-Output Diffusion Models", CVPR 2022."""

from papers import Entry, Given, Table, command, real, train

TITLE = "Dynamic Dual-Output Diffusion Models"

_RESULTS = "experiments/results/dual_output/README.md"
_PATHS = {"dual": {}, "only_eps": {"ratio": "0"}, "only_x": {"ratio": "1"}}


def _trained(given: Given, config: str) -> list[str]:
  """Trains a network, and its baseline of the noise alone, into `_run_of` the config and that name with _eps."""
  run = _run_of(config)
  return [train(given, config, run), train(given, config, f"{run}_eps", **{"dual.heads": "eps"})]


def _run_of(config: str) -> str:
  """dual_digits of dual_digits.py:linear, dual_cifar10_cosine of dual_cifar10.py:cosine."""
  return config.replace(".py", "").removesuffix(":linear").replace(":", "_")


def _figure(number: str, config: str = "dual_cifar10.py:linear", baseline: bool = False):
  """A figure of a run on digits, or of `config` where its data are given; trained if it is not there."""

  def commands(given: Given) -> list[str]:
    chosen = config if given.data else "dual_digits.py:linear"
    trainings, run = _trained(given, chosen)[: 1 + baseline], _run_of(chosen)
    flags = {"workdir": f"{given.runs}/{run}", "out": given.out, "figures": number}
    if baseline:
      flags["ddim"] = f"{given.runs}/{run}_eps"
    return [*trainings, command("figures/dual_output.py", **flags) + " --overwrite"]

  return commands


def _table1(reference: str, *configs: str):
  """The study on digits; where data are given, each network by its paths, and the baseline by DDPM and DDIM."""

  def commands(given: Given) -> list[str]:
    if not given.data:
      study = "experiments/studies/dual_output.py:digits"
      return [command("study.py", study, runs=given.runs, out=f"{given.out}/digits")]
    files, made = {"nfe": "5,10,20,50,100", **real(given, reference)}, []
    for config in configs:
      run, made = _run_of(config), [*made, *_trained(given, config)]
      rows = {**_PATHS, "mean": {"ratio": "mean"}, "dual_ddpm": {"sampler": "ddpm"}}
      rows = {name: (run, flags) for name, flags in rows.items()}
      rows |= {name: (f"{run}_eps", {"sampler": name}) for name in ("ddim", "ddpm")}
      for name, (workdir, flags) in rows.items():
        if flags.get("sampler") == "ddpm" and config.endswith(":cosine"):
          flags = {**flags, "variance": "learned"}  # iDDPM's
        flags = {"workdir": f"{given.runs}/{workdir}", **flags, **files, "out": f"{given.out}/table1_{run}_{name}"}
        made.append(command("evaluate.py", **flags))
    return made

  return commands


def _table2(given: Given) -> list[str]:
  """The three paths without and with a classifier's guidance, on digits or, from ADM's encoder, on ImageNet-128."""
  name, row = ("imagenet128", "") if given.data else ("digits", ":linear")
  run, classifier = f"dual_{name}", f"classifier_{name}"
  files = {"metrics": "frechet,precision,recall", "nfe": "25,50"}
  files |= real(given, "imagenet-128x128.npz") if given.data else {}
  encoder = {"init_from": f"{given.checkpoints}/128x128_diffusion.pt", "init_only": "('net/enc_*','net/map_*')"}
  encoder = encoder if given.data and given.checkpoints else {}
  made = [train(given, f"dual_{name}.py{row}", run, **encoder), train(given, f"{classifier}.py{row}", classifier)]
  for guided, guide in (("", {}), ("_guided", {"classifier": f"{given.runs}/{classifier}", "classifier_scale": "1"})):
    for path, flags in _PATHS.items():
      out = f"{given.out}/table2_{name}_{path}{guided}"
      made.append(command("evaluate.py", workdir=f"{given.runs}/{run}", **flags, **guide, **files, out=out))
  return made


ENTRIES = (
  Entry(
    "figure1",
    "Loss by timestep of predicting the noise and of predicting the image, measured on μ, ε and x_0",
    commands=_figure("1"),
  ),
  Entry(
    "figure2",
    "Pixel mean and variance of the predicted x_0 by timestep, for both paths, on CIFAR-10",
    commands=_figure("2"),
  ),
  Entry("figure3", "Diagram of the model with two outputs and their interpolation", commands=_figure("3")),
  Entry(
    "figure4",
    "Progressive generation in 5 steps: only ε, only x, dual output; CIFAR-10 and CelebA",
    commands=_figure("4"),
  ),
  Entry(
    "figure5",
    "Progressive generation in 10 steps, switching between the two outputs part-way, and dual output",
    commands=_figure("5"),
  ),
  Entry(
    "figure6",
    "Interpolation parameter r by step: mean, range and 16 trajectories; CIFAR-10 and CelebA",
    commands=_figure("6"),
  ),
  Entry(
    "figure7",
    "CIFAR-10 images of DDIM and ours in 5, 10 and 20 steps, similar ones side by side",
    commands=_figure("7", baseline=True),
  ),
  Entry(
    "table1",
    "FID on CIFAR-10 by number of steps, linear and cosine schedule; unstable where it produced NaNs",
    Table(
      ("data", "schedule", "method", "5", "10", "20", "50", "100"),
      (
        ("CIFAR-10", "linear", "DDPM", 196.54, 160.18, 145.45, 65.43, 32.65),
        ("CIFAR-10", "linear", "DDIM", 49.70, 18.57, 10.87, 7.03, 5.57),
        ("CIFAR-10", "linear", "ours", 35.12, 11.68, 8.62, 6.68, 5.54),
        ("CIFAR-10", "linear", "- fixed r_t", 38.50, 12.08, 8.71, 6.89, 5.57),
        ("CIFAR-10", "linear", "- only ε_θ", 41.99, 12.30, 8.74, 7.11, 6.01),
        ("CIFAR-10", "linear", "- only x_θ", 45.53, 24.27, 16.93, 12.47, 7.39),
        ("CIFAR-10", "cosine", "IDDPM", "unstable", 29.10, 13.33, 5.73, 4.58),
        ("CIFAR-10", "cosine", "IDDIM", "unstable", 38.14, 19.68, 8.98, 6.29),
        ("CIFAR-10", "cosine", "ours", "unstable", 18.25, 12.54, 5.59, 5.10),
        ("CIFAR-10", "cosine", "- fixed r_t", "unstable", 19.60, 13.93, 7.24, 6.17),
        ("CIFAR-10", "cosine", "- only ε_θ", "unstable", 36.78, 17.08, 8.85, 6.72),
        ("CIFAR-10", "cosine", "- only x_θ", 45.75, 19.75, 13.21, 7.13, 5.93),
      ),
    ),
    _table1("cifar10-32x32.npz", "dual_cifar10.py:linear", "dual_cifar10.py:cosine"),
    _RESULTS,
  ),
  Entry(
    "table1b",
    "Table 1's rows of CelebA-64",
    Table(
      ("data", "schedule", "method", "5", "10", "20", "50", "100"),
      (
        ("CelebA", "linear", "DDPM", 304.89, 278.31, 160.67, 88.74, 43.90),
        ("CelebA", "linear", "DDIM", 56.16, 16.90, 13.38, 8.80, 6.15),
        ("CelebA", "linear", "ours", 26.22, 14.96, 8.74, 5.54, 4.07),
        ("CelebA", "linear", "- fixed r_t", 32.64, 16.19, 8.85, 6.20, 4.44),
        ("CelebA", "linear", "- only ε_θ", 64.82, 27.53, 12.64, 9.03, 8.68),
        ("CelebA", "linear", "- only x_θ", 29.79, 16.03, 9.18, 6.57, 4.23),
      ),
    ),
    _table1("celeba-64x64.npz", "dual_celeba64.py"),
    _RESULTS,
  ),
  Entry(
    "figure8",
    "ImageNet-128 images from the same noise: only ε, dual output, only x",
    Table(
      ("path", "% of choices in the user study, 25 participants (Section 5's text)"),
      (("only ε_θ", 5), ("dual", 78), ("only x_θ", 17)),
    ),
    _figure("8", "dual_imagenet128.py"),
  ),
  Entry(
    "table2",
    "FID, precision and recall on ImageNet-128 in 25 and 50 steps, without and with classifier guidance",
    Table(
      (
        "guidance",
        "method",
        "training iterations",
        "FID, 25 steps",
        "precision, 25 steps",
        "recall, 25 steps",
        "FID, 50 steps",
        "precision, 50 steps",
        "recall, 50 steps",
      ),
      (
        ("none", "ADM", "4.36M", 11.7, 0.92, 0.14, 7.6, 0.92, 0.21),
        ("none", "dual", "80K, ADM's encoder", 27.7, 0.90, 0.11, 25.3, 0.89, 0.15),
        ("none", "- only ε_θ", "80K, ADM's encoder", 51.3, 0.89, 0.08, 49.1, 0.86, 0.09),
        ("none", "- only x_θ", "80K, ADM's encoder", 29.5, 0.90, 0.08, 27.4, 0.88, 0.12),
        ("classifier, scale 1.0", "ADM", "4.36M", 10.2, 0.95, 0.09, 7.1, 0.96, 0.16),
        ("classifier, scale 1.0", "dual", "80K, ADM's encoder", 24.5, 0.94, 0.08, 22.1, 0.92, 0.12),
        ("classifier, scale 1.0", "- only ε_θ", "80K, ADM's encoder", 44.1, 0.93, 0.07, 36.8, 0.89, 0.07),
        ("classifier, scale 1.0", "- only x_θ", "80K, ADM's encoder", 26.0, 0.93, 0.07, 24.7, 0.90, 0.10),
      ),
    ),
    _table2,
  ),
)
