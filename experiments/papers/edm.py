"""Tero Karras, Miika Aittala, Timo Aila and Samuli Laine, "Elucidating the Design Space of Diffusion-Based Generative
Models", NeurIPS 2022; the tables and figures of the submitted version, without appendices.
"""

from papers import Entry, Given, Table, command

TITLE = "Elucidating the Design Space of Diffusion-Based Generative Models"

_DIGITS = "experiments/results/edm_samplers_digits/README.md"


def _study(name: str, published: str):
  """A study on digits; of the published networks where they are given."""

  def commands(given: Given) -> list[str]:
    if not given.checkpoints:
      return [command("study.py", f"experiments/studies/{name}.py", runs=given.runs, out=f"{given.out}/{name}")]
    if not given.references or not given.inception:
      raise ValueError("--checkpoints needs --references, statistics of the real images, and --inception, its weights")
    study = f"experiments/studies/edm_published.py:{published},{given.checkpoints},{given.references}"
    out = f"{given.out}/published_{published}"
    return [command("study.py", study, runs=given.runs, out=out, inception=given.inception)]

  return commands


def _figure(name: str, given: Given, **flags) -> str:
  return command(f"figures/{name}.py", out=f"{given.out}/{name}", **flags) + " --overwrite"


def _figure1(given: Given) -> list[str]:
  return [_figure("figure1", given, **({"data": "zip", "path": given.data} if given.data else {}))]


def _figure3(given: Given) -> list[str]:
  return [_figure("figure3", given)]


def _figure5a(given: Given) -> list[str]:
  if given.checkpoints:
    if not given.data:
      raise ValueError("--checkpoints needs --data, a zip of the images on which the loss is measured")
    pickle = f"{given.checkpoints}/edm-cifar10-32x32-uncond-vp.pkl"
    return [_figure("figure5", given, checkpoint=pickle, path=given.data)]
  run = f"{given.runs}/edm_digits"
  return [command("train.py", config="configs/edm_digits.py", workdir=run), _figure("figure5", given, workdir=run)]


def _figure5b(given: Given) -> list[str]:
  if given.checkpoints:
    raise ValueError("the trainings that Figure 5b compares were not published; it is made on digits, without them")
  return [*_study("edm_samplers_digits", "")(given), _figure("churn_ideal", given)]


ENTRIES = (
  Entry(
    "figure1",
    "CIFAR-10 images at rising noise levels, and what the ideal denoiser of the data set makes of them",
    commands=_figure1,
    committed="experiments/results/edm_digits/figure1.csv",
  ),
  Entry(
    "table1",
    "Design choices of four model families: sampling, network and preconditioning, training, parameters",
    Table(
      ("design choice", "VP", "VE", "iDDPM+DDIM", "Ours"),
      (
        ("ODE solver", "Euler", "Euler", "Euler", "2nd order Heun"),
        (
          "time steps, i < N",
          "t = 1 + i/(N−1)·(ε_s−1)",
          "t = σ_max²(σ_min²/σ_max²)^(i/(N−1))",
          "u_⌊j0 + (M−1−j0)/(N−1)·i + ½⌋, u_M = 0, u_{j−1} = sqrt((u_j²+1)/max(ᾱ_{j−1}/ᾱ_j, C1) − 1)",
          "σ = (σ_max^(1/ρ) + i/(N−1)·(σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ",
        ),
        ("schedule σ(t)", "sqrt(exp(½β_d t² + β_min t) − 1)", "√t", "t", "t"),
        ("scaling s(t)", "1/sqrt(exp(½β_d t² + β_min t))", "1", "1", "1"),
        ("architecture of F", "DDPM++", "NCSN++", "DDPM", "(any)"),
        ("c_skip(σ)", "1", "1", "1", "σ_d²/(σ²+σ_d²)"),
        ("c_out(σ)", "−σ", "σ", "−σ", "σ·σ_d/√(σ²+σ_d²)"),
        ("c_in(σ)", "1/√(σ²+1)", "1", "1/√(σ²+1)", "1/√(σ²+σ_d²)"),
        ("c_noise(σ)", "(M−1)·σ⁻¹(σ)", "ln(σ/2)", "M−1−argmin_j|u_j−σ|", "ln(σ)/4"),
        (
          "noise distribution",
          "σ⁻¹(σ) ~ U(ε_t, 1)",
          "ln σ ~ U(ln σ_min, ln σ_max)",
          "σ = u_j, j ~ U{0..M−1}",
          "ln σ ~ N(P_mean, P_std²)",
        ),
        ("loss weighting λ(σ)", "1/σ²", "1/σ²", "1/σ² (+ L_vlb in the original)", "(σ²+σ_d²)/(σσ_d)²"),
        (
          "parameters",
          "β_d 19.9, β_min 0.1, ε_s 1e-3, ε_t 1e-5, M 1000",
          "σ_min 0.02, σ_max 100",
          "ᾱ_j = sin²(π/2·j/(M(C2+1))), C1 .001, C2 .008, M 1000, j0 8",
          "σ_min .002, σ_max 80, σ_d .5, ρ 7, P_mean −1.2, P_std 1.2",
        ),
      ),
    ),
    _study("edm_samplers_digits", "figure2"),
    _DIGITS,
  ),
  Entry(
    "figure2",
    "FID by NFE of deterministic samplers: original, reimplemented, with Heun and our steps, with our schedule; RK45",
    Table(
      ("pre-trained model", "data", "NFE needed falls by a factor of (Section 3's text)"),
      (
        ("VP, DDPM++ cont.", "CIFAR-10 unconditional", 7.3),
        ("VE, NCSN++ cont.", "CIFAR-10 unconditional", 300),
        ("iDDPM, ADM (dropout), against DDIM", "ImageNet-64 conditional", 3.2),
      ),
    ),
    _study("edm_samplers_digits", "figure2"),
    _DIGITS,
  ),
  Entry(
    "figure3",
    "ODE solution trajectories of VP, VE and DDIM/ours in 1D, the data two Dirac peaks at ±1",
    commands=_figure3,
    committed="experiments/results/edm_digits/figure3.csv",
  ),
  Entry(
    "figure4",
    "FID by NFE of stochastic samplers: ours, with S_tmin, S_tmax and S_noise on and off, and the original ones",
    Table(
      ("model", "sampler", "FID, ImageNet-64 (Section 4's text)"),
      (
        ("ADM (dropout)", "original", 2.07),
        ("ADM (dropout)", "ours, stochastic", 1.55),
        ("Cascaded diffusion", None, 1.48),
        ("Classifier-free guidance", None, 1.55),
        ("StyleGAN-XL", None, 1.52),
      ),
    ),
    _study("edm_samplers_digits", "figure4"),
    _DIGITS,
  ),
  Entry(
    "table2",
    "FID of training configurations A–F with the deterministic sampler; A on unconditional CIFAR-10 is pre-trained",
    Table(
      (
        "training configuration",
        "CIFAR-10 conditional VP",
        "CIFAR-10 conditional VE",
        "CIFAR-10 unconditional VP",
        "CIFAR-10 unconditional VE",
        "FFHQ-64 VP",
        "FFHQ-64 VE",
        "AFHQv2-64 VP",
        "AFHQv2-64 VE",
      ),
      (
        ("A Baseline", 2.48, 3.11, 3.01, 3.77, 3.39, 25.95, 2.58, 18.52),
        ("B + Adjust hyperparameters", 2.18, 2.48, 2.51, 2.94, 3.13, 22.53, 2.43, 23.12),
        ("C + Redistribute capacity", 2.08, 2.52, 2.31, 2.83, 2.78, 41.62, 2.54, 15.04),
        ("D + Our preconditioning", 2.09, 2.64, 2.29, 3.10, 2.94, 3.39, 2.79, 3.81),
        ("E + Our loss function", 1.88, 1.86, 2.05, 1.99, 2.60, 2.81, 2.29, 2.28),
        ("F + Non-leaky augmentation", 1.79, 1.79, 1.97, 1.98, 2.39, 2.53, 1.96, 2.16),
        ("NFE", 35, 35, 35, 35, 79, 79, 79, 79),
      ),
    ),
    _study("edm_table2_digits", "table2"),
    "experiments/results/edm_table2_digits/README.md",
  ),
  Entry(
    "figure5a",
    "Loss by noise level at the start and end of training, 32² and 64², and the training density",
    commands=_figure5a,
    committed="experiments/results/edm_digits/figure5a.csv",
  ),
  Entry(
    "figure5b",
    "FID by S_churn for the original training setup and ours: stochasticity helps only the former",
    commands=_figure5b,
    committed=_DIGITS,
  ),
)
