"""The config tree: what every file under configs/ must satisfy, and the one-line errors of a wrong one."""

import importlib.util
import io
import json
import re
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from diffusion_jax import config as config_lib
from diffusion_jax import methods, sampling
from diffusion_jax.data import latents, sources
from diffusion_jax.training import checkpoint, start, warm

ROOT = Path(__file__).parents[1] / "configs"
_ATTENUATIONS = ["constant", "linear", "quadratic", "exponential", "sine"]
_LETTERS = [f"{network}-{letter}" for network in ("vp", "ve") for letter in "ABCDEF"]
# What may follow the colon of --config=FILE:ROW.
ROWS = {
  "edm_cifar10": [f"{classes}-{row}" for classes in ("cond", "uncond") for row in _LETTERS],
  "dpdm_cifar10": ["uncond", "cond"],
  "dual_cifar10": ["linear", "cosine"],
  "dddm_cifar10": ["1000", "8000", "1000-deep"],
  "dddm_imagenet64": ["plain", "deep"],
  "dual_digits": ["linear", "cosine"],
  "classifier_digits": ["linear", "cosine"],
  "ddm_cifar10": _ATTENUATIONS,
  "ddm_digits": _ATTENUATIONS,
  "ddm_photos": _ATTENUATIONS,
  "edm_ffhq64": _LETTERS,
  "edm_afhqv2_64": _LETTERS,
  "ablations/table1_digits": ["vp", "ve", "ve100", "iddpm", "edm", "iddpm_vlb"],
  "ablations/table2_digits": _LETTERS,
  "ablations/table2_photos": _LETTERS,
  "ablations/sampling_digits": [f"{t}-{g}-{p}-heun" for t, g, p in zip(("vp", "iddpm"), ("ve", "edm"), ("edm", "ve"))],
}
PATHS = [path for path in sorted(ROOT.rglob("*.py")) if path.parent.name != "sweeps"]
FILES = [str(path.relative_to(ROOT).with_suffix("")) for path in PATHS]
CONFIGS = [(name, row) for name in FILES for row in ROWS.get(name, [None])]


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def with_(**fields):
  """The demo's config with {"train__batch_size": 3}-like changes, types unchecked."""
  config = load(ROOT / "edm_digits.py").get_config()
  with config.unlocked(), config.ignore_type():
    for name, value in fields.items():
      *sections, field = name.split("__")
      node = config
      for section in sections:
        node[section] = node.get(section, ConfigDict())
        node = node[section]
      node[field] = value
  return config


def get_config(name, row):
  module = load(ROOT / f"{name}.py")
  return module, module.get_config() if row is None else module.get_config(row)


def small_zip(path, config):
  """One black image of every class, of the size that the config names."""
  data = io.BytesIO()
  shape = (config.data.resolution, config.data.resolution, config.data.channels)
  Image.fromarray(np.zeros(shape, np.uint8)).save(data, "png")
  names = [f"00000/img{i:08d}.png" for i in range(max(config.data.num_classes, 1))]
  with zipfile.ZipFile(path, "w") as archive:
    for name in names:
      archive.writestr(name, data.getvalue())
    archive.writestr("dataset.json", json.dumps({"labels": [[name, i] for i, name in enumerate(names)]}))


def small_latents(path, config):
  """Of the test digits, N(0, I) each, of the size that the config names."""
  shape = (config.data.resolution, config.data.resolution, config.data.channels)
  encode = lambda images: (np.zeros((len(images), *shape), np.float32), np.zeros((len(images), *shape), np.float32))
  latents.write(path, sources.load("digits", "test"), encode, {"sha256": ""}, {"name": "digits", "path": ""})


@pytest.mark.parametrize("name, row", CONFIGS)
def test_every_config_file_can_be_run(name, row, tmp_path):
  """It passes the checks for eight devices, makes a method, fits its data, and comes back from disk as it was."""
  module, config = get_config(name, row)
  config_lib.check(config, 4 if config.train.batch_size == 12 else 8)  # the paper's batch, of DIV2K
  methods.from_config(config)
  if config.data.name == "zip":
    assert config.data.path in module.__doc__
    config.data.path = str(tmp_path / "data.zip")
    small_zip(config.data.path, config)
  if config.data.name == "latents":
    assert config.data.path in module.__doc__
    config.data.path = str(tmp_path / "latents")
    small_latents(config.data.path, config)
  sources.from_config(config)
  checkpoint.write_config(tmp_path, config)
  old, new = config_lib.flatten(config), config_lib.flatten(checkpoint.read_config(tmp_path))
  assert old == new and [type(v) for v in old.values()] == [type(new[k]) for k in old]
  assert f"--config=configs/{name}.py" in module.__doc__


# The networks' sizes (PAPERS' table; the paper's Table 7 and the published checkpoints).
SIZES = [
  ("edm_cifar10", "cond-vp-F", 55_735_299), ("edm_cifar10", "uncond-ve-F", 56_397_827),
  ("edm_ffhq64", "vp-F", 61_805_571), ("edm_afhqv2_64", "ve-F", 62_761_091), ("edm_imagenet64", None, 295_899_267),
  ("classifier_imagenet128", None, 42_568_040),  # counted by hand in nets/test_classifier.py
]  # fmt: skip


def test_pupils_have_the_networks_of_their_teachers():
  """Those of the paper's Tables 2 and 3 are the published EDM networks, whose runs are as well their teachers."""
  for pupil, teacher in (
    (("dpdm_cifar10", "uncond"), ("edm_cifar10", "uncond-vp-F")),
    (("dpdm_cifar10", "cond"), ("edm_cifar10", "cond-vp-F")),
    (("dpdm_imagenet64", None), ("edm_imagenet64", None)),
    (("dpdm_digits", None), ("edm_digits", None)),
  ):
    config = get_config(*pupil)[1]
    method, source = methods.from_config(config), warm.to_come(get_config(*teacher)[1])
    assert not any(warm.fit(source, method, config).reasons.values())


@pytest.mark.parametrize("name, row, count", SIZES)
def test_the_published_configs_have_the_published_networks(name, row, count):
  _, config = get_config(name, row)
  method = methods.from_config(config)
  params = jax.eval_shape(method.init, jax.random.key(0), start.example_batch(config)).params
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_the_letters_of_table_2_change_what_the_paper_says():
  rows = {letter: config_lib.flatten(get_config("edm_cifar10", f"uncond-vp-{letter}")[1]) for letter in "ABCDEF"}
  changed = {
    b: {field for field in rows[a] if rows[a][field] != rows[b][field]} for a, b in zip("ABCDE", "BCDEF")
  }
  assert changed["B"] == {
    "train.batch_size", "train.num_steps", "optimizer.learning_rate", "optimizer.warmup_images", "optimizer.clip_norm",
    "ema.half_life_images", "ema.ramp_up", "network.dropout",
  }  # fmt: skip
  assert changed["C"] == {"network.channel_mult"} and changed["D"] == {"edm.preconditioner"}
  assert changed["E"] == {"edm.noise", "edm.weight"} and changed["F"] == {"data.flip", "data.augment"}
  digits = [get_config("ablations/table2_digits", f"vp-{letter}")[1] for letter in "ABCDEF"]
  assert not any(config.data.flip for config in digits)  # a mirrored digit is none
  assert rows["F"]["train.batch_size"] * rows["F"]["train.num_steps"] == 200_000_000


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
  (
    {"sampling__sigma_max": 0.001, "sampling__sigma_min": 0.002},
    r"config.sampling.sigma_max = 0.001: must be at least sampling.sigma_min",
  ),
  ({"sampling__sigma_max": 0.001}, r"config.sampling.sigma_max = 0.001: must be at least sigma_min = 0.002"),
  ({"sampling__grid": "emd"}, r"config.sampling.grid = 'emd': .*nearest: edm"),
  ({"sampling__process": "vq"}, r"config.sampling.process = 'vq': .*nearest: v"),
  ({"sampling__grid": "iddpm", "sampling__num_steps": 2000}, r"config.sampling.num_steps = 2000: .* levels"),
  (
    {"sampling__variance": "learned", "sampling__sampler": "ddpm"},
    r"config.sampling.variance = 'learned': needs a network with edm.vlb_weight",
  ),
  ({"sampling__variance": "learnt"}, r"config.sampling.variance = 'learnt': .*nearest: learned"),
  ({"sampling__eta": 3.0, "sampling__sampler": "ddim"}, r"config.sampling.eta = 3.0: must be in \[0, 1\]"),
  ({"sampling__s_max": -1.0}, r"config.sampling.s_max = -1.0: must be at least"),
  ({"sampling__s_noise": -1.0}, r"config.sampling.s_noise = -1.0: must not be negative"),
  ({"sampling__grid": "vp", "sampling__sigma_min": 0.5}, r"config.sampling.sigma_min = 0.5: too large for vp"),
  ({"sampling__sigma_max": float("inf")}, r"config.sampling.sigma_max = inf: must be finite"),
  ({"network__dtype": "float16"}, r"config.optimizer.loss_scale = 1.0: too small for network.dtype"),
  ({"optimizer__loss_scale": 0.5, "optimizer__loss_scale_growth": 9}, r"config.optimizer.loss_scale = 0.5: "),
  ({"edm__vlb_weight": 0.001}, r"config.edm.vlb_weight = 0.001: must be 0 unless"),
  ({"data__augment": 1.5}, r"config.data.augment = 1.5: must be a probability"),
  ({"data__augment": 0.1, "data__flip": True}, r"config.data.flip = True: must be False with data.augment"),
  ({"optimizer__loss_scale": 0.0}, r"config.optimizer.loss_scale = 0.0: must be positive"),
  ({"network__freqs": (1.0, 2.0), "network__arch": "ncsnpp"}, r"config.network.freqs = .* 32 numbers"),
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
    config = with_(**changes)
    sampling.schedule_of(config.sampling, methods.from_config(config))
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
  ({"data__split": "trian"}, r"config.data.split = 'trian': "),
  ({"data__resolution": 16}, r"config.data.resolution, data.channels = \(16, 16, 1\): digits has images \(8, 8, 1\)"),
  ({"data__channels": 3}, r"\(8, 8, 3\): digits has images \(8, 8, 1\)"),
  ({"data__num_classes": 7}, r"config.data.num_classes = 7: digits has 10"),
])  # fmt: skip
def test_data_that_does_not_fit_is_an_error(changes, pattern):
  with pytest.raises(config_lib.ConfigError) as error:
    sources.from_config(with_(**changes))
  assert re.search(pattern, str(error.value)), str(error.value)
  assert "\n" not in str(error.value)
