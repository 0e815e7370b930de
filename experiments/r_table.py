"""Measures the mean of Dual-Output's r at each t on a run's data, for sampling with --ratio=mean.

  python experiments/r_table.py --workdir=runs/dual_digits
  python experiments/evaluate.py --workdir=runs/dual_digits --ratio=mean

Writes WORKDIR/r_table.json, in place of what was measured for the same checkpoint before, and prints ten of its rows.
Programs that sample with --ratio=mean measure it themselves where it is missing.
"""

import jax
from absl import flags
from tqdm.auto import tqdm

from diffusion_jax import cli
from diffusion_jax.evaluation import r_table, report

_NUM_IMAGES = flags.DEFINE_integer("num_images", r_table.NUM_IMAGES, "Images of the data.", lower_bound=1)
_POINTS = flags.DEFINE_integer("points", r_table.POINTS, "Times t = T/n, 2T/n, …, T at which r is measured.", 1)
model_flags = cli.ModelFlags(published=False, sampling=False)
start_hosts = cli.define_hosts()


def main():
  start_hosts()
  config, _, variables, step, name = model_flags.open(search=False)
  with tqdm(total=_POINTS.value, unit="t", disable=jax.process_index() != 0, leave=False) as bar:
    table = cli.checked(r_table.measure, config, variables, _NUM_IMAGES.value, _POINTS.value, bar.update)
  r_table.save(model_flags.folder(), step, table)
  if jax.process_index() == 0:
    columns = [table[column] for column in ("times", "mean", "low", "high")]
    rows = [[f"{t:g}", *(f"{value:.3f}" for value in values)] for t, *values in zip(*columns)]
    print(report.markdown(["t", "mean r", "least", "largest"], rows[:: -max(len(rows) // 10, 1)]))
    print(f"\nr of {name}, {table['images']} images; all rows in {model_flags.folder() / r_table.FILE}")


if __name__ == "__main__":
  cli.run(main)
