"""Trains a config.

  python experiments/train.py --config=configs/edm_digits.py --workdir=runs/edm_digits --config.train.num_steps=3000

  python experiments/train.py --config=... --dry_run     # devices, batch, parameters, memory; trains nothing

  python experiments/train.py --config=configs/pupil.py --config.init_from=runs/teacher --workdir=runs/pupil \\
    --init_config=configs/edm_digits.py                # trains runs/teacher first, where that is not done

On several hosts (a TPU pod, GPU machines under Slurm), the same command on each.
"""

from absl import flags
from etils import epath

from diffusion_jax import cli
from diffusion_jax.config import ConfigError
from diffusion_jax.training import loop, plan, predecessor

get_config = cli.define_config()
get_init_config = cli.define_config(
  "init_config", "Config of the run of config.init_from, which is trained first.", required=False
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, shared by all hosts; resumed if it exists.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Compile the update and print what it needs; train and write nothing.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "For --dry_run: TPU chips that are not here, such as v5e:2x4.")
_PROFILE = flags.DEFINE_string("profile", None, "FIRST-LAST: steps of which a trace is written to WORKDIR/profile.")
start_hosts = cli.define_hosts()


def main():
  if not _WORKDIR.value and not _DRY_RUN.value:
    raise cli.UsageError("--workdir is missing: the folder of the run")
  config, init_config, steps = get_config(), get_init_config(), profiled(_PROFILE.value)
  if _TOPOLOGY.value and not _DRY_RUN.value:
    raise cli.UsageError(f"--topology={_TOPOLOGY.value}: goes with --dry_run alone")
  if init_config is not None and _DRY_RUN.value:
    raise cli.UsageError("--init_config: goes without --dry_run, which trains nothing; pass it as --config")
  start_hosts()
  if init_config is not None and not predecessor.train(config, init_config, _WORKDIR.value):
    return
  try:
    if _DRY_RUN.value:
      plan.show(config, _WORKDIR.value, _TOPOLOGY.value)
    else:
      loop.train(config, _WORKDIR.value, steps)
  except ConfigError as error:
    if not missing(config.init_from) or "no run here" not in str(error):
      raise
    message = str(error).replace(f"--workdir={config.init_from}: ", "")
    hint = "train it first" if _DRY_RUN.value else "--init_config=FILE trains it first"
    raise ConfigError(f"{message}; {hint}") from None


def missing(init_from: str) -> bool:
  """Whether config.init_from names a run that could be trained first, and is not there."""
  return bool(init_from) and not init_from.endswith(".pkl") and not (epath.Path(init_from) / "config.json").exists()


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
