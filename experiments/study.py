"""Runs a study: configs × seeds × evaluations, and prints the tables that it describes.

  python experiments/study.py experiments/studies/edm_table2_digits.py
  python experiments/study.py experiments/studies/edm_table2_digits.py --list      # what is done, what is missing
  python experiments/study.py experiments/studies/edm_table2_digits.py --part=0/4  # a quarter of the runs

Runs and their scores are kept under --runs, in workdirs named after a hash of their config; started again, a study does
only what is missing. Writes OUT/README.md (tables), OUT/scores.jsonl (every score with its provenance) and the plots. A
part leaves these to --collect, which makes them of all that is on file and computes nothing.

A run that starts from another's network (Run.init) is of the same part as that one.
"""

import json

from absl import flags
from etils import epath
from tqdm.auto import tqdm

from diffusion_jax import cli
from diffusion_jax.study import Study, loading, show
from diffusion_jax.study import run as runs
from diffusion_jax.training.faults import Diverged

_RUNS = flags.DEFINE_string("runs", "runs/studies", "Folder of the workdirs.")
_OUT = flags.DEFINE_string("out", None, "Folder of the results; results/STUDY by default.")
_PART = flags.DEFINE_string("part", None, "i/n: every n-th run, from the i-th; for several machines.")
_LIST = flags.DEFINE_bool("list", False, "Only say what is done and what is missing.")
_COLLECT = flags.DEFINE_bool("collect", False, "Only make tables and plots of what is on file.")
_FILES = {
  "inception": flags.DEFINE_string("inception", None, "Weights: weights-inception-2015-12-05-6726825d.pth."),
  "vgg": flags.DEFINE_string("vgg", None, "Weights: vgg16-397923af.pth."),
}


def main():
  if len(cli.arguments()) != 1:
    raise cli.UsageError("expected one study, for instance experiments/studies/edm_table2_digits.py")
  (path,) = cli.arguments()
  study = cli.checked(loading.load, path)
  jobs = cli.checked(runs.jobs, study, _RUNS.value)
  if _PART.value:
    jobs = [job for chain in runs.chains(jobs)[part(_PART.value)] for job in chain]
    if not jobs:
      print(f"--part={_PART.value}: nothing is left for it")
      return
  pool = runs.ScorerPool(study, {name: flag.value for name, flag in _FILES.items()})
  if _LIST.value:
    for job in jobs:
      done = len(cli.checked(scores, study, pool, job, True)) if runs.trained(job) else 0
      print(f"{'trained' if runs.trained(job) else 'missing':8} {done:4} scores  {job.workdir}")
    return
  out = epath.Path(_OUT.value or f"results/{epath.Path(path.partition(':')[0]).stem}")
  found, failed = [], []
  for i, job in enumerate(jobs):
    if not runs.trained(job):
      if _COLLECT.value:
        continue
      print(f"[{i + 1}/{len(jobs)}] {job.workdir}", flush=True)
      try:
        runs.train(job)
      except runs.Waiting:  # for one that diverged
        failed.append(f"{job.workdir.name}: not trained, as it starts from {job.init.workdir.name}")
        continue
      except runs.Stopped as stopped:
        print(f"stopped: {stopped}")
        return
      except Diverged as error:
        failed.append(f"{job.workdir.name}: {error}")
        continue
    found += cli.checked(scores, study, pool, job, _COLLECT.value)
  if not found:
    raise cli.UsageError("there is no score on file yet" if not failed else "; ".join(failed))
  if _PART.value and not _OUT.value:
    print(f"{len(found)} scores are on file; --collect makes the tables of all parts")
  else:
    cli.checked(write, study, found, failed, out, path)


def scores(study: Study, pool: runs.ScorerPool, job: runs.Job, stored_only: bool) -> list[dict]:
  with tqdm(unit="img", desc=job.workdir.name, disable=stored_only, leave=False) as bar:
    return runs.evaluate(study, job, pool.of(job), stored_only, bar.update)


def part(text: str) -> slice:
  """Reads "1/4" as the slice [1::4]."""
  first, slash, count = text.partition("/")
  if not (slash and first.isdigit() and count.isdigit() and int(first) < int(count)):
    raise cli.UsageError(f"--part={text}: expected i/n with 0 <= i < n")
  return slice(int(first), None, int(count))


def write(study: Study, found: list[dict], failed: list[str], out: epath.Path, path: str):
  """Prints the tables and writes the results."""
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cli.UsageError(f"--out={out}: {error}") from None
  counts = " or ".join(f"{count:,}" for count in sorted({record["num_images"] for record in found}))
  note = f"{study.blocks} block{'s' * (study.blocks > 1)} of {counts} images a seed"
  machine = found[0]["versions"]
  parts = [study.about.strip(), f"    python experiments/study.py {path}"]
  parts += [show.markdown(table, found) for table in study.tables]
  real = {f"{r['reference']['name']} ({r['reference']['num_images']:,})" for r in found if r["reference"]["num_images"]}
  parts.append(
    f"Mean ± standard deviation over seeds, in square brackets their number where it is smaller; {note}. Real images: "
    f"{', '.join(sorted(real))}. JAX {machine['jax']}, {found[0]['device']}."
  )
  parts += [f"Diverged: {line}" for line in failed]
  (out / "scores.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
  plots = [plot.name for plot in study.plots if show.draw(plot, found, out / f"{plot.name}.png", note)]
  text = "\n\n".join(filter(None, [*parts, *(f"![{name}]({name}.png)" for name in plots)]))
  (out / "README.md").write_text(f"# {epath.Path(path.partition(':')[0]).stem}\n\n{text}\n")
  print(f"{text}\n\nwrote {out}/README.md and scores.jsonl")


if __name__ == "__main__":
  cli.run(main)
