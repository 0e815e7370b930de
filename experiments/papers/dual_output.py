"""Yaniv Benny and Lior Wolf, "Dynamic Dual-Output Diffusion Models", CVPR 2022."""

from papers import Entry, Table

TITLE = "Dynamic Dual-Output Diffusion Models"

ENTRIES = (
  Entry("figure1", "Loss by timestep of predicting the noise and of predicting the image, measured on μ, ε and x_0"),
  Entry("figure2", "Pixel mean and variance of the predicted x_0 by timestep, for both paths, on CIFAR-10"),
  Entry("figure3", "Diagram of the model with two outputs and their interpolation"),
  Entry("figure4", "Progressive generation in 5 steps: only ε, only x, dual output; CIFAR-10 and CelebA"),
  Entry("figure5", "Progressive generation in 10 steps, switching between the two outputs part-way, and dual output"),
  Entry("figure6", "Interpolation parameter r by step: mean, range and 16 trajectories; CIFAR-10 and CelebA"),
  Entry("figure7", "CIFAR-10 images of DDIM and ours in 5, 10 and 20 steps, similar ones side by side"),
  Entry(
    "table1",
    "FID on CIFAR-10 and CelebA-64 by number of steps, linear and cosine schedule; unstable where it produced NaNs",
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
        ("CelebA", "linear", "DDPM", 304.89, 278.31, 160.67, 88.74, 43.90),
        ("CelebA", "linear", "DDIM", 56.16, 16.90, 13.38, 8.80, 6.15),
        ("CelebA", "linear", "ours", 26.22, 14.96, 8.74, 5.54, 4.07),
        ("CelebA", "linear", "- fixed r_t", 32.64, 16.19, 8.85, 6.20, 4.44),
        ("CelebA", "linear", "- only ε_θ", 64.82, 27.53, 12.64, 9.03, 8.68),
        ("CelebA", "linear", "- only x_θ", 29.79, 16.03, 9.18, 6.57, 4.23),
      ),
    ),
  ),
  Entry(
    "figure8",
    "ImageNet-128 images from the same noise: only ε, dual output, only x",
    Table(
      ("path", "% of choices in the user study, 25 participants (Section 5's text)"),
      (("only ε_θ", 5), ("dual", 78), ("only x_θ", 17)),
    ),
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
  ),
)
