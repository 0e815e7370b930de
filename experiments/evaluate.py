"""Scores a run, a published checkpoint or images that are there already, over samplers × numbers of evaluations.

  python experiments/evaluate.py --workdir=runs/edm_digits --samplers=heun,euler --nfe=9,17,35
  python experiments/evaluate.py --workdir=runs/edm_digits --sampler=all --nfe=5,10,20
  python experiments/evaluate.py --checkpoint=edm-cifar10-32x32-cond-vp.pkl --reference=cifar10-32x32.npz \\
    --inception=weights-inception-2015-12-05-6726825d.pth --out=cifar10
  python experiments/evaluate.py --workdir=runs/ddm_superres --split=test --nfe=5,10
  python experiments/evaluate.py --images=samples.zip --data=zip:cifar10-train.zip --inception=... --out=mine

Writes OUT/scores.jsonl (every score with its provenance), scores.md (the table), scores.png (score against evaluations,
a line a sampler) and the first hundred images of every setting. A run with a task makes images from the conditions of
--split, or of --data with --task_path: its table begins with what the task comes to without a model, its pictures show
condition, image and truth. "all" are all samplers that serve the run, with the most evaluations that --nfe leaves each;
rk45 has those that its tolerance asks for. The same command goes on where it was interrupted, and computes no score
twice. A σ_min of DPDM's grid that is searched is kept in the workdir's sigma_min.json, that of a published checkpoint
in OUT's.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from diffusion_jax import cli, samplers, sampling
from diffusion_jax import config as config_lib
from diffusion_jax.data import sources
from diffusion_jax.evaluation import bench, digits, memorisation, reference, report, scoring, sigma_min, statistics
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.evaluation import r_table as r_table_lib
from diffusion_jax.evaluation import tasks as tasks_lib
from diffusion_jax.evaluation.records import Records
from diffusion_jax.training import autoencoders, classifiers

_SAMPLERS = flags.DEFINE_list("samplers", None, "Samplers to compare, or all; --sampler or the run's own by default.")
_NFE = flags.DEFINE_list("nfe", None, "Network evaluations to compare; --num_steps or the run's own by default.")
_IMAGES = flags.DEFINE_string("images", None, "A zip of PNGs, or an .npz with the array `images`, in place of a model.")
_OUT = flags.DEFINE_string("out", None, "Folder of the results; WORKDIR/evaluation by default.")
model_flags = cli.ModelFlags(task=None, latents=True)
score_flags = cli.ScoreFlags()
start_hosts = cli.define_hosts()


def main():
  start_hosts()
  if _IMAGES.value:
    out = epath.Path(_OUT.value or "evaluation")
    (source, subjects), examples = image_subject(_IMAGES.value), None
    scorers = score_flags.scorers(None, source.image_shape)
    available = len(source)
  else:
    out = epath.Path(_OUT.value or model_flags.folder() / "evaluation")
    if model_flags.published:
      score_flags.check_real(None)
    if flags.FLAGS.sampler == "all":
      flags.FLAGS.sampler, flags.FLAGS.samplers = None, ["all"]
    config, method, variables, step, name = model_flags.open(search=False)
    checkpoint = model_flags.provenance(step)
    chosen = settings(config, method)
    scorers = score_flags.scorers(config, autoencoders.image_shape(config))
    available = None
    examples = tasks_lib.source_of(scorers) if config.task.name else None
  num_images, blocks = score_flags.protocol(scorers, available)
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cli.UsageError(f"--out={out}: {error}") from None
  if not _IMAGES.value:
    take, subjects = lambda: (method, variables), {}
    kept = (out, checkpoint["sha256"]) if model_flags.published else (model_flags.folder(), step)
    for label, each in chosen.items():
      each = cli.checked(r_table_lib.resolve, each, *kept, take)
      each = cli.checked(sigma_min.resolve, each, *kept, take, scorers)
      subjects[label] = tasks_lib.subject(checkpoint, each, take, scorers)
    if examples is not None:
      label, simple = tasks_lib.simple(config.task, examples)
      subjects = {(label, None): simple, **subjects}

  records, rows = Records(out / "scores.jsonl"), []
  first = jax.process_index() == 0
  with tqdm(total=len(subjects) * blocks * num_images, unit="img", disable=not first) as bar:
    for (sampler, nfe), subject in subjects.items():
      bar.set_description(f"{sampler} {nfe}" if nfe else sampler)
      picture = out / f"images_{sampler}_{nfe or 0}.png"
      subject = dataclasses.replace(subject, draw=keep_first(subject.draw, picture, examples))
      found = cli.checked(bench.score, subject, scorers, records, num_images, blocks, progress=bar.update)
      rows.append((sampler, found[0]["nfe"], bench.summary(found)))
  if first:
    write(out, rows, scorers, num_images, blocks)


def settings(config: ConfigDict, method) -> dict[tuple[str, int], ConfigDict]:
  """{(sampler, NFE): config} of --samplers × --nfe; an adaptive sampler has the NFE None."""
  out, everything = {}, _SAMPLERS.value == ["all"]
  for sampler in method.samplers if everything else _SAMPLERS.value or [config.sampling.sampler]:
    for nfe in _NFE.value or [None]:
      chosen = model_flags.with_sampler(config, config_lib.choose("sampling.sampler", sampler, method.samplers))
      if nfe is not None and not (everything and samplers.KINDS[sampler].cost is None):
        steps = cli.nfe_steps(nfe, chosen, method, nearest=everything)
        if steps is None:
          continue
        chosen.sampling.num_steps = steps
      config_lib.check(chosen)
      classifiers.find(chosen)
      out[sampler, sampling.evaluations(chosen.sampling, method)] = chosen
  return out


def image_subject(path: str) -> tuple[sources.Source, dict]:
  """Images of a file as the one subject."""
  try:
    source = sources.load("zip", "train", path=path) if path.endswith(".zip") else _npz(path)
  except ValueError as error:
    raise cli.UsageError(f"--images={path}: {error}") from None
  checkpoint = {"name": epath.Path(path).name, "step": None, "sha256": reference.fingerprint(source)}
  draw = lambda indices: source.gather(indices)["image"]
  return source, {("images", None): bench.Subject(checkpoint, lambda: (draw, None))}


def _npz(path: str) -> sources.Arrays:
  try:
    with epath.Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      images = arrays["images"]
  except (OSError, KeyError, TypeError, ValueError, *statistics.DAMAGE) as error:
    raise ValueError(f"no .npz with an array `images`: {error}") from None
  if images.ndim != 4 or not images.size or images.dtype != np.uint8:
    raise ValueError(f"`images` must be [N, H, W, C] uint8, N >= 1, got {images.dtype} of shape {list(images.shape)}")
  return sources.Arrays("images", "all", images, np.zeros(len(images), np.int32), 0)


def keep_first(make_draw: Callable, path: epath.Path, examples: sources.Source | None = None) -> Callable:
  """The same draw, which also writes the first images it draws as a grid.

  With a task these are `examples`, the first thirty of them or so, in rows: condition, image, truth.
  """

  def wrapped():
    draw, nfe = make_draw()

    def drawn(seeds):
      images = draw(seeds)
      if 0 in seeds and jax.process_index() == 0:
        scale = 4 if images.shape[1] < 32 else 1
        columns = 10 if examples is None else min(10, len(images))
        shown = images[:100] if examples is None else tasks_lib.beside(examples, seeds, images, columns)
        images_lib.save_png(path, shown, columns=columns, scale=scale, overwrite=True)
      return images

    return drawn, nfe

  return wrapped


def write(out: epath.Path, rows, scorers, num_images: int, blocks: int):
  """Prints the table, and writes it and the plot."""
  keys = list(rows[0][2])
  header = ["sampler", "NFE", *(report.title(*key) for key in keys)]
  lines = [[sampler, nfe, *(report.cell(stats[key], key[0]) for key in keys)] for sampler, nfe, stats in rows]
  standard = num_images == scoring.STANDARD
  note = f"{blocks} block{'s' * (blocks > 1)} of {num_images:,} images"
  note += "" if standard else f" (the standard is {scoring.STANDARD:,}; compare only like with like)"
  spread = "; mean ± standard deviation over the blocks, in brackets the best" * (blocks > 1)
  references = [scorer.reference(metric) for scorer in scorers for metric in scorer.metrics]
  names = {reference.name: reference.num_images for reference in references}
  against = ", ".join(f"{name} ({count:,})" if count else name for name, count in names.items())
  text = "\n".join([report.markdown(header, lines), "", f"{note}{spread}. Real images: {against}."])
  if any(scorer.extractor.name == "digits" for scorer in scorers):
    text += "\n\n" + digits_scale()
  print(text)
  (out / "scores.md").write_text(text + "\n")
  drawn = [row for row in rows if row[1]]
  if drawn:
    panels = {
      report.title(*key): {
        sampler: [(nfe, stats[key]["mean"], stats[key]["std"]) for name, nfe, stats in drawn if name == sampler]
        for sampler in dict.fromkeys(name for name, _, _ in drawn)
      }
      for key in keys
    }
    report.plot(out / "scores.png", panels, "network evaluations", note=note)
  print(f"\nwrote {out}/scores.jsonl, scores.md and pictures")


def digits_scale() -> str:
  """What the scores of digits are where the answer is known."""
  known = digits.references()
  text = lambda name: f"{known[name]['mean']:.3f} ± {known[name]['std']:.3f}"
  return (
    f"Fréchet distance (digits) of the 1,797 real digits, resampled, to themselves: {text('resampled')}; of one half "
    f"of them to the other: {text('halves')}; of noise: {text('noise')}. Memorised share of held-out real digits: "
    f"{memorisation.heldout_share():.3f}."
  )


if __name__ == "__main__":
  cli.run(main)
