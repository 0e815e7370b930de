"""Anonymous authors, "Data Prediction Denoising Models: The Pupil Outdoes the Master", under double-blind review at an
unnamed venue, about 2023.
"""

from collections.abc import Callable
from pathlib import Path

from papers import Entry, Given, Table, command

TITLE = "Data Prediction Denoising Models: The Pupil Outdoes the Master"


_CIFAR10 = ("configs/dpdm_cifar10.py:uncond", "edm-cifar10-32x32-uncond-vp.pkl")
_IMAGENET = ("configs/dpdm_imagenet64.py", "edm-imagenet-64x64-cond-adm.pkl")
_RESULTS = "experiments/results/dpdm/README.md"


def _study(config: str, teacher: str, measure: Callable[[Given, str, str], list[str]]):
  """Teacher and pupil on digits, over three seeds; where published networks are given, a pupil of one of them.

  Args:
    config: the pupil's, of the published network.
    teacher: the published pickle's name.
    measure: (given, pupil's workdir, teacher's pickle) -> the commands after the training.
  """

  def commands(given: Given) -> list[str]:
    if not given.checkpoints:
      study = "experiments/studies/dpdm_digits.py"
      return [command("study.py", study, runs=given.runs, out=f"{given.out}/dpdm_digits")]
    if not given.data or not given.references or not given.inception:
      raise ValueError("--checkpoints needs --data, a zip, --references, its statistics, and --inception, its weights")
    workdir, pickle = f"{given.runs}/{Path(config.partition(':')[0]).stem}", f"{given.checkpoints}/{teacher}"
    fields = {"config.init_from": pickle, "config.data.path": given.data}
    return [
      command("train.py", config=config, workdir=workdir, **fields),
      *measure(given, workdir, pickle),
    ]

  return commands


def _recovery(given: Given, workdir: str, pickle: str) -> list[str]:
  out = f"{given.out}/dpdm_recovery"
  return [command("recovery.py", workdir=workdir, compare=pickle, inception=given.inception, out=out)]


def _scores(reference: str, nfe: str, teachers: str):
  """The pupil's scores at `nfe` by its sampler, the teacher's at `teachers` by Heun's."""

  def commands(given: Given, workdir: str, pickle: str) -> list[str]:
    files = {"reference": f"{given.references}/{reference}", "inception": given.inception, "num_images": "50000"}
    pupil = command("evaluate.py", workdir=workdir, nfe=nfe, **files, out=f"{given.out}/dpdm_pupil")
    teacher = command("evaluate.py", checkpoint=pickle, nfe=teachers, **files, out=f"{given.out}/dpdm_teacher")
    return [pupil, teacher]

  return commands


def _figure(number: str):
  """A figure of the runs RUNS/edm_digits and RUNS/dpdm_digits, which are trained if they are not there."""

  def commands(given: Given) -> list[str]:
    runs = {"teacher": f"{given.runs}/edm_digits", "pupil": f"{given.runs}/dpdm_digits"}
    return [_train(given), command("figures/dpdm.py", **runs, out=given.out, figures=number) + " --overwrite"]

  return commands


def _train(given: Given) -> str:
  """Trains the runs RUNS/edm_digits and RUNS/dpdm_digits, if they are not there."""
  return command("train.py", **{
    "config": "configs/dpdm_digits.py",
    "workdir": f"{given.runs}/dpdm_digits",
    "init_config": "configs/edm_digits.py",
    "config.init_from": f"{given.runs}/edm_digits",
  })  # fmt: skip


def _table7(given: Given) -> list[str]:
  return [_train(given), command("sigma_min.py", workdir=f"{given.runs}/dpdm_digits", nfe="4,5,6,7,8,9,10,12,14,16,18")]


def _table6(given: Given) -> list[str]:
  config = {"config": "configs/dpdm_digits.py", "only": "update", "out": f"{given.out}/table6"}
  return [command("benchmark.py", **config) + " --overwrite"]


def _table5(given: Given) -> list[str]:
  return [command("figures/divergences.py", out=given.out) + " --overwrite"]


ENTRIES = (
  Entry(
    "table1",
    "Recovery of CIFAR-10 by one denoising: FID of denoised to clean images, by standard deviation of the noise",
    Table(
      ("method", "0.02", "0.05", "0.1", "0.2", "0.5", "0.75", "1.0", "2.0", "5.0", "7.5", "10.0"),
      (
        ("DM (EDM)", 0.40, 1.94, 4.28, 7.90, 15.77, 21.66, 28.46, 61.94, 161.63, 205.44, 229.71),
        ("DPDM (ours)", 0.13, 0.37, 0.65, 1.08, 2.46, 4.40, 7.11, 23.59, 100.86, 155.98, 192.47),
      ),
    ),
    commands=_study(*_CIFAR10, _recovery),
    committed=_RESULTS,
  ),
  Entry(
    "figure1",
    "Few-step samples of DPDM and the diffusion model, ImageNet-64 (conditional) and CIFAR-10",
    commands=_figure("1"),
  ),
  Entry(
    "table2",
    "FID on unconditional CIFAR-10 of multi-step models, in more and in fewer than 10 steps",
    Table(
      ("steps", "method", "NFE", "FID"),
      (
        ("more than 10", "DDPM", 1000, 3.17),
        ("more than 10", "LSGM", 147, 2.10),
        ("more than 10", "PFGM", 110, 2.35),
        ("more than 10", "EDM", 35, 1.97),
        ("more than 10", "DDIM", 15, 12.23),
        ("more than 10", "DPM-solver", 15, 5.13),
        ("more than 10", "UniPC", 15, 5.02),
        ("more than 10", "EDM-ODE", 15, 5.62),
        ("more than 10", "EDM-SDE", 15, 8.94),
        ("more than 10", "SA-Solver", 15, 4.91),
        ("less than 10", "EDM", 10, 15.5),
        ("less than 10", "3-DEIS", 10, 4.17),
        ("less than 10", "UniPC", 8, 5.10),
        ("less than 10", "PD", 8, 3.92),
        ("less than 10", "CD", 8, 2.92),
        ("less than 10", "UniPC", 5, 23.22),
        ("less than 10", "Denoising-Diffusion GAN (T=2)", 2, 4.08),
        ("less than 10", "PD", 2, 5.13),
        ("less than 10", "CT", 2, 5.83),
        ("less than 10", "CD", 2, 2.93),
        ("less than 10", "Denoising-Diffusion GAN (T=1)", 1, 14.6),
        ("less than 10", "DFNO", 1, 4.12),
        ("less than 10", "CT", 1, 8.70),
        ("less than 10", "1-ReFlow (+distill)", 1, 6.18),
        ("less than 10", "2-ReFlow (+distill)", 1, 4.85),
        ("less than 10", "3-ReFlow (+distill)", 1, 5.21),
        ("less than 10", "PD", 1, 8.34),
        ("less than 10", "CD", 1, 3.55),
        ("less than 10", "Diff-Instruct", 1, 4.53),
        ("less than 10", "DPDM (Ours)", 5, 3.85),
        ("less than 10", "DPDM (Ours)", 8, 2.68),
      ),
    ),
    commands=_study(*_CIFAR10, _scores("cifar10-32x32.npz", "5,8", "11,15,35")),
    committed=_RESULTS,
  ),
  Entry(
    "table3",
    "FID on conditional ImageNet-64 of multi-step models, above and below 10 steps; illegible cells are empty",
    Table(
      ("steps", "method", "NFE", "FID"),
      (
        ("more than 10", "ADM", 250, 2.07),
        ("more than 10", "SN-DDIM", 100, 17.53),
        ("more than 10", "EDM-SDE", 79, 2.44),
        ("more than 10", "EDM-SDE", 25, 4.26),
        ("more than 10", "GGDM", 25, 18.4),
        ("more than 10", "EDM-SDE", 15, 8.94),
        ("more than 10", "EDM-ODE", 15, 4.78),
        ("more than 10", "SA-Solver", 15, 3.41),
        ("more than 10", "UniPC", 15, 3.41),
        ("more than 10", "DPM-Solver", 15, None),
        ("less than 10", "EDM-ODE", 10, 24.95),
        ("less than 10", "EDM-ODE", 8, None),
        ("less than 10", "PD", 8, 5.22),
        ("less than 10", "CD", 8, 4.70),
        ("less than 10", "CT", 2, 11.1),
        ("less than 10", "PD", 2, 8.95),
        ("less than 10", "CD", 2, 4.70),
        ("less than 10", "PD", 1, 15.39),
        ("less than 10", "CT", 1, 13.00),
        ("less than 10", "CD", 1, 6.20),
        ("less than 10", "Diff-Instruct", 1, 5.57),
        ("less than 10", "DPDM (Ours)", 5, 3.98),
        ("less than 10", "DPDM (Ours)", 8, 3.66),
      ),
    ),
    commands=_study(*_IMAGENET, _scores("imagenet-64x64.npz", "5,8", "9,11,15")),
  ),
  Entry(
    "table4",
    "FID on CIFAR-10 by NFE: EDM and DPDM",
    Table(
      ("method", "4", "5", "6", "7", "8", "9", "10", "12", "14", "16", "18"),
      (
        ("EDM", 95.25, 68.71, 51.07, 36.59, 28.69, 22.97, 18.98, 13.92, 7.14, 4.52, 3.24),
        ("DPDM (ours)", 7.16, 3.85, 2.77, 2.72, 2.68, None, None, None, None, None, None),
      ),
    ),
    commands=_study(*_CIFAR10, _scores("cifar10-32x32.npz", "4,5,6,7,8,9,10,12,14,16,18", "5,7,9,11,13,15,17")),
    committed=_RESULTS,
  ),
  Entry(
    "table5",
    "Properties of divergences on the two-line example with offset θ",
    Table(
      ("divergence", "distance", "smooth"),
      (
        ("smooth KL (ours)", "∝ θ²", "yes"),
        ("KL", "+∞", "no"),
        ("Wasserstein", "∝ |θ|", "no"),
        ("Jensen-Shannon", "log 2", "no"),
      ),
    ),
    _table5,
  ),
  Entry(
    "figure2",
    "An image at rising noise levels and what the diffusion model's denoiser makes of it, 64×64",
    commands=_figure("2"),
  ),
  Entry("figure3", "Diagram of the sampling algorithm: denoise, add noise, repeat", commands=_figure("3")),
  Entry("figure4", "Clean, noisy and recovered images of DPDM and the diffusion model", commands=_figure("4")),
  Entry(
    "table6",
    "Memory and time of training on CIFAR-10: consistency distillation and DPDM",
    Table(
      ("model", "peak GPU memory, GB", "peak CPU memory, GB", "seconds per K iterations"),
      (("CD", 9.55, 2.75, 0.0489), ("DPDM", 10.40, 2.78, 0.0728)),
    ),
    commands=_table6,
    committed=_RESULTS,
  ),
  Entry(
    "figure5",
    "CIFAR-10 samples of DPDM in 7, 6, 5 and 4 steps",
    Table(
      ("label", "steps", "FID (printed under the images)"),
      (
        ("DPDM 7 steps", 7, 2.68),
        ("DPDM 6 steps", 6, 2.77),
        ("DPDM 5 steps", 5, 3.82),
        ("DM 4 steps", 4, 7.12),
      ),
    ),
    _figure("5"),
  ),
  Entry(
    "figure6",
    "CIFAR-10 samples at 7 NFE of DPDM and the diffusion model, each with either one's sampler",
    commands=_figure("6"),
  ),
  Entry(
    "table7",
    "σ_min of the sampling algorithm by NFE",
    Table(
      ("NFE", "4", "5", "6", "7", "8", "9", "10", "12", "14", "16", "18"),
      (("σ_min", 0.3, 0.2, 0.1, 0.015, 0.0035, 0.00055, 0.0001, 0.0001, 0.0001, 0.0001, 0.0001),),
    ),
    _table7,
  ),
  Entry(
    "table8",
    "Hyper-parameters of training the auxiliary diffusion model s_φ and DPDM's d_θ",
    Table(
      (
        "hyper-parameter",
        "CIFAR-10 unconditional, s_φ",
        "CIFAR-10 unconditional, d_θ",
        "ImageNet-64, s_φ",
        "ImageNet-64, d_θ",
        "CIFAR-10 conditional, s_φ",
        "CIFAR-10 conditional, d_θ",
      ),
      (
        ("learning rate", 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5),
        ("batch size", 128, 128, 96, 96, 128, 128),
        ("Adam β_0", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        ("Adam β_1", 0.99, 0.99, 0.99, 0.99, 0.99, 0.99),
        ("training iterations", "100k", "100k", "50k", "50k", "100k", "100k"),
        ("number of GPUs", 4, 4, 8, 8, 4, 4),
      ),
    ),
  ),
)
