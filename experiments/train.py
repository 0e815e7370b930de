"""Trains a config.

  python experiments/train.py --config=configs/edm_digits.py --workdir=runs/edm_digits --config.train.num_steps=3000
"""

from absl import flags

from diffusion_jax import cli
from diffusion_jax.training import loop

get_config = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; resumed if it exists.")


def main():
  if not _WORKDIR.value:
    raise cli.UsageError("--workdir is missing: the folder of the run")
  loop.train(get_config(), _WORKDIR.value)


if __name__ == "__main__":
  cli.run(main)
