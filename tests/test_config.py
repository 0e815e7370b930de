"""The config tree: what every file under configs/ must satisfy, and the one-line errors of a wrong one."""

import importlib.util
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import methods
from diffusion_jax.training import checkpoint, loop

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def with_(**fields):
  """The demo's config with {"train__batch_size": 3}-like changes, types unchecked."""
  config = load(Path(__file__).parents[1] / "configs" / "edm_digits.py").get_config()
  with config.unlocked(), config.ignore_type():
    for name, value in fields.items():
      *sections, field = name.split("__")
      node = config
      for section in sections:
        node[section] = node.get(section, ConfigDict())
        node = node[section]
      node[field] = value
  return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_can_be_run(path, tmp_path):
  """It passes the checks for eight devices, makes a method, fits its data, and comes back from disk as it was."""
  module = load(path)
  config = module.get_config()
  config_lib.check(config, 8)
  methods.from_config(config)
  loop.load_source(config)
  checkpoint.write_config(tmp_path, config)
  old, new = config_lib.flatten(config), config_lib.flatten(checkpoint.read_config(tmp_path))
  assert old == new and [type(v) for v in old.values()] == [type(new[k]) for k in old]
  assert f"--config=configs/{path.name}" in module.__doc__


def test_the_default_is_a_valid_config():
  config_lib.check(config_lib.default(), 8)


# {changes}: what the error must say, as a pattern.
WRONG = [
  ({"train__batch_sise": 3}, r"config.train.batch_sise = 3: .*config.train.batch_size"),
  ({"netwrok__channels": 3}, r"config.netwrok.channels = 3: .*config.network.channels"),
  ({"train__batch_size": 64.0}, r"config.train.batch_size = 64.0: expected int, got float"),
  ({"train__batch_size": True}, r"config.train.batch_size = True: expected int, got bool"),
  ({"network__dropout": "high"}, r"config.network.dropout = 'high': expected float, got str"),
  ({"data__flip": 1}, r"config.data.flip = 1: expected bool, got int"),
  ({"network__channel_mult": 2}, r"config.network.channel_mult = 2: expected tuple of int, got int"),
  ({"network__channel_mult": (1, 2.5)}, r"config.network.channel_mult = \(1, 2.5\): expected tuple of int"),
  ({"network__channel_mult": ()}, r"config.network.channel_mult = \(\): "),
  ({"optimizer__learning_rate": float("nan")}, r"config.optimizer.learning_rate = nan: must be positive"),
  ({"optimizer__learning_rate": 0.0}, r"config.optimizer.learning_rate = 0.0: must be positive"),
  ({"optimizer__clip_norm": -1.0}, r"config.optimizer.clip_norm = -1.0: must not be negative"),
  ({"train__num_steps": 0}, r"config.train.num_steps = 0: must be positive"),
  ({"seed": -1}, r"config.seed = -1: must not be negative"),
  ({"label_dropout": 1.0}, r"config.label_dropout = 1.0: must be in \[0, 1\)"),
  ({"optimizer__beta1": 1.0}, r"config.optimizer.beta1 = 1.0: "),
  ({"optimizer__beta2": -0.5}, r"config.optimizer.beta2 = -0.5: "),
  ({"optimizer__epsilon": 0.0}, r"config.optimizer.epsilon = 0.0: "),
  ({"sampling__sigma_max": 0.001}, r"config.sampling.sigma_max = 0.001: must be at least sampling.sigma_min"),
  ({"sampling__sampler": "huen"}, r"config.sampling.sampler = 'huen': .*heun"),
  ({"sampling__sampler": "ddim", "sampling__churn": 5.0}, r"config.sampling.churn = 5.0: .*ddim"),
  ({"sampling__eta": 0.5}, r"config.sampling.eta = 0.5: .*heun"),
  ({"sampling__guidance": 2.0, "label_dropout": 0.0}, r"config.sampling.guidance = 2.0: .*label_dropout"),
  ({"train__updates_per_call": 7}, r"config.train.log_every = 50: must be a multiple of updates_per_call \(7\)"),
  ({"method": "edn"}, r"config.method = 'edn': .*edm"),
  ({"edm__preconditioner": "vpp"}, r"config.edm.preconditioner = 'vpp': .*vp"),
  ({"edm__noise": "normal"}, r"config.edm.noise = 'normal': .*lognormal"),
  ({"edm__weight": "one"}, r"config.edm.weight = 'one': .*inverse_variance"),
  ({"network__arch": "admm"}, r"config.network.arch = 'admm': .*adm"),
  ({"network__dtype": "float31"}, r"config.network.dtype = 'float31': .*float32"),
  ({"network__channels": 42}, r"config.network.channels = 42: .*GroupNorm groups"),
  ({"network__arch": "adm", "network__channels": 96, "network__channel_mult": (1, 1)}, r"network.channels = 96: .*64"),
  ({"network__attention_resolutions": (5,)}, r"config.network.attention_resolutions = \(5,\): .*\[8, 4\]"),
  ({"network__channel_mult": (1, 1, 1, 1, 1)}, r"config.data.resolution = 8: .*16"),
  ({"network__dropout": 1.0}, r"config.network.dropout = 1.0: "),
]  # fmt: skip


@pytest.mark.parametrize("changes, pattern", WRONG, ids=lambda v: "-".join(v) if isinstance(v, dict) else "")
def test_a_wrong_field_is_one_line_with_name_value_and_expectation(changes, pattern):
  with pytest.raises(config_lib.ConfigError) as error:
    methods.from_config(with_(**changes))
  assert re.search(pattern, str(error.value)), str(error.value)
  assert "\n" not in str(error.value)


def test_a_missing_field_is_named():
  config = with_()
  with config.unlocked():
    del config.ema.ramp_up
  with pytest.raises(config_lib.ConfigError, match="config.ema.ramp_up = None: the field is missing"):
    config_lib.check(config)


@pytest.mark.parametrize("size, devices, accumulation", [(60, 8, 1), (64, 8, 3), (4, 8, 1), (8, 8, 2)])
def test_a_batch_must_divide_over_devices_and_parts(size, devices, accumulation):
  config = with_(train__batch_size=size, train__accumulation=accumulation)
  with pytest.raises(config_lib.ConfigError, match=f"config.train.batch_size = {size}: .*{devices} devices"):
    config_lib.check(config, devices)
  config_lib.check(with_(train__batch_size=48, train__accumulation=3), 8)


@pytest.mark.parametrize("changes, pattern", [
  ({"data__name": "digit"}, r"config.data.name = 'digit': .*nearest: digits"),
  ({"data__split": "trian"}, r"config.data = 'digits/trian': "),
  ({"data__resolution": 16}, r"config.data.resolution, data.channels = \(16, 16, 1\): digits has images \(8, 8, 1\)"),
  ({"data__channels": 3}, r"\(8, 8, 3\): digits has images \(8, 8, 1\)"),
  ({"data__num_classes": 7}, r"config.data.num_classes = 7: digits has 10"),
])  # fmt: skip
def test_data_that_does_not_fit_is_an_error(changes, pattern):
  with pytest.raises(config_lib.ConfigError) as error:
    loop.load_source(with_(**changes))
  assert re.search(pattern, str(error.value)), str(error.value)
  assert "\n" not in str(error.value)
