"""The Python files that a user gives: studies, sweeps and configs, and what is wrong with one, in a line."""

import contextlib
import inspect
import runpy
import traceback
from collections.abc import Mapping

from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.study.description import Study, StudyError


def load(path: str) -> Study:
  """The study of a file, "experiments/studies/NAME.py" or with an argument of its get_study(), "NAME.py:FOLDER".

  Raises:
    StudyError: there is no such file, or it is not a study.
  """
  study = call(path, "get_study")
  if not isinstance(study, Study):
    raise StudyError(f"{path}: get_study() must return a diffusion_jax.study.Study, got {type(study).__name__}")
  return study


def load_config(path: str, fields: Mapping[str, object] = {}) -> ConfigDict:
  """The config of a file with its argument, and fields by dotted names put in.

  Raises:
    StudyError: there is no such file, or it has no get_config().
    ConfigError: a field is unknown or of another type.
  """
  config = call(path, "get_config")
  if not isinstance(config, ConfigDict):
    raise StudyError(f"{path}: get_config() must return a ConfigDict, got {type(config).__name__}")
  override(config, fields)
  return config


def override(config: ConfigDict, fields: Mapping[str, object]):
  """Puts fields by dotted names into a config; raises ConfigError for one that is unknown or of another type."""
  known = config_lib.flatten(config)
  for field, value in fields.items():
    if field not in known:
      raise config_lib.unknown_field(field, value, known)
    try:
      config.update_from_flattened_dict({field: value})
    except TypeError:
      raise config_lib.wrong(field, value, f"expected {type(known[field]).__name__}") from None


def call(path: str, name: str):
  """What a function of a Python file returns, "FILE.py" or with an argument of the function "FILE.py:ARGUMENT".

  Raises:
    StudyError: there is no such file, it has no such function, it or the function fails, or nothing is returned.
    ConfigError: of the file or the function, as it is.
  """
  file, _, argument = str(path).partition(":")
  if not epath.Path(file).is_file():
    raise StudyError(f"{file}: no such file")
  with _one_line(file):
    function = runpy.run_path(file).get(name)
  if not callable(function):
    raise StudyError(f"{file} has no {name}()")
  parameters = inspect.signature(function).parameters.values()
  if argument and not parameters:
    raise StudyError(f"{path}: {name}() takes no argument")
  if not argument and any(
    p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
  ):
    raise StudyError(f"{path}: {name}() needs an argument, as {file}:ARGUMENT")
  with _one_line(file):
    value = function(argument) if argument else function()
  if value is None:
    raise StudyError(f"{path}: {name}() returns nothing")
  return value


@contextlib.contextmanager
def _one_line(file: str):
  """Whatever a Python file raises as a StudyError with its place in the file."""
  try:
    yield
  except (StudyError, config_lib.ConfigError):  # which name what is wrong themselves
    raise
  except SyntaxError as error:
    raise StudyError(_said(file, error, error.msg, error.lineno if error.filename == file else None)) from None
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)
    raise StudyError(_said(file, error, str(error), line)) from None


def _said(file: str, error: Exception, message: str, line: int | None) -> str:
  message = " ".join(filter(None, [f"{type(error).__name__}:", *message.split()]))
  return f"{file}: {message}" + (f" (line {line})" if line else "")
