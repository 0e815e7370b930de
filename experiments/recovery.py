"""Distribution recovery: real images are perturbed, denoised once, and compared with the clean ones, by noise level.

  python experiments/recovery.py --workdir=runs/edm_digits
  python experiments/recovery.py --workdir=runs/dpdm_digits --compare=runs/edm_digits --sigmas=0.1,0.5,2
  python experiments/recovery.py --checkpoint=edm-cifar10-32x32-uncond-vp.pkl --data=zip:cifar10-train.zip \\
    --inception=weights-inception-2015-12-05-6726825d.pth --out=cifar10

Each real image is taken once, with its label where the model has classes. Writes OUT/recovery.jsonl (every score with
its provenance), recovery.md (the table), recovery.png (score against noise level, a line a model) and
recovery_images.png: the clean images, then for each noise level the noisy ones and a row of what each model makes of
them, named on the left. The same command goes on where it was interrupted, and computes no score twice.
"""

import jax
import numpy as np
from absl import flags
from etils import epath
from tqdm.auto import tqdm

from diffusion_jax import cli, files
from diffusion_jax.evaluation import bench, recovery, report
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.evaluation.records import Records

_SIGMAS = flags.DEFINE_list("sigmas", list(map(str, recovery.SIGMAS)), "Noise levels, EDM's σ.")
_COMPARE = flags.DEFINE_list("compare", [], "More workdirs or published pickles (.pkl), for the same table and plot.")
_OUT = flags.DEFINE_string("out", None, "Folder of the results; WORKDIR/evaluation by default.")
model_flags = cli.ModelFlags(sampling=False)
score_flags = cli.ScoreFlags(default=("frechet",), images=True)
start_hosts = cli.define_hosts()

COLUMNS = 10  # of the picture


def main():
  start_hosts()
  out = epath.Path(_OUT.value or model_flags.folder() / "evaluation")
  levels = sigmas(_SIGMAS.value)
  if model_flags.published:
    score_flags.check_real(None)
  main_path, named = model_flags.path, names([model_flags.path, *_COMPARE.value])
  models = {main_path: model_flags.open(search=False)}
  models |= {path: cli.open_model(path, "--compare") for path in _COMPARE.value}
  for model in models.values():
    for sigma in levels:
      cli.checked(recovery.check, model.method, sigma)
  config = models[main_path].config
  data = config.data
  scorers = score_flags.scorers(config, (data.resolution, data.resolution, data.channels))
  num_images, blocks = score_flags.protocol(scorers)
  real, subjects = recovery.real_images(scorers), {}
  for path, model in models.items():
    take = lambda model=model: (model.method, model.variables)
    checkpoint = cli.provenance(path, model.step)
    for sigma in levels:
      subjects[named[path], sigma] = cli.checked(recovery.of_model, checkpoint, model.config, take, real, sigma)
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cli.UsageError(f"--out={out}: {error}") from None

  records, found = Records(out / "recovery.jsonl"), {}
  first = jax.process_index() == 0
  with tqdm(total=len(subjects) * blocks * num_images, unit="img", disable=not first) as bar:
    for (name, sigma), subject in subjects.items():
      bar.set_description(f"{name} {sigma:g}")
      scored = cli.checked(bench.score, subject, scorers, records, num_images, blocks, progress=bar.update)
      found[name, sigma] = bench.summary(scored)
  if first:
    draw_images(out / "recovery_images.png", models[main_path].method, real.source, subjects)
    write(out, found, real, num_images, blocks)


def sigmas(texts: list[str]) -> list[float]:
  """The noise levels of --sigmas, each once."""
  try:
    levels = list(dict.fromkeys(recovery.check_sigma(float(text)) for text in texts))
    if not levels:
      raise ValueError
  except ValueError:
    raise cli.UsageError(f"--sigmas={','.join(texts)}: expected positive numbers such as 0.1,0.5,2") from None
  return levels


def names(paths: list[str]) -> dict[str, str]:
  """What tables call each model: the name of its folder or file; the paths of those that have the same."""
  short = [epath.Path(path).name for path in paths]
  for i, path in enumerate(paths):
    if files.absolute(path) in map(files.absolute, paths[:i]):
      raise cli.UsageError(f"--compare={','.join(paths[1:])}: {path} would be compared with itself")
  return {path: name if short.count(name) == 1 else path for path, name in zip(paths, short)}


def draw_images(path: epath.Path, method, source, subjects: dict[tuple[str, float], bench.Subject]):
  """Draws the rows of clean, noisy and denoised images, of the first seeds."""
  seeds, rows = np.arange(COLUMNS), []  # (label, images)
  for sigma in dict.fromkeys(sigma for _, sigma in subjects):
    clean, noisy = recovery.noisy(method, source, seeds, sigma)
    rows += [] if rows else [("clean", clean)]
    rows.append((f"noisy, σ = {sigma:g}", noisy))
    rows += [(name, subject.draw()[0](seeds)) for (name, level), subject in subjects.items() if level == sigma]
  left, images = zip(*rows)
  figure, axes = images_lib.figure(1, 1, (len(rows), COLUMNS), clean.shape[1])
  images_lib.draw(axes[0, 0], images, left=left)
  with path.open("wb") as file:
    figure.savefig(file, dpi=images_lib.DPI, bbox_inches="tight", format="png")


def write(out: epath.Path, found: dict, real, num_images: int, blocks: int):
  """Prints the table, and writes it and the plot."""
  keys = list(next(iter(found.values())))
  models, levels = (list(dict.fromkeys(part)) for part in zip(*found))
  cells = [(name, key) for key in keys for name in models]
  title = lambda name, key: report.title(*key) if len(models) == 1 else f"{name}: {report.title(*key)}"
  header = ["σ", *(title(*cell) for cell in cells)]
  lines = [[f"{s:g}", *(report.cell(found[name, s][key], key[0]) for name, key in cells)] for s in levels]
  note = f"{blocks} block{'s' * (blocks > 1)} of {num_images:,} images, perturbed and denoised once"
  spread = "; mean ± standard deviation over the blocks, in brackets the best" * (blocks > 1)
  images = f"Real images: {real.name} ({real.num_images:,})"
  if num_images % real.num_images:
    images += ", of which a block has a part: clean ones are at a distance too"
  text = "\n".join([report.markdown(header, lines), "", f"{note}{spread}. {images}."])
  print(text)
  (out / "recovery.md").write_text(text + "\n")
  panels = {
    report.title(*key): {
      name: [(s, found[name, s][key]["mean"], found[name, s][key]["std"]) for s in levels] for name in models
    }
    for key in keys
  }
  report.plot(out / "recovery.png", panels, "noise level σ", note=note)
  print(f"\nwrote {out}/recovery.jsonl, recovery.md and pictures")


if __name__ == "__main__":
  cli.run(main)
