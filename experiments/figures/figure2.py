"""EDM's Figure 2 on digits: score against network evaluations for the deterministic samplers, one panel a training.

  for c in vp ve iddpm edm; do for s in 0 1 2; do python experiments/train.py --config.seed=$s \\
    --config=configs/ablations/table1_digits.py:$c --workdir=runs/table1/${c}_$s; done; done
  python experiments/figures/figure2.py --runs=runs/table1 --out=experiments/results/edm_digits/figure2

Lines as in the paper: the original (Euler on the column's grid and process); Heun on EDM's grid; and with
σ(t) = t, s(t) = 1. For EDM's own training: Euler and Heun, ρ from 3 to 10. Mean and standard deviation over the seeds
that are there; every score is kept in its workdir, so the program may be stopped and started again.
"""

from absl import flags
from common import Scores, draw_lines, mean_and_spread, outputs, plt, seeds_of, write

from diffusion_jax import cli

_RUNS = flags.DEFINE_string("runs", "runs/table1", "Folder of the runs vp_0, ve_0, iddpm_0, edm_0, edm_1, …")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 1000, "Images a score.")

EULER_STEPS, HEUN_STEPS = (10, 20, 40, 80), (3, 5, 9, 18, 40)


def settings(column: str) -> dict[str, list[dict]]:
  """{line: its settings of config.sampling} of a panel."""
  euler = lambda **fields: [dict(sampler="euler", num_steps=n, **fields) for n in EULER_STEPS]
  heun = lambda **fields: [dict(sampler="heun", num_steps=n, grid="edm", **fields) for n in HEUN_STEPS]
  if column == "edm":
    lines = {"Euler, EDM's grid": euler(grid="edm", process="edm"), "Heun, EDM's grid, ρ = 7": heun(process="edm")}
    return lines | {f"Heun, ρ = {rho}": heun(process="edm", rho=float(rho))[1:3] for rho in (3, 5, 10)}
  process = {"vp": "vp", "ve": "ve", "iddpm": "edm"}[column]
  lines = {"original: Euler, own grid and process": euler(grid=column, process=process)}
  lines["Heun, EDM's grid"] = heun(process=process)[1:4]
  if process != "edm":
    lines["Heun, EDM's grid, σ(t) = t, s(t) = 1"] = heun(process="edm")[1:4]
  return lines


def main():
  outputs()  # before the work, whether they may be written
  score, rows, lines = Scores(_NUM_IMAGES.value), [], {}
  for column in ("vp", "ve", "iddpm", "edm"):
    lines[column] = {}
    workdirs = seeds_of(_RUNS.value, column)
    values = {}  # of a line and its settings: one score a seed; a seed's scores one after another, its network stays
    for workdir in workdirs:
      for line, fields in settings(column).items():
        for i, chosen in enumerate(fields):
          nfe, frechet = score(workdir, **chosen)
          values.setdefault((line, i), []).append((nfe, frechet))
    for (line, i), got in values.items():
      mean, spread = mean_and_spread([frechet for _, frechet in got])
      lines[column].setdefault(line, []).append((got[0][0], mean, spread))
      rows.append([column, line, settings(column)[line][i]["num_steps"], got[0][0], mean, spread, len(got)])
  figure, panels = plt.subplots(1, 4, figsize=(18, 4), sharey=True)
  for axes, (column, panel) in zip(panels, lines.items()):
    draw_lines(axes, panel)
    axes.set(title=f"trained as {column}", xlabel="network evaluations", xscale="log", yscale="log")
  panels[0].set_ylabel(f"Fréchet distance, {_NUM_IMAGES.value} digits")
  write(figure, ["training", "line", "num_steps", "nfe", "frechet_mean", "frechet_std", "seeds"], rows)


if __name__ == "__main__":
  cli.run(main)
