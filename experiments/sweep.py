"""Sweeps: many members of one config, trained and scored, and one report.

  python experiments/sweep.py run configs/sweeps/digits_samplers.py            # what is missing or failed
  python experiments/sweep.py run configs/sweeps/digits_samplers.py --devices=all
  python experiments/sweep.py run configs/sweeps/digits_samplers.py --launcher=slurm --partition=gpu --time=240
  python experiments/sweep.py list configs/sweeps/digits_samplers.py           # the members, and what became of them
  python experiments/sweep.py status runs/sweeps/digits_samplers               # the same, from the folder
  python experiments/sweep.py report runs/sweeps/digits_samplers --sort=NFE    # also while it runs

Members are kept under --runs, in folders named after a hash of what determines them; members that differ only in
sampling share one training. The same command again runs only what is missing or failed. A failed member leaves the
others alone: it is listed with its reason and log. The exit code is 1 unless all members are done, also where another
process is at work on some; Ctrl-C and SIGTERM save, with exit code 0.
`report` prints a table and writes DIR/report.md, report.csv and report.png.
"""

import ast
import dataclasses
import os
import re
import sys
from pathlib import Path

from absl import flags

from diffusion_jax import cli
from diffusion_jax import config as config_lib
from diffusion_jax.sweep import Sweep, devices, folder, local, plan, slurm, table

_RUNS = flags.DEFINE_string("runs", None, "Folder of the sweep, on a file system with locks; runs/sweeps/NAME.")
_SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE: put into every base config; the members' own fields win.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", None, "Images a score; the sweep's own by default.")
_LAUNCHER = flags.DEFINE_enum("launcher", "local", ["local", "slurm"], "Where processes run.")
_JOBS = flags.DEFINE_integer("jobs", None, "Processes at a time: local, 1 or one a device; Slurm, jobs of the array.")
_DEVICES = flags.DEFINE_string("devices", None, "all, or numbers such as 0,2: one process a device, local only.")
_SORT = flags.DEFINE_string("sort", None, "Column of the report; the first metric by default.")
_DESCENDING = flags.DEFINE_bool("descending", None, "Largest first; by default the best first.")
_WEIGHTS = {
  "inception": flags.DEFINE_string("inception", None, "Weights: weights-inception-2015-12-05-6726825d.pth."),
  "vgg": flags.DEFINE_string("vgg", None, "Weights: vgg16-397923af.pth."),
}
_SLURM = {
  "slurm_partition": flags.DEFINE_string("partition", None, "Slurm: partition."),
  "gpus_per_node": flags.DEFINE_integer("gpus_per_node", 1, "Slurm: GPUs a job; a job has one node."),
  "cpus_per_task": flags.DEFINE_integer("cpus_per_task", None, "Slurm: CPUs a job."),
  "mem_gb": flags.DEFINE_integer("mem_gb", None, "Slurm: host memory a job."),
  "timeout_min": flags.DEFINE_integer("time", 60, "Slurm: minutes; a training goes on in the next ones."),
}
_SLURM_MORE = flags.DEFINE_multi_string("slurm", [], "NAME=VALUE: any parameter of sbatch, such as account=mine.")


def main():
  commands = {"run": run, "list": list_members, "status": status, "report": report}
  command, *rest = cli.arguments() or [""]
  if command not in commands or len(rest) != 1:
    raise cli.UsageError("expected run FILE, list FILE, status DIR or report DIR")
  commands[command](rest[0])


def run(path: str):
  check_launcher()
  sweep, root, planned, weights = planned_of(path)
  slots = devices.slots(_DEVICES.value, _JOBS.value)
  through = executor(root) if _LAUNCHER.value == "slurm" else None
  plan.write(root, path, sweep, planned)
  tasks = []
  for group, members in plan.groups(planned).items():
    states = [found["state"] for found in slurm.statuses([m.path(root) for m in members])]
    open_ = [m.id for m, state in zip(members, states) if state != folder.DONE]
    if open_:
      tasks.append(local.task(root / group, open_))
  count = sum(len(task.ids) for task in tasks)
  print(f"{len(planned)} members: {len(planned) - count} done, {count} to run in {len(tasks)} trainings, {root}")
  if through is not None:
    jobs = slurm.submit(tasks, weights, through) if tasks else []
    print(f"jobs {', '.join(job.job_id for job in jobs)}" if jobs else "nothing to submit")
    return
  launcher = local.Launcher(weights, slots)
  with local.signals(launcher):
    launcher.run(tasks)
  if launcher.stopping:
    print("stopped; the same command goes on")
    return
  rest = [row for row in report(root) if row.state != folder.DONE]
  if rest:
    elsewhere = any(folder.busy(row.log.parent) for row in rest)
    print(f"not done: {table.counts(rest)}" + "; others are at work elsewhere" * elsewhere, file=sys.stderr)
    raise SystemExit(1)


def check_launcher():
  """Refuses flags of the launcher that was not asked for."""
  slurm_flags = [flag.name for flag in (*_SLURM.values(), _SLURM_MORE)]
  for name in slurm_flags if _LAUNCHER.value == "local" else ["devices"]:
    if flags.FLAGS[name].present:
      raise cli.UsageError(f"--{name} does not go with --launcher={_LAUNCHER.value}")


def planned_of(path: str) -> tuple[Sweep, Path, list[plan.Member], dict[str, str]]:
  """The sweep of a file with the flags put in, its folder, its members, and files of weights."""
  sweep = cli.checked(plan.load, path)
  if _NUM_IMAGES.value is not None:
    sweep = dataclasses.replace(sweep, num_images=_NUM_IMAGES.value)
  weights = {name: os.path.abspath(flag.value) for name, flag in _WEIGHTS.items() if flag.value}
  for name, file in weights.items():
    if not os.path.isfile(file):
      raise cli.UsageError(f"--{name}={file}: no such file")
  root = folder.root_of(_RUNS.value or f"runs/sweeps/{name_of(path)}")
  return sweep, root, cli.checked(plan.members, sweep, fields(), list(weights)), weights


def name_of(path: str) -> str:
  """ "digits_samplers" of "configs/sweeps/digits_samplers.py"; an argument's letters are joined by an underscore."""
  file, _, argument = path.partition(":")
  return "_".join(filter(None, [Path(file).stem, re.sub(r"[^A-Za-z0-9_.=-]+", "-", argument).strip("-.")]))


def fields() -> dict[str, object]:
  """What --set says: values as Python writes them, or else text."""
  known, out = config_lib.flatten(config_lib.default()), {}
  for given in _SET.value:
    field, equals, value = given.partition("=")
    if not equals:
      raise cli.UsageError(f"--set={given}: expected FIELD=VALUE, such as train.num_steps=100")
    try:
      out[field] = value if isinstance(known.get(field), str) else ast.literal_eval(value)
    except (SyntaxError, ValueError):
      out[field] = value
  return out


def executor(root: Path):
  """submitit's executor of the flags."""
  more = {}
  for given in _SLURM_MORE.value:
    name, equals, more[name] = given.partition("=")
    if not (name and equals):
      raise cli.UsageError(f"--slurm={given}: expected NAME=VALUE, such as account=mine")
  given = {name: flag.value for name, flag in _SLURM.items()}
  return slurm.executor(root, parallel=_JOBS.value, slurm_additional_parameters=more or None, **given)


def list_members(path: str):
  _, root, planned, _ = planned_of(path)
  for member, found in zip(planned, slurm.statuses([member.path(root) for member in planned])):
    print(f"{found['state']:9} {member.group}/{member.id}  {member.name}  NFE {member.labels['NFE']}")
  print(f"{len(planned)} members, {len(plan.groups(planned))} trainings, {root}")


def status(root: str):
  _, rows = table.read(Path(root))
  for row in rows:
    what = {folder.FAILED: f"{row.reason} ({row.log})", folder.RUNNING: f"{row.reason}, process {row.who}"}
    said = what.get(row.state, row.reason)
    print(f"{row.state:9} {row.id}  {row.name}" + f": {said}" * bool(said))
  print(table.counts(rows))


def report(root) -> list[table.Row]:
  root = Path(root)
  described, rows = table.read(root)
  text = table.text(described, rows, _SORT.value, _DESCENDING.value)
  try:
    (root / "report.md").write_text(f"# {root.resolve().name}\n\n{text}\n")
    (root / "report.csv").write_text(table.as_csv(rows, _SORT.value, _DESCENDING.value))
    drawn = table.draw(described, rows, root / "report.png")
  except OSError as error:
    raise cli.UsageError(f"{root} cannot be written: {error}") from None
  print(f"{text}\n\nwrote {root}/report.md, report.csv" + " and report.png" * drawn)
  return rows


if __name__ == "__main__":
  cli.run(main)
