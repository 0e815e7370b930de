"""The flags that say what is sampled from, and how: a run's checkpoint or a published one, a sampler's settings."""

from collections.abc import Callable
from typing import NamedTuple

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import mesh, methods, sampling
from diffusion_jax.cli.program import UsageError, checked
from diffusion_jax.evaluation import features, r_table, sigma_min
from diffusion_jax.interop import edm_checkpoint
from diffusion_jax.training import checkpoint
from diffusion_jax.training.checkpoint import WorkdirError
from diffusion_jax.types import Params

_UNSAMPLED = {
  "classifier": "a classifier, which draws no images; experiments/classify.py",
  "autoencoder": "an autoencoder, which draws no images; experiments/reconstruct.py",
}


class Model(NamedTuple):
  """What is sampled from: a run's checkpoint, or a published one."""

  config: ConfigDict
  method: methods.Method
  variables: Params
  step: int | None  # of the checkpoint; None for a published one
  name: str  # for messages


class ModelFlags:
  """The flags --workdir, --step and those of config.sampling, and --checkpoint; not those of what is False.

  With `classifier` the run is one of method classifier, and else of one that draws images: from noise alone, with
  `task` from a condition, either with None; in latent space with `latents` alone, for programs that decode.
  """

  def __init__(
    self,
    published: bool = True,
    sampling: bool = True,
    classifier: bool = False,
    task: bool | None = False,
    latents: bool = False,
  ):
    self._kind = {"classifier": classifier, "task": task, "latents": latents}
    self._workdir = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
    self._step = flags.DEFINE_string("step", None, "Which checkpoint of the run, or best; the newest by default.")
    self._published = None
    if published:
      self._published = flags.DEFINE_string("checkpoint", None, "A published EDM pickle (.pkl), in place of a run.")
    self._with_sampler_flags = define_sampler() if sampling else ConfigDict.copy_and_resolve_references

  def folder(self) -> epath.Path:
    """Where results go by default: the run's workdir; for a published checkpoint the working directory.

    Raises:
      UsageError: neither or both of --workdir and --checkpoint are given, or --step with a checkpoint.
    """
    published = self._pickle()
    if not self._workdir.value and not published:
      other = "" if self._published is None else " (or --checkpoint, a published EDM pickle)"
      raise UsageError(f"--workdir is missing: the folder of a trained run{other}")
    if published and (self._workdir.value or self._step.value is not None):
      raise UsageError(f"--checkpoint={published}: goes without --workdir and --step")
    return epath.Path(self._workdir.value or ".")

  @property
  def published(self) -> bool:
    """Whether a published checkpoint was given."""
    return bool(self._pickle())

  @property
  def path(self) -> str:
    """Of the workdir, or of the published pickle."""
    return self._pickle() or str(self.folder())

  def provenance(self, step: int | None) -> dict:
    """The name, step and SHA-256 of the checkpoint that `open` gave with this step, for records."""
    return provenance(self.path, step)

  def _pickle(self) -> str | None:
    return None if self._published is None else self._published.value

  def open(self, search: bool = True) -> Model:
    """Loads the model; its config.sampling has the flags put in.

    Args:
      search: put in what it leaves to a measurement too, see `measured`.

    Raises:
      UsageError: as `folder`, or there is no such run or checkpoint, or it cannot be read.
      ConfigError: a flag's value is wrong.
    """
    folder = self.folder()
    if self.published:
      model = open_published(self._pickle(), "--checkpoint", self._with_sampler_flags)
    else:
      model = open_run(str(folder), "--workdir", self._step.value, self._with_sampler_flags, **self._kind)
    return self.measured(model) if search else model

  def measured(self, model: Model) -> Model:
    """The model with what its config.sampling leaves to a measurement: the means of r, the σ_min of DPDM's grid.

    Raises:
      UsageError, ConfigError: as `r_table.resolve` and `sigma_min.resolve`.
    """
    folder, take = None if self.published else self.folder(), lambda: (model.method, model.variables)
    config = checked(r_table.resolve, model.config, folder, model.step, take)
    return model._replace(config=checked(sigma_min.resolve, config, folder, model.step, take))

  def with_sampler(self, config: ConfigDict, name: str) -> ConfigDict:
    """The config with another sampler in place of that of --sampler, and all other flags put in."""
    return self._with_sampler_flags(config, name)


def open_model(path: str, flag: str) -> Model:
  """Loads a run's newest checkpoint, or a published pickle (FILE.pkl), that the user gave by `flag`.

  Raises:
    UsageError: there is neither, or it cannot be read.
    ConfigError: the run's config is wrong.
  """
  return open_published(path, flag) if path.endswith(".pkl") else open_run(path, flag)


def open_run(
  path: str,
  flag: str,
  step: str | None = None,
  override: Callable = ConfigDict.copy_and_resolve_references,
  classifier: bool = False,
  task: bool | None = False,
  latents: bool = False,
) -> Model:
  """Loads a run's checkpoint.

  Args:
    path: the workdir.
    flag: that the user gave it by.
    step: a number, or "best"; the newest by default.
    override: config -> config; puts the user's fields in.
    classifier: whether the run must be of method classifier, or of one that draws images.
    task: whether it must have a task, or none; None takes either.
    latents: whether it may be in latent space.

  Raises:
    UsageError: there is no such checkpoint, it cannot be read, or it is of the other kind.
    ConfigError: a field's value is wrong.
  """
  if step is not None and step != "best" and not step.isdigit():
    raise UsageError(f"--step={step}: expected a number, or best")
  choose = {None: checkpoint.newest_whole, "best": checkpoint.best}.get(step, lambda _: step)
  try:
    config = checkpoint.read_config(path)
    if classifier and config.method != "classifier":
      raise UsageError(f"{flag}={path}: expected a run of method 'classifier', not {config.method!r}")
    if not classifier and config.method in _UNSAMPLED:
      raise UsageError(f"{flag}={path}: {_UNSAMPLED[config.method]} measures it")
    if task is not None and task != bool(config.task.name):
      made = f"makes images from others ({config.task.name}): experiments/evaluate.py and tasks.py give it these"
      raise UsageError(f"{flag}={path}: a run that {made if config.task.name else 'has no task'}")
    if not latents and config.data.name == config_lib.LATENTS:
      raise UsageError(f"{flag}={path}: a run in latent space, which sample.py and evaluate.py alone decode")
    config = override(config)
    number = int(mesh.from_first_host(lambda: str(choose(path))))
    return Model(config, *checkpoint.load_for_inference(path, number, config), number, f"step {number}")
  except WorkdirError as error:
    raise UsageError(str(error).replace("--workdir", flag)) from None


def open_published(path: str, flag: str, override: Callable = ConfigDict.copy_and_resolve_references) -> Model:
  """Loads a published EDM pickle; arguments and errors as of `open_run`."""
  try:
    config, method, variables = edm_checkpoint.load_run(path)
  except ValueError as error:
    raise UsageError(f"{flag}={error}") from None
  config = override(config)
  config_lib.check(config)
  config_lib.choose("sampling.sampler", config.sampling.sampler, method.samplers)
  return Model(config, method, variables, None, epath.Path(path).name)


def provenance(path: str, step: int | None) -> dict:
  """The name, step and SHA-256 of a run's checkpoint or, with None, of a published pickle, for records."""
  path = epath.Path(path)
  sha256 = features.sha256(path) if step is None else checkpoint.fingerprint(path, step)
  return {"name": path.name, "step": step, "sha256": sha256}


def define_sampler():
  """Defines --autoencoder, and a flag for every field of config.sampling.

  Returns (config, sampler=None) -> the config with them put in.

  `sampler` goes in place of --sampler. It brings its grid along, see `sampling.with_sampler`, unless --grid is given.
  """
  default = config_lib.default().sampling
  kinds = {bool: flags.DEFINE_bool, str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
  notes = {
    "sigma_min_search": "; of the dpdm grid alone, samplers on other grids have nothing to search",
    "grid": ", or that of --sampler where one is given",
  }
  holders = {
    name: kinds[type(value)](name, None, f"config.sampling.{name}; the run's own by default{notes.get(name, '')}.")
    for name, value in default.items()
  }
  autoencoder = flags.DEFINE_string("autoencoder", None, "config.latent.autoencoder, where it has been moved.")

  def override(config: ConfigDict, sampler: str | None = None) -> ConfigDict:
    given = {name: holder.value for name, holder in holders.items() if holder.value is not None}
    config = sampling.with_sampler(config, sampler or given.get("sampler", config.sampling.sampler))
    if given.get("sigma_min_search"):
      if given.get("sigma_min"):
        raise UsageError(f"--sigma_min={given['sigma_min']:g}: goes without --sigma_min_search, which finds one")
      config.sampling.sigma_min = 0.0  # the run's own would go before the search
    config.sampling.update({name: value for name, value in given.items() if name != "sampler"})
    if autoencoder.value is not None:
      config.latent.autoencoder = autoencoder.value
    return config

  return override


def nfe_steps(nfe: str, config: ConfigDict, method: methods.Method, nearest: bool = False) -> int | None:
  """The steps with which config.sampling's sampler spends `nfe` evaluations; else a UsageError names the nearest.

  Args:
    nfe: a number.
    config: the run's config.
    method: its method.
    nearest: take the most evaluations that are not more, in place of an error; None where there are none.
  """
  if not nfe.isdigit() or not int(nfe):
    raise UsageError(f"--nfe={nfe}: expected positive whole numbers such as 9,17,35")
  config, spends = config.copy_and_resolve_references(), {}
  for steps in range(1, int(nfe) + 1):
    config.sampling.num_steps = steps
    try:
      spent = sampling.evaluations(config.sampling, method)
    except config_lib.ConfigError:  # a grid that has no so few steps, or a solver that needs more
      continue
    if spent is None:
      raise UsageError(f"--nfe={nfe}: {config.sampling.sampler} spends what --rtol and --atol ask for")
    if spent == int(nfe):
      return steps
    spends.setdefault(spent, steps)
    if spent > int(nfe):
      break
  if nearest:
    fewer = [spent for spent in spends if spent < int(nfe)]
    return spends[max(fewer)] if fewer else None
  closest = min(spends, key=lambda spent: abs(spent - int(nfe)), default=None)
  raise UsageError(f"--nfe={nfe}: {config.sampling.sampler} cannot spend that; nearest: {closest}")
