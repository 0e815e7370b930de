"""Trains a config.

  python experiments/train.py --config=configs/edm_digits.py --workdir=runs/edm_digits --config.train.num_steps=3000

On several hosts (a TPU pod, GPU machines under Slurm), the same command on each, with --multihost.
"""

from absl import flags

from diffusion_jax import cli
from diffusion_jax.training import loop

get_config = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, shared by all hosts; resumed if it exists.")
start_hosts = cli.define_hosts()


def main():
  if not _WORKDIR.value:
    raise cli.UsageError("--workdir is missing: the folder of the run")
  config = get_config()
  start_hosts()
  loop.train(config, _WORKDIR.value)


if __name__ == "__main__":
  cli.run(main)
