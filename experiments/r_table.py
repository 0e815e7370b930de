"""Measures the mean of Dual-Output's r at each t, along walks from noise to image, for sampling with --ratio=mean.

  python experiments/r_table.py --workdir=runs/dual_digits
  python experiments/evaluate.py --workdir=runs/dual_digits --ratio=mean

Writes WORKDIR/r_table.json, in place of what was measured for the same checkpoint before, and prints ten of its rows.
Programs that sample with --ratio=mean measure it themselves where it is missing. With --clip=1 the walks are clipped,
as sampling with --clip=1 is; the file holds both.
"""

import jax
from absl import flags
from tqdm.auto import tqdm

from diffusion_jax import cli
from diffusion_jax.evaluation import r_table, report

_NUM_IMAGES = flags.DEFINE_integer("num_images", r_table.NUM_IMAGES, "Walks.", lower_bound=1)
_POINTS = flags.DEFINE_integer("points", r_table.POINTS, "Steps of a walk, at t = T, …, 2T/n, T/n.", 1)
_CLIP = flags.DEFINE_float("clip", None, "config.sampling.clip; the run's own by default.", lower_bound=0)
model_flags = cli.ModelFlags(published=False, sampling=False)
start_hosts = cli.define_hosts()


def main():
  start_hosts()
  config, method, variables, step, name = model_flags.open(search=False)
  if _CLIP.value is not None:
    config.sampling.clip = _CLIP.value
  with tqdm(unit="step", disable=jax.process_index() != 0, leave=False) as bar:
    table = cli.checked(r_table.measure, config, method, variables, _NUM_IMAGES.value, _POINTS.value, bar.update)
  r_table.save(model_flags.folder(), step, table)
  if jax.process_index() == 0:
    columns = [table[column] for column in ("times", "mean", "low", "high")]
    rows = [[f"{t:g}", *(f"{value:.3f}" for value in values)] for t, *values in zip(*columns)]
    print(report.markdown(["t", "mean r", "least", "largest"], rows[:: -max(len(rows) // 10, 1)]))
    print(f"\nr of {name}, {table['images']} images; all rows in {model_flags.folder() / r_table.FILE}")


if __name__ == "__main__":
  cli.run(main)
