"""Yuhang Huang, Zheng Qin, Xinwang Liu and Kai Xu, "Decoupled Diffusion Models: Image to Zero and Zero to Noise",
preprint, 2023.
"""

from papers import Entry, Given, Table, command

TITLE = "Decoupled Diffusion Models: Image to Zero and Zero to Noise"

_TABLE5 = tuple(
  f"constant decoupled.{field}" for field in ("weight=ones", "weight=exponential", "decoder=branch", "loss=l1")
)
_TASKS = ("saliency_scenes", "superres_photos", "inpaint_photos")  # ddm_TASK.py, of data that come with the library


def _train(given: Given, config: str, run: str, **fields: str) -> str:
  """Trains RUNS/run if it is not there; configs of CIFAR-10 on the data that are given."""
  fields = {f"config.{name}": value for name, value in fields.items()}
  data = {"config.data.path": given.data} if "cifar10" in config else {}
  return command("train.py", config=f"configs/{config}", workdir=f"{given.runs}/{run}", **fields, **data)


def _pair(given: Given, data: str) -> list[str]:
  """Trains DDM and DDPM of the same data, into RUNS/ddm_DATA and RUNS/dual_DATA_eps."""
  ddpm = _train(given, f"dual_{data}.py:linear", f"dual_{data}_eps", **{"dual.heads": "eps"})
  return [_train(given, f"ddm_{data}.py:constant", f"ddm_{data}"), ddpm]


def _small(given: Given) -> str:
  """CIFAR-10 where it is given, else digits."""
  return "cifar10" if given.data else "digits"


def _study(given: Given, study: str) -> list[str]:
  """A study of decoupled diffusion, FILE:ROW, into OUT/ROW."""
  out = f"{given.out}/{study.partition(':')[2]}"
  return [command("study.py", f"experiments/studies/{study}", runs=given.runs, out=out)]


def _task_studies(given: Given) -> list[str]:
  """Tables 2 and 3: each task on built-in data."""
  rows = ("saliency", "superres", "inpaint")
  return [words for row in rows for words in _study(given, f"decoupled_tasks.py:{row}")]


def _evaluated(nfe: str, *rows: str):
  """A table of DDM on CIFAR-10 by rows of its config, on real data where they are given; else the study on digits."""

  def commands(given: Given) -> list[str]:
    if not given.data:
      return _study(given, "decoupled.py:table5" if len(rows) > 1 and _TABLE5[0] in rows else "decoupled.py:digits")
    if not given.references or not given.inception:
      raise ValueError("--data needs --references, statistics of the real images, and --inception, its weights")
    files = {"reference": f"{given.references}/cifar10-32x32.npz", "inception": given.inception}
    files |= {"metrics": "frechet", "num_images": "50000", "blocks": "1", "nfe": nfe}
    made = []
    for row in rows:
      attenuation, _, field = row.partition(" ")
      run = "_".join(["ddm_cifar10", *([attenuation] * (attenuation != "constant")), *field.split("=")[1:]])
      fields = dict([field.split("=")]) if field else {}
      made.append(_train(given, f"ddm_cifar10.py:{attenuation}", run, **fields))
      made.append(command("evaluate.py", workdir=f"{given.runs}/{run}", **files, out=f"{given.out}/{run}"))
    return made

  return commands


def _tasks(nfe: str, *tasks: str):
  """Scores of tasks on held-out conditions, and pictures of condition, result and truth."""

  def commands(given: Given) -> list[str]:
    made = []
    for task in tasks:
      run = f"ddm_{task}"
      made.append(_train(given, f"ddm_{task}.py:ddm", run))
      files = {"workdir": f"{given.runs}/{run}", "split": "test", "nfe": nfe}
      made.append(command("evaluate.py", **files, out=f"{given.out}/{run}"))
    return made

  return commands


def _samples(given: Given, data: str, ddpm: bool = False) -> list[str]:
  """Images of DDM in 10 steps, with `ddpm` also DDPM's from the same seeds."""
  made = _pair(given, data)[: 1 + ddpm]
  names = {f"ddm_{data}": {}, f"dual_{data}_eps": {"sampler": "ddpm"}} if ddpm else {f"ddm_{data}": {}}
  for run, flags in names.items():
    flags = {"workdir": f"{given.runs}/{run}", **flags, "num_steps": "10", "seeds": "0-63"}
    made.append(command("sample.py", **flags, out=f"{given.out}/samples_{run}") + " --overwrite")
  return made


def _figure1(given: Given) -> list[str]:
  return [*_samples(given, _small(given)), *_samples(given, "photos"), *_tasks("5", *_TASKS)(given)]


def _figure3(given: Given) -> list[str]:
  data = _small(given)
  names = {"DDPM": f"dual_{data}_eps", "DDPM + x_0": f"dual_{data}", "DDM": f"ddm_{data}"}
  runs = [f"--run={name}={given.runs}/{run}" for name, run in names.items()]
  trained = [*_pair(given, data), _train(given, f"dual_{data}.py:linear", f"dual_{data}")]
  return [*trained, command("figures/ddm_error.py", *runs, out=given.out) + " --overwrite"]


def _grid_of_small(ddpm: bool = False):
  return lambda given: _samples(given, _small(given), ddpm)


def _grid_of_photos(ddpm: bool = False):
  """Photographs stand for CelebA-HQ-256."""
  return lambda given: _samples(given, "photos", ddpm)

ENTRIES = (
  Entry(
    "figure1",
    "Samples: CIFAR-10, CelebA-HQ-256 in 10 steps; saliency, inpainting, super-resolution in 5",
    commands=_figure1,
  ),
  Entry("figure2", "Diagram of the decoupled process beside DDPM's, with the equations of both"),
  Entry(
    "figure3",
    "Error of the estimated x_0 by time on CIFAR-10: DDPM, DDPM that also predicts x_0, DDM; images",
    commands=_figure3,
  ),
  Entry(
    "table1",
    "FID on CIFAR-10 and CelebA-HQ-256 by NFE beside other diffusion models; ± as printed, at 10, 20 and 50",
    Table(
      ("data", "method", "parameters", "10", "± at 10", "20", "± at 20", "50", "± at 50", "1000", "2000"),
      (
        ("CIFAR-10", "DDPM", "143M", 296.84, None, 140.68, None, 38.36, None, 3.17, None),
        ("CIFAR-10", "SDE", "103M", 425.67, None, 250.29, None, 101.43, None, 2.39, 2.20),
        ("CIFAR-10", "LSGM", "470M", 27.64, None, 11.69, None, 5.19, None, 2.19, None),
        ("CIFAR-10", "CLD", "103M", 415.36, None, 162.44, None, 52.70, None, 2.27, 2.23),
        ("CIFAR-10", "DDM (ours)", "175M", 13.92, 0.054, 8.92, 0.036, 5.09, 0.028, 2.40, 2.19),
        ("CelebA-HQ-256", "SDE", "62M", 430.84, None, 210.54, None, 78.98, None, 7.25, None),
        ("CelebA-HQ-256", "LSGM", "470M", 27.53, None, 14.39, None, 13.85, None, 7.23, None),
        ("CelebA-HQ-256", "CLD", "103M", 355.15, None, 179.85, None, 64.77, None, 8.06, None),
        ("CelebA-HQ-256", "DDM (ours)", "190M", 27.45, 0.287, 14.37, 0.125, 11.72, 0.103, 7.10, None),
      ),
    ),
    _evaluated("10,20,50,1000,2000", "constant"),
  ),
  Entry("figure4", "CelebA-HQ-256 samples at 10 NFE: SDE, CLD, LSGM, DDM", commands=_grid_of_photos(ddpm=True)),
  Entry(
    "table2",
    "Saliency detection (DUTS, MAE), super-resolution (DIV2K, PSNR), inpainting (CelebA-HQ, FID), beside other methods",
    Table(
      ("task", "method", "metric", "value"),
      (
        ("saliency detection", "Liu et al. (2023)", "MAE", 0.026),
        ("saliency detection", "Yun & Lin (2022)", "MAE", 0.026),
        ("saliency detection", "Lee et al. (2022)", "MAE", 0.028),
        ("saliency detection", "Lee et al. (2022)", "MAE", 0.022),
        ("saliency detection", "DDPM-5 step", "MAE", 0.497),
        ("saliency detection", "DDPM-10 step", "MAE", 0.473),
        ("saliency detection", "DDM-5 step (Ours)", "MAE", 0.026),
        ("saliency detection", "DDM-10 step (Ours)", "MAE", 0.025),
        ("super-resolution", "Ma et al. (2020)", "PSNR", 26.71),
        ("super-resolution", "Gao et al. (2023)", "PSNR", 27.10),
        ("super-resolution", "Park et al. (2022)", "PSNR", 27.51),
        ("super-resolution", "Park et al. (2023)", "PSNR", 27.69),
        ("super-resolution", "DDPM-5 step", "PSNR", 9.13),
        ("super-resolution", "DDPM-10 step", "PSNR", 12.46),
        ("super-resolution", "DDM-5 step (Ours)", "PSNR", 27.61),
        ("super-resolution", "DDM-10 step (Ours)", "PSNR", 28.30),
        ("image inpainting", "Zhao et al. (2021)", "FID", 19.4),
        ("image inpainting", "Zeng et al. (2022)", "FID", 7.28),
        ("image inpainting", "Suvorov et al. (2022)", "FID", 6.13),
        ("image inpainting", "Jeevan et al. (2023)", "FID", 5.59),
        ("image inpainting", "DDPM-5 step", "FID", 114),
        ("image inpainting", "DDPM-10 step", "FID", 95.8),
        ("image inpainting", "DDM-5 step (Ours)", "FID", 5.53),
        ("image inpainting", "DDM-10 step (Ours)", "FID", 5.25),
      ),
    ),
    _task_studies,
  ),
  Entry(
    "table3",
    "The three conditional tasks by NFE: DDPM and DDM",
    Table(
      ("task", "metric", "method", "10", "20", "50", "100"),
      (
        ("saliency detection", "MAE", "DDPM", 0.4731, 0.3846, 0.3059, 0.1985),
        ("saliency detection", "MAE", "DDM", 0.0253, 0.0251, 0.0252, 0.0250),
        ("super-resolution", "PSNR", "DDPM", 12.46, 13.58, 14.29, 15.91),
        ("super-resolution", "PSNR", "DDM", 28.30, 28.29, 28.35, 28.33),
        ("image inpainting", "FID", "DDPM", 95.8, 89.9, 71.6, 64.3),
        ("image inpainting", "FID", "DDM", 5.25, 5.19, 5.15, 5.15),
      ),
    ),
    _task_studies,
  ),
  Entry(
    "table4",
    "FID on CIFAR-10 by NFE for five choices of h_t",
    Table(
      ("h_t", "10", "50", "1000"),
      (
        ("c", 13.92, 5.09, 2.40),
        ("at + c", 15.17, 9.69, 3.15),
        ("at² + bt + c", 22.43, 11.05, 4.59),
        ("e^{at} + c", 28.15, 12.15, 5.33),
        ("sin(at)", 58.94, 30.46, None),
      ),
    ),
    _evaluated("10,50,1000", "constant", "linear", "quadratic", "exponential", "sine"),
  ),
  Entry(
    "table5",
    "10-step FID on CIFAR-10 by loss weights, architecture, and loss type",
    Table(
      ("analysis", "choice", "λ1", "λ2", "FID, 10 steps"),
      (
        ("hyperparameter", None, "1", "1", 14.24),
        ("hyperparameter", None, "1/t", "1/(1−t)", 13.92),
        ("hyperparameter", None, "e^t", "e^{1−t}", 13.95),
        ("architecture", "U-Net+conv", None, None, 15.13),
        ("architecture", "U-Net+decoder", None, None, 13.92),
        ("loss type", "ℓ1", None, None, 14.98),
        ("loss type", "ℓ2", None, None, 13.92),
      ),
    ),
    _evaluated("10", "constant", *_TABLE5),
  ),
  Entry("figure5", "Diagram of the architecture: U-Net with two decoders, and the conditional branch"),
  Entry(
    "table6",
    "Hyper-parameters of the trained models",
    Table(
      (
        "hyper-parameter",
        "unconditional, CIFAR-10",
        "unconditional, CelebA-HQ-256",
        "inpainting",
        "super-resolution",
        "saliency detection",
      ),
      (
        ("image size", "32×32", "256×256", "256×256", "512×512", "384×384"),
        ("batch size", 128, 48, 48, 12, 16),
        ("learning rate", "1e-4~1e-5", "5e-5~5e-6", "4e-5~4e-6", "5e-5~5e-6", "5e-5~5e-6"),
        ("iterations", "800k", "800k", "400k", "400k", "400k"),
        ("feature channels", 192, 96, 96, 128, 128),
        ("channel multiplier", "1, 2, 2, 2", "1, 2, 3, 4", "1, 2, 4, 8", "1, 2, 4, 4", "1, 2, 4, 4"),
        ("number of blocks", 3, 3, 2, 2, 2),
        ("smallest time step", 1e-4, 1e-4, 1e-4, 1e-4, 1e-4),
      ),
    ),
  ),
  Entry("figure6", "CIFAR-10 samples in 10 steps: DDM and other diffusion models", commands=_grid_of_small(ddpm=True)),
  Entry(
    "figure7",
    "CelebA-HQ-256 samples in 10 steps: DDM and other diffusion models",
    commands=_grid_of_photos(ddpm=True),
  ),
  Entry("figure8", "CIFAR-10 samples of DDM in 10 steps", commands=_grid_of_small()),
  Entry("figure9", "CelebA-HQ-256 samples of DDM in 10 steps", commands=_grid_of_photos()),
  Entry(
    "figure10",
    "Inpainted images in 10 steps, by elimination: our copy of the paper lacks this caption",
    commands=_tasks("10", "inpaint_photos"),
  ),
  Entry("figure11", "Super-resolved images in 10 steps", commands=_tasks("10", "superres_photos")),
  Entry("figure12", "Saliency maps in 10 steps", commands=_tasks("10", "saliency_scenes")),
)
