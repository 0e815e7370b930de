"""Trains a config.

  python experiments/train.py --config=configs/edm_digits.py --workdir=runs/edm_digits --config.train.num_steps=3000

  python experiments/train.py --config=... --dry_run     # devices, batch, parameters, memory; trains nothing

On several hosts (a TPU pod, GPU machines under Slurm), the same command on each.
"""

from absl import flags

from diffusion_jax import cli
from diffusion_jax.training import loop, plan

get_config = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, shared by all hosts; resumed if it exists.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Compile the update and print what it needs; train and write nothing.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "For --dry_run: TPU chips that are not here, such as v5e:2x4.")
_PROFILE = flags.DEFINE_string("profile", None, "FIRST-LAST: steps of which a trace is written to WORKDIR/profile.")
start_hosts = cli.define_hosts()


def main():
  if not _WORKDIR.value and not _DRY_RUN.value:
    raise cli.UsageError("--workdir is missing: the folder of the run")
  config, steps = get_config(), profiled(_PROFILE.value)
  if _TOPOLOGY.value and not _DRY_RUN.value:
    raise cli.UsageError(f"--topology={_TOPOLOGY.value}: goes with --dry_run alone")
  start_hosts()
  if _DRY_RUN.value:
    plan.show(config, _WORKDIR.value, _TOPOLOGY.value)
  else:
    loop.train(config, _WORKDIR.value, steps)


def profiled(text: str | None) -> range | None:
  """Reads "10-14" as range(10, 15)."""
  if text is None:
    return None
  first, dash, last = text.partition("-")
  if not (dash and first.isdigit() and last.isdigit() and int(first) <= int(last)):
    raise cli.UsageError(f"--profile={text}: expected FIRST-LAST, such as 10-14")
  return range(int(first), int(last) + 1)


if __name__ == "__main__":
  cli.run(main)
