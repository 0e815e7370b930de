"""A run with a task starts from published weights of its encoder, and from a run without a task."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from interop import torch_files
from training import tiny

from diffusion_jax import methods
from diffusion_jax.config import ConfigError
from diffusion_jax.nets import swin
from diffusion_jax.training import start, warm

ENCODER = "net/encoder/swin/"


def flat(tree):
  return traverse_util.flatten_dict(tree, sep="/")


def conditional(**fields):
  c = tiny.get_config()
  c.task.name = "superres"
  c.data.update(name="photos", resolution=16, channels=3, num_classes=0)
  c.network.channel_mult, c.label_dropout = (1, 1), 0.0
  c.condition.update(encoder="swin_t", upsample=2)
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


@pytest.fixture
def published(monkeypatch, tmp_path):
  """A file as torch.save writes it, of a small Swin in place of Swin-T, and its parameters here."""
  monkeypatch.setitem(swin.VARIANTS, "t", (8, (1, 1), 2))
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  shapes = jax.eval_shape(swin.of_variant("t").init, jax.random.key(0), image)["params"]
  rng, tensors, params = np.random.default_rng(0), {}, {}
  for path, leaf in traverse_util.flatten_dict(shapes).items():
    value = params[path] = rng.standard_normal(leaf.shape, np.float32)
    name = ".".join(path[:-1]).replace("_", ".") + "." + {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])
    swapped = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    tensors[name] = swapped if path[-1] == "kernel" else value
  file = tmp_path / "swin.pth"
  file.write_bytes(torch_files.state_dict_file(tensors))
  return str(file), flat(traverse_util.unflatten_dict(params))


def test_the_encoder_takes_published_weights(published, tmp_path):
  """They are in the first state and its averages; all else starts by itself, and the report says so."""
  path, expected = published
  config = conditional(condition__weights=path)
  method = methods.from_config(config)
  fit = warm.with_encoder(None, method, config, "nowhere")
  assert {name for name in fit.taken} == {ENCODER + name for name in expected}
  fast = {"xla_backend_optimization_level": 0}  # it runs once
  state = warm.take(jax.jit(lambda: start.create_state(method, config), compiler_options=fast)(), fit)
  for tree in (state.params, state.ema):
    for name, value in expected.items():
      np.testing.assert_array_equal(flat(tree)[ENCODER + name], value)
  warm.report(fit, config, tmp_path)
  record = json.loads((tmp_path / "init_from.json").read_text())
  assert record["condition.weights"] == path and len(record["taken"]) == len(expected)
  assert all(not name.startswith(ENCODER) for name in record["not_taken"])


@pytest.mark.parametrize("fields, message", [
  (dict(condition__weights="no.pth"), r"condition.weights = 'no.pth': no.pth: no such file"),
  (dict(condition__encoder="swin_b"), r"condition.weights = .*: (missing|unexpected) tensor|has shape"),
])  # fmt: skip
def test_weights_of_another_network_are_named(published, fields, message):
  config = conditional(**{"condition__weights": published[0], **fields})
  with pytest.raises(ConfigError, match=message):
    warm.with_encoder(None, None, config, "nowhere")


def test_the_unconditional_network_is_that_of_a_run_without_a_task():
  """Every parameter of it, by its name and shape, so that init_from and frozen see one network."""
  conv = conditional(condition__encoder="conv", condition__upsample=1)
  plain = conditional(task__name="", condition__encoder="conv", condition__upsample=1)
  shapes = [flat(start.shapes(methods.from_config(config), config).params) for config in (conv, plain)]
  more = shapes[0].keys() - shapes[1].keys()
  assert all(shapes[0][name].shape == leaf.shape for name, leaf in shapes[1].items())
  assert more and all("_join/" in name or name.startswith("net/encoder/") for name in more)
