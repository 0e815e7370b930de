"""Scores of a run's checkpoints against their steps: does training stay good?

  python experiments/figures/over_training.py --workdir=RUN --sigma_min=0.2 --blocks=1 --num_images=1000 \\
    --out=experiments/results/dpdm/over_training

All checkpoints that the run kept (config.train.keep_every) are scored with one sampler, that of the flags. DPDM's σ_min
is not searched here, so that all have the same. Scores are kept in RUN/evaluation/scores.jsonl.
"""

import functools

import common
import jax
from absl import flags
from common import plt
from etils import epath
from tqdm.auto import tqdm

from diffusion_jax import cli, methods
from diffusion_jax import config as config_lib
from diffusion_jax.evaluation import bench, report
from diffusion_jax.evaluation.records import Records
from diffusion_jax.training import checkpoint
from diffusion_jax.training.state import inference_variables

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_EVERY = flags.DEFINE_integer("every", 1, "Only checkpoints whose step is a multiple of this.")
with_sampler_flags = cli.define_sampler()
score_flags = cli.ScoreFlags()


def main():
  if not _WORKDIR.value:
    raise cli.UsageError("--workdir is missing: the folder of a run")
  if _EVERY.value < 1:
    raise cli.UsageError(f"--every={_EVERY.value}: at least 1")
  common.outputs()
  folder = epath.Path(_WORKDIR.value)
  config = with_sampler_flags(checkpoint.read_config(folder))
  config.sampling.sigma_min_search = False
  config_lib.check(config)
  method = methods.from_config(config)  # one for all checkpoints: one compilation
  config_lib.choose("sampling.sampler", config.sampling.sampler, method.samplers)
  steps = [step for step in checkpoint.steps_of(checkpoint.folder_of(folder)) if step % _EVERY.value == 0]
  if not steps:
    raise cli.UsageError(f"--workdir={folder}: no checkpoint of a multiple of {_EVERY.value} steps")
  data = config.data
  scorers = score_flags.scorers(config, (data.resolution, data.resolution, data.channels))
  num_images, blocks = score_flags.protocol(scorers)
  records = Records(folder / "evaluation" / "scores.jsonl")
  found = {}
  with tqdm(total=len(steps) * blocks * num_images, unit="img", disable=jax.process_index() != 0) as bar:
    for step in steps:
      take = functools.partial(averages, method, folder, step)
      provenance = {"name": folder.name, "step": step, "sha256": checkpoint.fingerprint(folder, step)}
      subject = bench.of_model(provenance, config, take)
      scores = cli.checked(bench.score, subject, scorers, records, num_images, blocks, progress=bar.update)
      found[step] = bench.summary(scores)
  write(found, f"{config.sampling.sampler}, NFE {scores[0]['nfe']}")


def averages(method, folder, step: int) -> tuple:
  """(method, variables) of a checkpoint."""
  return method, inference_variables(checkpoint.load_averages(folder, step)[0])


def write(found: dict[int, dict], sampler: str):
  """A panel a metric, and its means by step; found is {step: `bench.summary`}."""
  keys = list(next(iter(found.values())))
  figure, axes = plt.subplots(1, len(keys), figsize=(4 * len(keys), 3.2), squeeze=False)
  for axis, key in zip(axes[0], keys):
    means = [stats[key]["mean"] for stats in found.values()]
    spreads = [stats[key]["std"] for stats in found.values()]
    axis.errorbar(list(found), means, spreads, marker="o", markersize=3)
    axis.set(title=report.title(*key), xlabel="steps", ylim=(0, None))
    axis.grid(alpha=0.3)
  figure.suptitle(sampler)
  figure.tight_layout()
  rows = [[step, *(stats[key]["mean"] for key in keys)] for step, stats in found.items()]
  common.write(figure, ["steps", *(report.title(*key) for key in keys)], rows)


if __name__ == "__main__":
  cli.run(main)
