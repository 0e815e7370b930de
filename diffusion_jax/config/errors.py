"""The error of a config, and what finds the name that was meant."""

import difflib

from ml_collections import ConfigDict


class ConfigError(ValueError):
  """A config that cannot be run; its message is one line: the field, its value, what was expected."""


def wrong(field: str, value, expected: str) -> ConfigError:
  """The error of one field."""
  return ConfigError(f"config.{field} = {value!r}: {expected}")


def of_file(name: str, error: ConfigError) -> ConfigError:
  """The same error of another config than the run's own, such as "init_config"."""
  return ConfigError(str(error).replace("config.", f"{name}.", 1))


def choose(field: str, value: str, choices):
  """choices[value] of a dict, or `value` of a tuple; a ConfigError that names the nearest choice if it is none."""
  if value not in choices:
    near = difflib.get_close_matches(str(value), choices, 1, 0.0)
    raise wrong(field, value, f"expected one of {', '.join(choices)}" + (f"; nearest: {near[0]}" if near else ""))
  return choices[value] if isinstance(choices, dict) else value


def flatten(config: ConfigDict, prefix: str = "") -> dict:
  """{"train.batch_size": 64, …}: leaves by their dotted names."""
  leaves = {}
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      leaves.update(flatten(value, f"{prefix}{name}."))
    else:
      leaves[prefix + name] = value
  return leaves


def unknown_field(field: str, value, known) -> ConfigError:
  near = difflib.get_close_matches(field, known, 1, 0.0)
  return wrong(field, value, "unknown field" + (f"; nearest: config.{near[0]}" if near else ""))
