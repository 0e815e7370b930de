"""Trains a config.

  python experiments/train.py --config=configs/edm_digits.py --workdir=runs/edm_digits --config.train.num_steps=3000

On several hosts (a TPU pod, GPU machines under Slurm), the same command on each, with --multihost.
"""

import jax
from absl import flags

from diffusion_jax import cli
from diffusion_jax.training import loop

get_config = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, shared by all hosts; resumed if it exists.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the other hosts by jax.distributed.initialize.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the cluster does not tell.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of hosts, where the cluster does not tell.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this host, where the cluster does not tell.")


def main():
  if not _WORKDIR.value:
    raise cli.UsageError("--workdir is missing: the folder of the run")
  config = get_config()
  if _MULTIHOST.value:
    jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  loop.train(config, _WORKDIR.value)


if __name__ == "__main__":
  cli.run(main)
