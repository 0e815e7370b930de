"""Dual-Output's Figures 1 to 8: the noise head, the image head, and both by r, of one run.

  python experiments/figures/dual_output.py --workdir=runs/dual_digits --out=results/dual_output
  python experiments/figures/dual_output.py --workdir=runs/dual_photos --out=FOLDER --figures=4,5 --seeds=3,7,12

The figures, each OUT/figureN.png with OUT/figureN.csv:

  1  error of both heads by t, measured on μ, ε and x_0, on the run's data
  2  pixel mean and variance of the predicted x_0 by t
  3  what the network makes of noisy images of the data, and the mix of it (the paper has a diagram)
  4  the predicted x_0 step by step, in 5 steps: only ε, only x, dual output
  5  the same in 10 steps, by the image head first and by the noise head from some step on, as the paper's text has it
     (its caption says the reverse)
  6  r by t: mean, range, 16 images
  7  DDIM's images and ours in 5, 10 and 20 steps
  8  images of the three paths from the same noise, in 25 steps

All are sampled by DDIM. Images of a seed start from the same noise, and with classes have the class of the seed modulo
their number. Figure 7's DDIM is the noise head of the run, or, with --ddim, that of a run which was trained on noise
alone (--config.dual.heads=eps), as in the paper; where the paper shows the most similar of 100 images, images here have
the same seed. Pictures are clipped to the range of the data, numbers in CSVs are not.
"""

import dual_curves
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import outputs, plt, write
from dual_curves import COLORS, PATHS, Run, grid_of, name_of, setting, walk

from diffusion_jax import cli, sampling
from diffusion_jax import parameterization as par
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.types import normal

_FIGURES = flags.DEFINE_list("figures", [*"12345678"], "Which of the figures.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 128, "Images of figures 1, 2 and 6.", lower_bound=1)
_POINTS = flags.DEFINE_integer("points", 100, "Times t of Figure 1.", lower_bound=2)
_STEPS = flags.DEFINE_list("steps", None, "Sampling steps, of Figure 7 several; those above, and 100 of 2 and 6.")
_SEEDS = flags.DEFINE_string("seeds", None, "Seeds of the images shown in figures 4 to 8, such as 0-9,20.")
_DDIM = flags.DEFINE_string("ddim", None, "Folder of a run trained on noise alone, for Figure 7.")
model_flags = cli.ModelFlags(published=False, sampling=False)

STEPS = {"2": "100", "4": "5", "5": "10", "6": "100", "7": "5,10,20", "8": "25"}
SEEDS = {"4": "0-3", "5": "0-1", "6": "0-15", "7": "0-19", "8": "0-9"}
SHARES = (0.05, 0.25, 0.5, 0.75, 1.0)  # of T, the times of Figure 3
ROW = 10  # tiles in a row of Figures 7 and 8


def open_run(model: cli.Model, flag: str, path) -> Run:
  """The run of a model that the user gave by a flag; a UsageError where it is not of dual_output."""
  if model.config.method != "dual_output":
    raise cli.UsageError(f"{flag}={path}: a run of method {model.config.method}; these are figures of dual_output")
  return dual_curves.open_run(model)


def steps_of(number: str) -> list[int]:
  """--steps for a figure, or its own."""
  texts = _STEPS.value or STEPS[number].split(",")
  if not all(text.isdigit() and int(text) for text in texts) or (len(texts) > 1 and number != "7"):
    expected = "positive whole numbers" if number == "7" else "one positive whole number"
    raise cli.UsageError(f"--steps={','.join(texts)}: expected {expected} for Figure {number}")
  return [int(text) for text in texts]


def seeds_of(number: str) -> np.ndarray:
  return np.array(cli.seeds(_SEEDS.value or SEEDS[number]))


def frame(axes, row: int, column: int, tiles: tuple[int, int], color: str):
  """A coloured frame around one of the tiles (rows, columns) that `images_lib.draw` has drawn."""
  height, width = (np.array(axes.images[0].get_array().shape[:2]) + 1) / tiles
  corner = column * width + 0.5, row * height + 0.5  # between the tile and its neighbours'
  axes.add_patch(plt.Rectangle(corner, width - 3, height - 3, fill=False, edgecolor=color, linewidth=1.2))


def progress(run: Run, settings: dict, seeds) -> tuple[dict[str, np.ndarray], list[str], list[list]]:
  """{name: the predicted x_0 at each step [n, B, H, W, C]} of the settings' walks; the header and rows of their CSV."""
  clean, rows = {}, []
  for name, config in settings.items():
    steps = list(walk(run, config, seeds))
    clean[name], last = np.stack([step.clean for step in steps]), steps[-1].clean
    for step in steps:
      numbers = np.mean(step.clean, dtype=np.float64), np.var(step.clean, dtype=np.float64), rms(step.clean, last)
      rows.append([name, step.number, step.t, *numbers])
  return clean, ["path", "step", "t", "mean", "variance", "rms_to_last"], rows


def figure3(run: Run):
  config, chain, count = run.model.config, run.model.method.process, len(SHARES)
  x0, cond = dual_curves.drawn(config, count)  # another image at each t
  eps = normal(sampling.keys_of(np.arange(count)), 0, x0.shape[1:])
  t = jnp.round(jnp.float32(SHARES) * chain.num_steps)
  x = chain.perturb(x0, eps, t)
  out = run.heads(x, t, cond)
  r = jax.nn.sigmoid(out["r"])
  by_eps, by_both = (par.dual(chain, out["eps"], out["x"], out["r"], x, t, ratio).clean for ratio in (0.0, None))
  trust = jnp.broadcast_to(2 * r - 1, x0.shape)
  tiles = [x0, x, out["eps"] / 2, by_eps, out["x"], trust, by_both]
  below = ["$x_0$", "$x_t$", "$ε_θ$ / 2", "$x_0$ by $ε_θ$", "$x_θ$", "$r_θ$", "$x_0$ by both"]
  figure, axes = images_lib.figure(1, 1, (count, len(tiles)), config.data.resolution)
  left, title = [f"t = {float(now):g}" for now in t], f"{name_of(run)}; $r_θ$: 0 is black, only ε; 1 is white, only x"
  images_lib.draw(axes[0, 0], [[tile[i] for tile in tiles] for i in range(count)], title, left, below)
  errors = [[rms(image[i], x0[i]) for image in (by_eps, out["x"], by_both)] for i in range(count)]
  rows = [[float(t[i]), float(jnp.mean(r[i])), rms(out["eps"][i], eps[i]), *errors[i]] for i in range(count)]
  return figure, ["t", "r", "rms_eps", "rms_x0_by_eps", "rms_x0_by_x", "rms_x0_by_both"], rows


def figure4(run: Run):
  (steps,), seeds = steps_of("4"), seeds_of("4")
  clean, *table = progress(run, {path: setting(run, steps, ratio) for path, ratio in PATHS.items()}, seeds)
  columns = 1 + (len(seeds) > 1)
  rows, resolution = -(-len(seeds) // columns), run.model.config.data.resolution
  figure, axes = images_lib.figure(rows, columns, (3, steps), resolution, above=0.5)
  below = [f"t = {t:g}" for t in grid_of(run, steps)[:-1]]
  for i, panel in enumerate(axes.flat):
    if i < len(seeds):
      left = list(clean) if i % columns == 0 else ()
      images_lib.draw(panel, [images[:, i] for images in clean.values()], f"seed {seeds[i]}", left, below)
    else:
      panel.set_axis_off()
  return titled(figure, f"{name_of(run)}: predicted $x_0$ in {steps} steps of DDIM"), *table


def figure5(run: Run):
  (steps,), seeds = steps_of("5"), seeds_of("5")
  switches = {"only ε": 0}  # how many steps each row takes by x_θ, before those by ε_θ
  switches |= {f"x, then ε from step {k + 1}": k for k in range(0, steps, max(1, steps // 5)) if k}
  settings = {name: setting(run, steps, **({"switch": k} if k else {"ratio": "0"})) for name, k in switches.items()}
  switches["only x"] = steps
  settings |= {"only x": setting(run, steps, "1"), "dual": setting(run, steps)}
  clean, *table = progress(run, settings, seeds)
  tiles = len(clean), steps
  figure, axes = images_lib.figure(1, len(seeds), tiles, run.model.config.data.resolution)
  below = [f"t = {t:g}" for t in grid_of(run, steps)[:-1]]
  for i, (seed, panel) in enumerate(zip(seeds, axes[0])):
    rows, left = [images[:, i] for images in clean.values()], list(clean) if i == 0 else ()
    images_lib.draw(panel, rows, f"seed {seed}", left, below)
    for row, switch in enumerate(switches.values()):
      for column in range(steps):
        frame(panel, row, column, tiles, COLORS["only x" if column < switch else "only ε"])
  title = f"{name_of(run)}: predicted $x_0$ in {steps} steps of DDIM; blue by $x_θ$, red by $ε_θ$"
  return titled(figure, title), *table


def titled(figure, title: str):
  """The figure with a title above its panels' own."""
  height = figure.get_size_inches()[1]
  figure.suptitle(title, y=1 + 0.3 / height, va="bottom", fontsize=10)
  return figure


def drawn_by(run: Run, steps: int, path: str, seeds) -> np.ndarray:
  return sampling.generate(setting(run, steps, PATHS[path]), run.model.method, run.model.variables, seeds)


def rms(a, b) -> float:
  return float(np.sqrt(np.mean((np.asarray(a, np.float64) - b) ** 2)))


def figure7(run: Run):
  all_steps, seeds, other = steps_of("7"), seeds_of("7"), run
  if _DDIM.value:
    other = open_run(cli.open_run(_DDIM.value, "--ddim"), "--ddim", _DDIM.value)
    ours, theirs = ((c.data.name, c.data.resolution, c.dual.process) for c in (run.model.config, other.model.config))
    if ours != theirs:
      raise cli.UsageError(f"--ddim={_DDIM.value}: of {theirs}; --workdir is of {ours}")
  width = min(ROW, len(seeds))
  blocks = [seeds[i : i + width] for i in range(0, len(seeds), width)]
  shape = 2 * len(blocks), width
  figure, axes = images_lib.figure(len(all_steps), 1, shape, run.model.config.data.resolution)
  rows = []
  for panel, steps in zip(axes[:, 0], all_steps):
    ddim, ours = drawn_by(other, steps, "only ε", seeds), drawn_by(run, steps, "dual", seeds)
    blank = np.ones((len(blocks) * width - len(seeds), *ours.shape[1:]), np.float32)
    filled = [np.concatenate([images, blank]) for images in (ddim, ours)]
    tiles = [images[i * width :][:width] for i in range(len(blocks)) for images in filled]
    images_lib.draw(panel, tiles, f"{steps} steps", ["DDIM", "ours"] * len(blocks))
    rows += [[steps, int(seed), rms(a, b)] for seed, a, b in zip(seeds, ddim, ours)]
  who = "a network trained on noise alone" if _DDIM.value else "the noise head"
  return titled(figure, f"{name_of(run)}: DDIM ({who}) and dual output"), ["steps", "seed", "rms_difference"], rows


def figure8(run: Run):
  (steps,), seeds = steps_of("8"), seeds_of("8")
  images = {path: drawn_by(run, steps, path, seeds) for path in ("only ε", "dual", "only x")}
  figure, axes = images_lib.figure(1, 1, (3, len(seeds)), run.model.config.data.resolution)
  below = [f"seed {seed}" for seed in seeds]
  images_lib.draw(axes[0, 0], list(images.values()), f"{name_of(run)}: {steps} steps of DDIM", list(images), below)
  rows = []
  for path, drawn in images.items():
    rows += [[path, int(seed), rms(a, 0), rms(a, b)] for seed, a, b in zip(seeds, drawn, images["dual"])]
  return figure, ["path", "seed", "rms", "rms_to_dual"], rows


def _figure1(run: Run):
  return dual_curves.figure1(run, _NUM_IMAGES.value, _POINTS.value)


def _figure2(run: Run):
  return dual_curves.figure2(run, _NUM_IMAGES.value, *steps_of("2"))


def _figure6(run: Run):
  return dual_curves.figure6(run, _NUM_IMAGES.value, *steps_of("6"), seeds_of("6"))


FIGURES = {
  "1": _figure1, "2": _figure2, "3": figure3, "4": figure4, "5": figure5, "6": _figure6, "7": figure7, "8": figure8,
}  # fmt: skip


def main():
  numbers = list(dict.fromkeys(_FIGURES.value))
  if not numbers or not set(numbers) <= set(FIGURES):
    raise cli.UsageError(f"--figures={','.join(_FIGURES.value)}: expected some of {', '.join(FIGURES)}")
  for number in numbers:
    outputs(f"figure{number}")
    if number in STEPS:
      steps_of(number)
    if number in SEEDS:
      seeds_of(number)
  run = open_run(model_flags.open(search=False), "--workdir", model_flags.folder())
  if run.model.config.dual.heads != "dual":
    raise cli.UsageError(f"--workdir={model_flags.folder()}: trained on noise alone; these are figures of all heads")
  for number in numbers:
    write(*FIGURES[number](run), f"figure{number}")


if __name__ == "__main__":
  cli.run(main)
