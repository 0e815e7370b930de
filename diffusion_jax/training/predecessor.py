"""A run whose predecessor is trained first: the run that config.init_from names, such as a pupil's teacher."""

import jax
from absl import logging
from etils import epath

from diffusion_jax import config as config_lib
from diffusion_jax import files, mesh, methods
from diffusion_jax.data import sources
from diffusion_jax.training import checkpoint, faults, loop, parallel, warm


def check(config, init_config, workdir):
  """Looks at what can be wrong with the two runs; nothing is written or compiled.

  A run that has a checkpoint of its own goes on whatever `init_config` is: then only config.init_from is looked at.

  Args:
    config: of the run.
    init_config: of the run that config.init_from names.
    workdir: of the run.

  Raises:
    ConfigError: a config is wrong, config.init_from is not the workdir of another run, or the run cannot start from
      such a network.
    WorkdirError: config.init_from holds a run of another config than `init_config`.
  """
  path = config.init_from
  if not path:
    raise config_lib.wrong("init_from", path, "must be the workdir of the run that is trained first")
  published = path.endswith((".pkl", ".pt", ".pth"))
  if published or epath.Path(path).name == "checkpoints" or _is_checkpoint(epath.Path(path)):
    raise config_lib.wrong("init_from", path, "expected the workdir of a run, which is trained first")
  if files.absolute(path) == files.absolute(workdir):
    raise config_lib.wrong("init_from", path, "must be another folder than that of the run itself")
  if _has_own(workdir):
    return
  for name, each in (("init_config", init_config), ("config", config)):
    try:
      config_lib.check(each)
      config_lib.check(each, parallel.from_config(each.train.parallel).mesh.size)
      sources.from_config(each)
    except config_lib.ConfigError as error:
      raise config_lib.of_file(name, error) from None
  if (epath.Path(path) / "config.json").exists():  # what it has from a predecessor of its own is known
    try:
      init_config = warm.resolve(init_config, None, path)
    except config_lib.ConfigError as error:
      raise config_lib.of_file("init_config", error) from None
  try:
    checkpoint.check_workdir(path, init_config)
  except checkpoint.WorkdirError as error:
    told = str(error).replace(f"--workdir={path}", f"config.init_from = {path!r}", 1)
    raise checkpoint.WorkdirError(told.replace(" run with config.", " run with init_config.", 1)) from None
  checkpoint.check_workdir(workdir, fit(config, init_config))


def _is_checkpoint(path: epath.Path) -> bool:
  """Whether a path is that of one checkpoint of a run, which is never trained."""
  return (path / "state" / "_METADATA").exists() or (path.parent.name == "checkpoints" and path.name.isdigit())


def _has_own(workdir) -> bool:
  """Whether a run has a checkpoint of its own; the same on all hosts."""
  return mesh.from_first_host(lambda: "yes" if checkpoint.has_checkpoint(workdir) else "no") == "yes"


def fit(config, init_config):
  """The config with what the network of a run of `init_config` brings; ConfigError if it cannot start from it."""
  source = warm.to_come(init_config)
  config = warm.resolve(config, source, None)
  warm.fit(source, methods.from_config(config), config)
  return config


def finished(workdir, config) -> bool:
  """Whether a workdir holds a checkpoint of the config's last step; the same on all hosts."""

  def answer():
    try:
      return "yes" if checkpoint.newest(workdir) >= config.train.num_steps else "no"
    except checkpoint.WorkdirError:
      return "no"

  return mesh.from_first_host(answer) == "yes"


def train(config, init_config, workdir) -> bool:
  """Trains the run that config.init_from names, or goes on with it, where that is not done.

  A run that has a checkpoint of its own goes on without it: then nothing is done.

  Args:
    config: of the run that is trained afterwards.
    init_config: of the run that config.init_from names.
    workdir: of the run that is trained afterwards.

  Returns:
    Whether it is time for that run: False if SIGTERM arrived, and what was done is saved.

  Raises:
    ConfigError, WorkdirError: as `check`.
    Diverged, SaveError, DataError: as `training.loop.train`.
  """
  check(config, init_config, workdir)
  if _has_own(workdir) or finished(config.init_from, init_config):
    return True
  logging.warning("%s is trained first, to step %d", config.init_from, init_config.train.num_steps)
  with faults.preemption() as stop:
    state = loop.train(init_config, config.init_from)
    late = jax.process_count() == 1 and stop(0)  # it came after the last step
  if late and int(state.step) >= init_config.train.num_steps:
    logging.warning("stopped by SIGTERM after the last step of %s", config.init_from)
  return int(state.step) >= init_config.train.num_steps and not late
