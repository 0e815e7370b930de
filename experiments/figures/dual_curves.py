"""Dual-Output's figures that are curves: 1, 2 and 6, and the walks from noise to image along which they are measured.

An error of one head is an exact multiple of an error of another quantity (losses.py, equations 8 and 9). With
e = ε_θ − ε, d = x_θ − x_0, n = σ/α and a_t = √ᾱ_{t−1}·β_t/(1 − ᾱ_t),

                  μ          ε        x_0
    by ε_θ     −a·n·e        e       −n·e                                               (1)
    by x_θ       a·d       −d/n        d                                                (2)

and by both, the mean of the two with weights 1 − r and r. These are the paper's eq. 12 and 13 less eq. 8.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import plt

from diffusion_jax import cli, sampling
from diffusion_jax import config as config_lib
from diffusion_jax.data import sources
from diffusion_jax.evaluation import walks
from diffusion_jax.methods import batches, dual_output
from diffusion_jax.types import normal

BATCH = 64  # images at a time
NUM_REAL = 2_000  # images of the data's mean and variance
PATHS = {"only ε": "0", "only x": "1", "dual": "learned"}  # config.sampling.ratio
ALONG = "t (sampling goes from left to right)"
COLORS = {"only ε": "tab:red", "only x": "tab:blue", "dual": "tab:green", "data": "black"}


class Run(NamedTuple):
  """A run, and its network compiled once for all figures.

  Attributes:
    model: the run.
    heads: (x [B, H, W, C], t, cond) -> what the network says, see `dual_output.Heads`.
    step: of `walks.stepper`.
  """

  model: cli.Model
  heads: Callable
  step: Callable


def open_run(model: cli.Model) -> Run:
  """The run of a model of dual_output."""
  config, method, variables = model[:3]
  heads = functools.partial(dual_output.heads_from_config(config), variables)
  return Run(model, jax.jit(heads), walks.stepper(_unclipped(config), method, variables))


def _unclipped(config):
  """The run's config with the default sampling."""
  config = config.copy_and_resolve_references()
  config.sampling.update(config_lib.default().sampling)
  return config


def name_of(run: Run) -> str:
  """Of the data and the chain, for titles."""
  config = run.model.config
  return f"{config.data.name}, {config.dual.process} chain, T = {run.model.method.process.num_steps}"


def setting(run: Run, steps: int, ratio: str = "learned", switch: int = 0):
  """The run's config with DDIM in so many steps of the chain.

  Args:
    run: whose config.
    steps: of the grid "respaced".
    ratio: of config.sampling, one of `PATHS`.
    switch: of config.sampling: this many steps by the image head, the others by the noise head.

  Raises:
    ConfigError: the chain has no such grid.
  """
  config = _unclipped(run.model.config)
  config.sampling.update(sampler="ddim", grid="respaced", num_steps=steps, ratio=ratio, switch=switch)
  config_lib.check(config)
  return config


def walk(run: Run, config, seeds) -> Iterator[walks.Step]:
  """`walks.walk` of the run by a config of `setting`."""
  return walks.walk(config, run.model.method, run.step, seeds)


def grid_of(run: Run, steps: int) -> np.ndarray:
  """The times of so many steps, [steps + 1], the last of which is 0."""
  return sampling.schedule_of(setting(run, steps).sampling, run.model.method)[1]


def drawn(config, num_images: int) -> tuple[jax.Array, dict]:
  """Images [N, H, W, C] of a run's data at random, and their cond."""
  source = sources.from_config(config)
  batch = source.gather(np.random.default_rng(0).permutation(len(source))[:num_images])
  images = batches.images_of({"image": jnp.asarray(batch["image"])}, None, False)
  return images, {"label": jnp.asarray(batch["label"])} if config.data.num_classes else {}


def figure1(run: Run, num_images: int, points: int):
  """Errors of both heads and of their mix, by t, measured on μ, on ε and on x_0, equations (1) and (2)."""
  chain = run.model.method.process
  x0, cond = drawn(run.model.config, num_images)
  eps = normal(sampling.keys_of(np.arange(len(x0))), 0, x0.shape[1:])  # the same at every t

  @jax.jit
  def squares(batch, t):
    """Sums over images and pixels of the squares of e, of d, and of the error of x_0 by both."""
    x0, eps, cond = batch
    out = run.heads(chain.perturb(x0, eps, t), t, cond)
    e, d = out["eps"] - eps, out["x"] - x0
    both = jax.nn.sigmoid(out["r"]) * d - jax.nn.sigmoid(-out["r"]) * chain.noise_level(t) * e
    return jnp.stack([jnp.sum(error**2) for error in (e, d, both)])

  part = lambda start: jax.tree.map(lambda array: array[start : start + BATCH], (x0, eps, cond))
  parts = [part(start) for start in range(0, len(x0), BATCH)]
  alpha_bars, rows = np.append(1.0, chain.alpha_bars()), []
  for t in np.unique(np.round(np.linspace(1, chain.num_steps, points))).astype(int):
    sums = np.array([squares(batch, jnp.float32(t)) for batch in parts], np.float64)
    e, d, both = np.sum(sums, axis=0) / x0.size
    now, before = alpha_bars[t], alpha_bars[t - 1]
    n, a = np.sqrt((1 - now) / now), np.sqrt(before) * (1 - now / before) / (1 - now)
    clean = np.array([n**2 * e, d, both])
    rows.append([int(t), n, len(x0), *(a**2 * clean), e, *(clean[1:] / n**2), *clean])
  figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
  table = np.array(rows, np.float64)
  for i, (axis, of) in enumerate(zip(axes, ("$\\tilde{μ}_t$", "ε", "$x_0$"))):
    for j, (path, title) in enumerate(zip(PATHS, ("by $ε_θ$", "by $x_θ$", "by both, mixed by $r_θ$"))):
      style = {"linestyle": "--", "linewidth": 1.2} if path == "dual" else {}
      axis.plot(table[:, 0], table[:, 3 + 3 * i + j], color=COLORS[path], label=title, **style)
    axis.set(title=f"({'abc'[i]}) loss on {of}", xlabel="t", yscale="log")
    axis.set_ylabel("mean squared error a pixel" if i == 0 else "")
    axis.grid(alpha=0.3)
  axes[0].legend()
  figure.suptitle(f"{name_of(run)}; {len(x0)} images", y=1.02)
  header = [f"{of}_by_{path}" for of in ("mu", "eps", "x0") for path in ("eps", "x", "both")]
  return figure, ["t", "noise_level", "images", *header], rows


def figure2(run: Run, num_images: int, steps: int):
  """Mean and variance over all pixels of the predicted x_0, by t, each path along walks of its own."""
  rows = []
  for path, ratio in PATHS.items():
    sums, count = np.zeros((steps, 2)), 0
    for start in range(0, num_images, BATCH):
      seeds = np.arange(start, min(start + BATCH, num_images))
      for step in walk(run, setting(run, steps, ratio), seeds):
        clean = step.clean.astype(np.float64)
        sums[step.number - 1] += clean.sum(), (clean**2).sum()
      count += clean.size
    mean, square = sums.T / count
    values = zip(grid_of(run, steps), mean, square - mean**2)
    rows += [[path, i, float(t), num_images, *pair] for i, (t, *pair) in enumerate(values, 1)]
  real, _ = drawn(run.model.config, NUM_REAL)
  rows.append(["data", None, None, len(real), float(np.mean(real)), float(np.var(real))])
  figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
  for column, (axis, what) in enumerate(zip(axes, ("mean", "variance")), 4):
    for path in PATHS:
      own = [row for row in rows if row[0] == path]
      style = {"linestyle": "--", "linewidth": 1.2} if path == "dual" else {}
      axis.plot([row[2] for row in own], [row[column] for row in own], color=COLORS[path], label=path, **style)
    axis.axhline(rows[-1][column], color=COLORS["data"], linewidth=1, label="data")
    axis.set(title=f"pixel {what} of the predicted $x_0$", xlabel=ALONG)
    axis.invert_xaxis()
    axis.grid(alpha=0.3)
  if max(abs(row[4]) for row in rows) > 10:  # the noise path's, where ᾱ is small
    axes[0].set_yscale("symlog", linthresh=1.0)
  axes[1].set_yscale("log")
  axes[1].legend()
  figure.suptitle(f"{name_of(run)}; {num_images} images by DDIM in {steps} steps", y=1.02)
  return figure, ["path", "step", "t", "images", "mean", "variance"], rows


def figure6(run: Run, num_images: int, steps: int, shown):
  """r by t along dual-output walks: its mean and range over images, and the walks of the seeds `shown`.

  r of an image is the mean over its pixels; the range over single pixels is in the CSV alone.
  """
  seeds = np.union1d(np.arange(num_images), shown)
  means, lows, highs = np.empty((3, steps, len(seeds)))
  for start in range(0, len(seeds), BATCH):
    columns = slice(start, start + BATCH)
    for step in walk(run, setting(run, steps), seeds[columns]):
      r = step.r.reshape(len(step.r), -1).astype(np.float64)
      row = step.number - 1, columns
      means[row], lows[row], highs[row] = r.mean(1), r.min(1), r.max(1)
  times, walks = grid_of(run, steps)[:-1], means[:, np.searchsorted(seeds, shown)]
  columns = [means.mean(1), means.min(1), means.max(1), lows.min(1), highs.max(1)]
  figure, axis = plt.subplots(figsize=(6.5, 4))
  axis.fill_between(times, columns[1], columns[2], color="0.85", label=f"range of {len(seeds)} images")
  lines = axis.plot(times, walks, color=COLORS["only x"], linewidth=0.6, alpha=0.7)
  lines[0].set_label(f"{len(shown)} of these images")
  axis.plot(times, columns[0], color="black", linewidth=2, label="mean")
  axis.set(xlabel=ALONG, ylabel="$r_θ$, mean over pixels (1: only x, 0: only ε)", ylim=(-0.02, 1.02))
  axis.invert_xaxis()
  axis.grid(alpha=0.3)
  axis.legend(fontsize=8)
  axis.set_title(f"{name_of(run)}; DDIM in {steps} steps", fontsize=10)
  header = ["step", "t", "images", "mean", "low", "high", "low_of_pixels", "high_of_pixels"]
  found = zip(times, *columns, *walks.T)
  rows = [[i, float(t), len(seeds), *values] for i, (t, *values) in enumerate(found, 1)]
  return figure, [*header, *(f"seed{i}" for i in shown)], rows
