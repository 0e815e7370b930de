"""The frame of the command-line programs: flags, config overrides, one line and exit code 2 for a user's mistake."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from diffusion_jax import config as config_lib
from diffusion_jax import files, mesh, methods, sampling
from diffusion_jax.data.sources import DataError
from diffusion_jax.evaluation import bench, features, r_table, scoring, sigma_min
from diffusion_jax.interop import edm_checkpoint
from diffusion_jax.study import StudyError
from diffusion_jax.training import checkpoint
from diffusion_jax.training.checkpoint import SaveError, WorkdirError
from diffusion_jax.training.faults import Diverged
from diffusion_jax.types import Params


class UsageError(ValueError):
  """A flag with a wrong value; the message is one line."""


def run(main: Callable[[], None]):
  """Parses the flags, runs main(), and ends the process.

  The exit code is 0 when done, 2 for a user's mistake, 1 for a run that diverged or cannot write; the watchdog's is 3.
  """

  def guarded(argv):
    _arguments[:] = argv[1:]
    logging.set_verbosity(logging.WARNING)
    logging.logging.getLogger("gcsfs").setLevel(logging.logging.CRITICAL)  # it prints the traceback of all it raises
    try:
      main()
    except (UsageError, config_lib.ConfigError, WorkdirError, DataError, StudyError) as error:
      _end(error, 2)
    except (Diverged, SaveError) as error:
      _end(error, 1)
    except Exception as error:
      if files.why_not(error) is None:
        raise
      _end(files.why_not(error), 2)

  app.run(guarded, flags_parser=_parse)


_arguments: list[str] = []


def arguments() -> list[str]:
  """What stands on the command line beside flags."""
  return list(_arguments)


def _end(error, code: int):
  print(f"error: {error}", file=sys.stderr)
  sys.exit(code)


def _parse(argv):
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    lines = str(error).split("\n")
    because = f" {lines[-2]}" if "Traceback" in str(error) else ""  # of a ValueError or TypeError in a config file
    _end(lines[0] + because, 2)
  except Exception as error:  # an override of a field that does not exist, or whatever a config file raises
    given = {arg.lstrip("-").partition("=")[0]: arg for arg in argv[1:]}
    unread = [given[name] for name in _configs if name in given and flags.FLAGS[name].value is None]
    file = unread[0] if unread else given.get("config", "--config")
    message = " ".join(str(error).split())
    _end(_unknown_override(argv) or f"{file} cannot be read: {type(error).__name__}: {message}", 2)


def _unknown_override(argv) -> str | None:
  known = config_lib.flatten(config_lib.default())
  for arg in argv[1:]:
    name, _, value = arg.lstrip("-").partition("=")
    prefix, _, field = name.partition(".")
    if prefix in _configs and field and field not in known:
      return config_lib.of_file(prefix, config_lib.unknown_field(field, value, known)).args[0]
  return None


_configs: list[str] = []  # names of the flags of this program that are a config file


def define_config(
  name: str = "config", about: str = "Config file, for instance configs/edm_digits.py", required: bool = True
):
  """Defines --config=FILE with --config.field=value overrides; returns a function that gives the config.

  Args:
    name: of the flag.
    about: what the file is.
    required: raise a UsageError where it is left out; else the config is None.
  """
  holder = config_flags.DEFINE_config_file(name, None, about)
  _configs.append(name)

  def get() -> ConfigDict | None:
    if holder.value is None:
      if not required:
        return None
      raise UsageError(f"--{name} is missing: give a file such as configs/edm_digits.py")
    if not isinstance(holder.value, ConfigDict):
      raise UsageError(f"--{name}={flags.FLAGS[name].config_filename}: no such file, or it has no get_config()")
    return holder.value

  return get


def define_hosts() -> Callable[[], None]:
  """Defines --multihost, where the hosts meet, and --compilation_cache; returns the function that sees to them."""
  multihost = flags.DEFINE_bool(
    "multihost", None, "Join the other hosts; by default where Slurm, MPI, the TPU environment or --coordinator say so."
  )
  coordinator = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the cluster does not tell.")
  processes = flags.DEFINE_integer("num_processes", None, "Number of hosts, where the cluster does not tell.")
  process = flags.DEFINE_integer("process_id", None, "Number of this host, where the cluster does not tell.")
  cache = flags.DEFINE_string("compilation_cache", None, "Folder in which compiled programs are kept for the next run.")

  def start():
    if cache.value:
      jax.config.update("jax_compilation_cache_dir", cache.value)
    join = multihost.value
    if join is None:
      join = coordinator.value is not None or _cluster_size(os.environ) > 1
    if not join and (processes.value is not None or process.value is not None):
      raise UsageError("--num_processes and --process_id need --coordinator=HOST:PORT")
    if join:
      try:
        jax.distributed.initialize(coordinator.value, processes.value, process.value)
      except (RuntimeError, ValueError) as error:
        raise UsageError(f"--multihost: the hosts cannot be joined: {' '.join(str(error).split())}") from None

  return start


def _cluster_size(environment: Mapping[str, str]) -> int:
  """The processes that were started together with this one, as far as the environment tells."""
  hosts = environment.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
  counts = [environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
  return max([hosts, *(int(count) for count in counts if count.isdigit())])


class Model(NamedTuple):
  """What is sampled from: a run's checkpoint, or a published one."""

  config: ConfigDict
  method: methods.Method
  variables: Params
  step: int | None  # of the checkpoint; None for a published one
  name: str  # for messages


class ModelFlags:
  """The flags --workdir, --step and those of config.sampling, and --checkpoint; not those of what is False.

  With `classifier` the run is one of method classifier, and else of one that draws images.
  """

  def __init__(self, published: bool = True, sampling: bool = True, classifier: bool = False):
    self._classifier = classifier
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
      model = open_run(str(folder), "--workdir", self._step.value, self._with_sampler_flags, self._classifier)
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
) -> Model:
  """Loads a run's checkpoint.

  Args:
    path: the workdir.
    flag: that the user gave it by.
    step: a number, or "best"; the newest by default.
    override: config -> config; puts the user's fields in.
    classifier: whether the run must be of method classifier, or of one that draws images.

  Raises:
    UsageError: there is no such checkpoint, it cannot be read, or it is of the other kind.
    ConfigError: a field's value is wrong.
  """
  if step is not None and step != "best" and not step.isdigit():
    raise UsageError(f"--step={step}: expected a number, or best")
  choose = {None: checkpoint.newest_whole, "best": checkpoint.best}.get(step, lambda _: step)
  try:
    config = checkpoint.read_config(path)
    if (config.method == "classifier") != classifier:
      draws = "draws no images; experiments/classify.py measures it"
      expected = f"expected a run of method 'classifier', not {config.method!r}" if classifier else draws
      raise UsageError(f"{flag}={path}: {'' if classifier else 'a classifier, which '}{expected}")
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


class ScoreFlags:
  """The flags that say what is measured, against which real images, on how many.

  With `default` these metrics are measured by default, and with `images` the real images themselves must be there: a
  file of their statistics is not enough, and they are one block by default.
  """

  def __init__(self, default: Sequence[str] | None = None, images: bool = False):
    self._default, self._needs_images = default, images
    metrics, what = ", ".join(scoring.METRICS), ", ".join(default or ()) or "what there is for the data"
    self._metrics = flags.DEFINE_list("metrics", None, f"Some of {metrics}; {what} by default.")
    self._extractor = flags.DEFINE_string(
      "extractor", None, "digits, inception or pixels; that of the data, or inception where --inception is given."
    )
    self._files = {
      "inception": flags.DEFINE_string("inception", None, "Weights: weights-inception-2015-12-05-6726825d.pth."),
      "vgg": flags.DEFINE_string("vgg", None, "Weights: vgg16-397923af.pth, for precision and recall by VGG16 too."),
    }
    self._reference = flags.DEFINE_string("reference", None, "Statistics of the real images: .npz of `mu` and `sigma`.")
    images = "The real images: digits, photos, zip:FILE, folder:PATH, npz:FILE or tfds:NAME; the run's own by default."
    self._data = flags.DEFINE_string("data", None, images)
    self._split = flags.DEFINE_string("split", None, "Their split; all of digits, else the run's own by default.")
    self._num_images = flags.DEFINE_integer("num_images", None, "Images a block; as many as the real ones by default.")
    best = "" if images else "; papers report the best of three"
    self._blocks = flags.DEFINE_integer("blocks", 1 if images else 3, f"Blocks of seeds{best}.")

  def check_real(self, config: ConfigDict | None):
    """Raises UsageError unless there are real images: those of a run's config, or by a flag."""
    if (config and config.data.name != "none") or self._data.value:
      return
    if self._needs_images:
      raise UsageError("the real images are missing: --data=digits or --data=zip:FILE")
    if not self._reference.value:
      raise UsageError("the real images are missing: --data=digits, --data=zip:FILE or --reference=FILE.npz")

  def scorers(self, config: ConfigDict | None, image_shape: tuple[int, int, int]) -> list[scoring.Scorer]:
    """What is to be measured.

    Args:
      config: of the run; None if there is none.
      image_shape: (H, W, C) of the images to be scored.

    Raises:
      UsageError: a flag is missing or wrong, or a file cannot be read.
    """
    self.check_real(config)
    own = config is not None and config.data.name != "none"
    config = config.copy_and_resolve_references() if own else config_lib.default()
    if self._data.value or not own:
      name, _, path = (self._data.value or "").partition(":")
      if name != config.data.name:  # how the run's own images lie and are brought to their size is not how these are
        config.data.update(transform="", data_dir="")
      config.data.update(name=name, path=path, split=self._split.value or "train")
    config.data.update(resolution=image_shape[0], channels=image_shape[-1], num_classes=0)
    if self._split.value:
      config.data.split = self._split.value
    files = {name: flag.value for name, flag in self._files.items()}
    return checked(
      bench.scorers_for, config, self._metrics.value or self._default, self._extractor.value, files,
      self._reference.value, whole=not self._split.value, images=self._needs_images,
    )  # fmt: skip

  def protocol(self, scorers: list[scoring.Scorer], available: int | None = None) -> tuple[int, int]:
    """(images a block, blocks); `available` images are there if they are not drawn.

    Raises:
      UsageError: a number is missing or out of range.
    """
    blocks, count = self._blocks.value, self._num_images.value
    if available is not None:
      if flags.FLAGS["blocks"].present and blocks != 1:
        raise UsageError(f"--blocks={blocks}: images that are there already are one block")
      blocks, count = 1, available if count is None else count
      if count > available:
        raise UsageError(f"--num_images={count}: there are {available}")
    if count is None and self._needs_images:
      count = scorers[0].real.num_images
    if count is None:
      count = scorers[0].reference(scorers[0].metrics[0]).num_images or scoring.STANDARD
    least = max(scoring.minimum_images(scorer.metrics) for scorer in scorers)
    if count < least:
      raise UsageError(f"--num_images={count}: at least {least} for these metrics")
    if blocks < 1:
      raise UsageError(f"--blocks={blocks}: at least 1")
    return count, blocks


def nfe_steps(nfe: str, config: ConfigDict, method: methods.Method) -> int:
  """The steps with which config.sampling's sampler spends `nfe` evaluations; else a UsageError names the nearest."""
  if not nfe.isdigit() or not int(nfe):
    raise UsageError(f"--nfe={nfe}: expected positive whole numbers such as 9,17,35")
  config, nearest = config.copy_and_resolve_references(), None
  for steps in range(1, int(nfe) + 1):
    config.sampling.num_steps = steps
    try:
      spent = sampling.evaluations(config.sampling, method)
    except config_lib.ConfigError:  # a grid that has no so few steps
      continue
    if spent == int(nfe):
      return steps
    if nearest is None or abs(spent - int(nfe)) < abs(nearest - int(nfe)):
      nearest = spent
    if spent > int(nfe):
      break
  raise UsageError(f"--nfe={nfe}: {config.sampling.sampler} cannot spend that; nearest: {nearest}")


def checked(function: Callable, *args, **kwargs):
  """function(…), its ValueError as a UsageError: for arguments that a user has given."""
  try:
    return function(*args, **kwargs)
  except (UsageError, config_lib.ConfigError, WorkdirError, DataError, StudyError):
    raise
  except ValueError as error:
    raise UsageError(" ".join(str(error).split())) from None


def seeds(text: str) -> list[int]:
  """Reads "0-3,7" as [0, 1, 2, 3, 7].

  Raises:
    UsageError: it is not a list of numbers and ranges.
  """
  out = []
  try:
    for part in text.split(","):
      first, dash, last = part.strip().partition("-")
      numbers = range(int(first), int(last if dash else first) + 1)
      if not numbers or numbers[-1] >= 2**32:
        raise ValueError
      out += numbers
  except ValueError:
    raise UsageError(f"--seeds={text}: expected numbers and ranges in [0, 2^32) such as 0-63,100") from None
  return out


def define_sampler():
  """Defines a flag for every field of config.sampling; returns (config, sampler=None) -> the config with them put in.

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

  def override(config: ConfigDict, sampler: str | None = None) -> ConfigDict:
    given = {name: holder.value for name, holder in holders.items() if holder.value is not None}
    config = sampling.with_sampler(config, sampler or given.get("sampler", config.sampling.sampler))
    if given.get("sigma_min_search"):
      if given.get("sigma_min"):
        raise UsageError(f"--sigma_min={given['sigma_min']:g}: goes without --sigma_min_search, which finds one")
      config.sampling.sigma_min = 0.0  # the run's own would go before the search
    config.sampling.update({name: value for name, value in given.items() if name != "sampler"})
    return config

  return override
