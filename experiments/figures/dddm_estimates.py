"""What DDDM runs make of their estimates: in training, by epoch; and trained, at t = T, where samplers stay.

  python experiments/figures/dddm_estimates.py --workdirs=runs/written,runs/refreshed --out=results/dddm/estimates

OUT/epochs.png and .csv have the mean distance a pixel of x̄_0, and of what the network makes of it, to the image, over
training. OUT/last.png and .csv have the root mean square distance to the image of f(x̄_0, x_T, T), when x̄_0 is the image
with noise of a known level: a network that copies x̄_0 lies on the diagonal, one that does without it on a level line.
The last row, "noise", is x̄_0 ~ N(0, I), which a sampler starts from.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import outputs, plt, write
from etils import epath

from diffusion_jax import cli, sampling
from diffusion_jax.data import sources
from diffusion_jax.training import checkpoint
from diffusion_jax.types import normal

_WORKDIRS = flags.DEFINE_list("workdirs", None, "Folders of the runs.")
LEVELS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # standard deviations of the noise in x̄_0
NUM_IMAGES = 256


def by_epoch(folder: epath.Path, config) -> list[list]:
  """Rows (epoch, mean |x̄_0 − x_0|, mean |f − x_0|) of a run's log."""
  path, count = folder / "metrics.jsonl", config.dddm.num_examples or len(sources.from_config(config))
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  epoch = lambda line: line["step"] * config.train.batch_size / count
  return [[epoch(line), line["previous_error"], line["estimate_error"]] for line in lines]


def at_the_end(folder: epath.Path, config) -> list[list]:
  """Rows (level of the noise in x̄_0, RMS of x̄_0 − x_0, RMS of f(x̄_0, x_T, T) − x_0), the last for x̄_0 ~ N(0, I)."""
  method, variables = checkpoint.load_for_inference(folder, config=config)
  source = sources.from_config(config)
  found = source.gather(np.arange(NUM_IMAGES) * len(source) // NUM_IMAGES)
  x0, t = jnp.asarray(sampling.in_range(found["image"])), jnp.float32(method.process.num_steps)
  keys = sampling.keys_of(np.arange(NUM_IMAGES))
  eps, noise = normal(keys, 0, x0.shape[1:]), normal(keys, 1, x0.shape[1:])
  cond = {"label": jnp.asarray(found["label"])} if config.data.num_classes else {}
  f = jax.jit(lambda previous: method.denoise(variables, method.process.perturb(x0, eps, t), t, cond | previous).clean)
  rms = lambda x: float(jnp.sqrt(jnp.mean((x - x0) ** 2)))
  given = [(level, x0 + level * noise) for level in LEVELS] + [("noise", noise)]
  return [[level, rms(previous), rms(f({"previous": previous}))] for level, previous in given]


def main():
  if not _WORKDIRS.value:
    raise cli.UsageError("--workdirs is missing: folders of runs of method dddm")
  for name in ("epochs", "last"):
    outputs(name)
  epochs, last = [], []
  for workdir in _WORKDIRS.value:
    config = cli.checked(checkpoint.read_config, workdir)
    if config.method != "dddm":
      raise cli.UsageError(f"--workdirs={workdir}: a run of method {config.method}, not of dddm")
    folder = epath.Path(workdir)
    epochs += [[folder.name, *row] for row in by_epoch(folder, config)]
    last += [[folder.name, *row] for row in cli.checked(at_the_end, folder, config)]
  draw(epochs, last)


def draw(epochs: list[list], last: list[list]):
  """Writes both figures."""
  figure, axis = plt.subplots(figsize=(6, 4))
  for i, name in enumerate(dict.fromkeys(row[0] for row in epochs)):
    x, previous, estimate = np.array([row[1:] for row in epochs if row[0] == name]).T
    axis.plot(x, previous, f"C{i}--")
    axis.plot(x, estimate, f"C{i}", label=name)
  axis.set(xlabel="epoch", ylabel="mean |x̄_0 − x_0| (dashed), |f − x_0|", ylim=(0, None))
  axis.legend(fontsize=7)
  write(figure, ["run", "epoch", "previous_error", "estimate_error"], epochs, "epochs")
  figure, axis = plt.subplots(figsize=(5, 4))
  for name in dict.fromkeys(row[0] for row in last):
    axis.plot(*np.array([row[2:] for row in last if row[0] == name and row[1] != "noise"]).T, marker="o", label=name)
  axis.plot([0, LEVELS[-1]], [0, LEVELS[-1]], "k:", linewidth=1)
  axis.set(xlabel="RMS of x̄_0 − x_0", ylabel="RMS of f(x̄_0, x_T, T) − x_0")
  axis.legend(fontsize=7)
  write(figure, ["run", "noise", "rms_previous", "rms_estimate"], last, "last")


if __name__ == "__main__":
  cli.run(main)
