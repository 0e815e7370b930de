"""The frame of the programs: config overrides, hosts, one line and exit code 2 for a user's mistake."""

import os
import sys
from collections.abc import Callable, Mapping

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from diffusion_jax import config as config_lib
from diffusion_jax import files
from diffusion_jax.data.sources import DataError
from diffusion_jax.study import StudyError
from diffusion_jax.training.checkpoint import SaveError, WorkdirError
from diffusion_jax.training.faults import Diverged


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
