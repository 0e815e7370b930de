"""Figure 3 of Decoupled Diffusion Models: error of the estimated x_0 by time, for DDPM, DDPM with an x_0 head, and DDM.

  python experiments/figures/ddm_error.py --out=results/decoupled --run=DDPM=runs/dual_digits_eps \\
    --run="DDPM + x_0=runs/dual_digits" --run=DDM=runs/ddm_digits

--run=NAME=WORKDIR, once a run: of method dual_output, whose t = 1..T is shown as t/T, or of method decoupled, all of
the same data. A run of dual_output with all heads has two curves, of its image head ("NAME, by x_θ") and of the mix of
both ("NAME, mixed"); each samples by its own estimate.

OUT/figure3.png with OUT/figure3.csv, mean squared errors a pixel of three kinds:

  left    the paper's panel: x̂_0 at each step of sampling against the image that this walk ends with; walks of --steps
          uniform steps by DDPM's ancestral sampler, or by Algorithm 2, from seeds 0, 1, …
  middle  x̂_0 against x_0 for images of the data, noised once to t by the run's own process
  right   the same by noise level σ/α, the noise of the image scaled to size 1 (of attenuations that are not constant
          α = 1 − t): at t = .4 it is 2.03 for DDPM's linear chain and 1.05 for the decoupled process

OUT/figure3_images.png has the estimates of --seeds at the step next to --time, .4 in the paper, above the images that
they end as, and OUT/figure3_images.csv the error of each. Estimates are neither clipped nor refitted, but in pictures.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import outputs, plt, write
from dual_curves import drawn

from diffusion_jax import cli, sampling
from diffusion_jax import config as config_lib
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.process import Decoupled, Discrete
from diffusion_jax.types import normal

_RUNS = flags.DEFINE_multi_string("run", [], "NAME=WORKDIR of a run of dual_output or decoupled; once a run.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 128, "Walks, and images of the data.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 100, "Steps of a walk; the paper's have 1000.", lower_bound=1)
_POINTS = flags.DEFINE_integer("points", 50, "Times at which images of the data are noised.", lower_bound=2)
_TIME = flags.DEFINE_float("time", 0.4, "Of the estimates shown, in [0, 1].", lower_bound=0.0, upper_bound=1.0)
_SEEDS = flags.DEFINE_string("seeds", "0-9", "Seeds of the images shown: numbers and ranges.")

BATCH = 32  # images at a time; a walk keeps the states of all its steps
SAMPLERS = {"dual_output": ("ddpm", "respaced"), "decoupled": ("decoupled", "decoupled")}


class Curve(NamedTuple):
  """A way to estimate x_0: a run, with one of its paths.

  Attributes:
    name: in legends.
    model: the run.
    config: its config, with the sampling of its walks.
    estimate: (x [B, H, W, C], t, cond) -> x̂_0 [B, H, W, C], compiled.
  """

  name: str
  model: cli.Model
  config: object
  estimate: object

  @property
  def last(self) -> float:
    """The t that is shown as 1."""
    process = self.model.method.process
    return process.num_steps if isinstance(process, Discrete) else 1.0

  def times(self) -> np.ndarray:
    """t of its walk's steps, [n + 1]."""
    return sampling.schedule_of(self.config.sampling, self.model.method)[1]

  def noise_level(self, t: float) -> float:
    process = self.model.method.process
    return float((process if isinstance(process, Discrete) else Decoupled()).noise_level(jnp.float32(t)))

  def cond(self, label) -> dict:
    ratio = sampling.ratio_of(self.config.sampling, self.model.method)
    return {name: value for name, value in (("label", label), ("ratio", ratio)) if value is not None}


def curves_of(name: str, path: str) -> list[Curve]:
  """The curves of a run; a UsageError where it has none, a ConfigError where it has no such walk."""
  model = cli.open_run(path, "--run")
  config, method, variables = model[:3]
  if config.method not in SAMPLERS:
    expected = f"expected one of {', '.join(SAMPLERS)}"
    raise cli.UsageError(f"--run={name}={path}: a run of method {config.method}; {expected}")
  paths = {name: "learned"}
  if config.method == "dual_output" and config.dual.heads == "dual":
    paths = {f"{name}, by x_θ": "1", f"{name}, mixed": "learned"}
  estimate = jax.jit(lambda x, t, cond: method.process.decode(method.denoise(variables, x, t, cond).clean))
  curves = []
  for title, ratio in paths.items():
    own = config.copy_and_resolve_references()
    own.sampling.update(config_lib.default().sampling)
    sampler, grid = SAMPLERS[config.method]
    own.sampling.update(sampler=sampler, grid=grid, num_steps=_STEPS.value, ratio=ratio)
    config_lib.check(own)
    curves.append(Curve(title, model, own, estimate))
    curves[-1].times()  # or there is no such grid
  return curves


def walk(curve: Curve, seeds) -> np.ndarray:
  """x̂_0 at all steps of the walks of seeds [B], and the images they end with: [n + 1, B, H, W, C]."""
  parts = [_walk(curve, np.resize(seeds[i : i + BATCH], BATCH)) for i in range(0, len(seeds), BATCH)]  # one size
  return np.concatenate(parts, axis=1)[:, : len(seeds)]


def _walk(curve: Curve, seeds) -> np.ndarray:
  data, grid = curve.config.data, curve.times()
  cond = curve.cond(sampling.default_labels(curve.config, seeds))
  keys, shape = sampling.keys_of(seeds), (data.resolution, data.resolution, data.channels)
  method, variables, sampler = curve.model.method, curve.model.variables, curve.config.sampling.sampler
  images, states = sampling.sample(
    method, variables, keys, shape, grid, sampler, cond.get("label"), trajectory=True, ratio=cond.get("ratio")
  )
  estimates = [curve.estimate(x, jnp.float32(t), cond) for x, t in zip(states, grid[:-1])]
  return np.stack([*estimates, images])


def along_walks(curve: Curve) -> list[list]:
  """Rows of the left panel."""
  sums, grid = 0.0, curve.times()
  for start in range(0, _NUM_IMAGES.value, BATCH):
    found = walk(curve, np.arange(start, min(start + BATCH, _NUM_IMAGES.value)))
    sums = sums + np.sum((found - found[-1]) ** 2, axis=(1, 2, 3, 4), dtype=np.float64)
  errors = sums / _NUM_IMAGES.value / found[0, 0].size
  return [row(curve, "walk", t, error) for t, error in zip(grid, errors)]


def on_data(curve: Curve) -> list[list]:
  """Rows of the middle and right panel."""
  process, (x0, cond) = curve.model.method.process, drawn(curve.config, _NUM_IMAGES.value)
  keys = sampling.keys_of(np.arange(len(x0)))
  batch = x0, process.encode(keys, x0), normal(keys, 0, x0.shape[1:]), cond.get("label")  # the same at every t
  part = lambda start: jax.tree.map(lambda array: array[start : start + BATCH], batch)
  parts, rows = [part(start) for start in range(0, len(x0), BATCH)], []
  shares = np.arange(1, _POINTS.value + 1) / _POINTS.value
  for t in np.maximum(np.round(shares * curve.last), 1) if curve.last > 1 else shares:
    total = 0.0
    for x0_part, clean, eps, label in parts:
      found = curve.estimate(process.perturb(clean, eps, jnp.float32(t)), jnp.float32(t), curve.cond(label))
      total += np.sum((np.asarray(found, np.float64) - x0_part) ** 2)
    rows.append(row(curve, "data", t, total / x0.size))
  return rows


def row(curve: Curve, kind: str, t: float, error: float) -> list:
  return [curve.name, kind, float(t / curve.last), curve.noise_level(t), _NUM_IMAGES.value, float(error)]


def draw_curves(curves: list[Curve]):
  rows = [line for curve in curves for line in (*along_walks(curve), *on_data(curve))]
  figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
  panels = (("walk", 2, f"to the walk's last image, {_STEPS.value} steps"), ("data", 2, "to $x_0$, images of the data"),
            ("data", 3, "to $x_0$, images of the data"))  # fmt: skip
  for axis, (kind, column, title) in zip(axes, panels):
    for curve in curves:
      own = [line for line in rows if line[:2] == [curve.name, kind] and line[5] > 0]  # a walk ends at 0
      axis.plot([line[column] for line in own], [line[5] for line in own], label=curve.name, linewidth=1.3)
    axis.set(title=f"error of the estimated $x_0$\n{title}", yscale="log", xlabel="t")
    axis.grid(alpha=0.3)
    axis.invert_xaxis()  # as sampling goes
  axes[2].set(xlabel="noise level σ/α", xscale="log", xlim=(1e2, 1e-2))
  axes[0].set_ylabel("mean squared error a pixel")
  axes[0].legend(fontsize=8)
  data = curves[0].config.data
  figure.suptitle(f"{data.name}, {_NUM_IMAGES.value} images", y=1.04)
  return figure, ["curve", "against", "t", "noise_level", "images", "mse"], rows


def draw_images(curves: list[Curve], seeds):
  tiles, left, rows = [], [], []
  for curve in curves:
    times = curve.times()[:-1]
    step = int(np.argmin(np.abs(times / curve.last - _TIME.value)))
    found, t = walk(curve, seeds), float(times[step] / curve.last)
    tiles += [found[step], found[-1]]
    left += [f"{curve.name}, t = {t:g}", "and its image"]
    errors = np.mean((found[step] - found[-1]) ** 2, axis=(1, 2, 3), dtype=np.float64)
    rows += [[curve.name, int(seed), t, float(error)] for seed, error in zip(seeds, errors)]
  figure, axes = images_lib.figure(1, 1, (len(tiles), len(seeds)), curves[0].config.data.resolution)
  title = f"{curves[0].config.data.name}: estimated $x_0$ in {_STEPS.value} steps"
  images_lib.draw(axes[0, 0], tiles, title, left, [f"seed {seed}" for seed in seeds])
  return figure, ["curve", "seed", "t", "mse"], rows


def main():
  seeds, names = np.array(cli.seeds(_SEEDS.value)), ("figure3", "figure3_images")
  runs = dict.fromkeys(_RUNS.value)
  for text in runs:
    name, _, path = text.partition("=")
    if not name or not path:
      raise cli.UsageError(f"--run={text}: expected NAME=WORKDIR")
    runs[text] = name, path
  if not runs:
    raise cli.UsageError("--run is missing: NAME=WORKDIR of a run, once a run")
  for name in names:
    outputs(name)
  curves = [curve for name, path in runs.values() for curve in curves_of(name, path)]
  if len({curve.name for curve in curves}) < len(curves):
    raise cli.UsageError(f"--run: two curves have one name: {', '.join(curve.name for curve in curves)}")
  for curve in curves:
    theirs, ours = ((c.data.name, c.data.path, c.data.resolution) for c in (curve.config, curves[0].config))
    if theirs != ours:
      raise cli.UsageError(f"--run={curve.name}: of {theirs}; {curves[0].name} is of {ours}")
  write(*draw_curves(curves), names[0])
  write(*draw_images(curves, seeds), names[1])


if __name__ == "__main__":
  cli.run(main)
