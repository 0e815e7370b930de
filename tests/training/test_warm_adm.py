"""A Dual-Output run starts from a guided-diffusion checkpoint: from all of it, or from its encoder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from interop import guided_diffusion, torch_files
from training import tiny

from diffusion_jax import methods, process
from diffusion_jax.config import ConfigError
from diffusion_jax.interop import adm_weights
from diffusion_jax.methods import dual_output
from diffusion_jax.training import start, warm

SPEC = guided_diffusion.Spec(
  channel_mult=(1,), attention_ds=(1,), image_channels=1, out_channels=2, num_classes=10, heads=4
)
HEADS = ["net/out_conv/bias", "net/out_conv/kernel"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """A file as torch.save writes it, in half precision."""
  file = tmp_path_factory.mktemp("adm") / "diffusion.pt"
  file.write_bytes(torch_files.state_dict_file(guided_diffusion.draw(SPEC, dtype=np.float16)))
  return file


def adm_config(path, **fields):
  c = tiny.get_config()
  c.method, c.init_from = "dual_output", str(path)
  c.network.update(arch="adm", channels=128, attention_resolutions=(8,), num_heads=4)
  c.dual.update(heads="eps", vlb_weight=0.001)
  c.sampling.update(sampler="ddim", grid="respaced")
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


def fitted(config):
  return warm.fit(warm.load(config, "nowhere"), methods.from_config(config), config)


def test_the_whole_network_of_noise_and_variance(path, capsys):
  config, tensors = adm_config(path), guided_diffusion.draw(SPEC, dtype=np.float16)
  fit = fitted(config)
  note = capsys.readouterr().out
  assert str(path) in note and "MIT" in note
  assert not any(fit.reasons.values())
  params = adm_weights.from_state_dict(tensors, dual_output.network_from_config(config))
  assert fit.taken.keys() == (expected := traverse_util.flatten_dict({"net": params}, sep="/")).keys()
  for name, leaf in expected.items():
    np.testing.assert_array_equal(fit.taken[name], leaf)


@pytest.mark.parametrize("fields, pattern", [
  (dict(method="edm"), r"config.init_from = .*: a guided-diffusion file starts dual_output, not edm$"),
  (dict(network__arch="ddpmpp"), r"config.network.arch = 'ddpmpp': must be 'adm' for the guided-diffusion file"),
  (dict(network__channels=256), r"config.network.channels = 256: init_from was trained with 128$"),
  (dict(network__channel_mult=(1, 2)), r"config.data.resolution = 8: init_from was trained with 32$"),
  (dict(network__num_blocks=2), r"config.network.num_blocks = 2: init_from was trained with 1$"),
  (dict(data__num_classes=5), r"config.data.num_classes = 5: init_from was trained with 10$"),
  (dict(data__channels=3), r"config.data.channels = 3: init_from was trained with 1$"),
  (dict(dual__process="cosine"), r"config.dual.process = 'cosine': init_from was trained with .*DDPM"),
  (dict(dual__heads="dual"), r"config.init_from = .*: net/out_conv/bias: shape \[2\] there, \[4\] here$"),
  (dict(network__channels=256, init_only=("net/nothing*",)), r"config.init_only = .*matches no parameter"),
  (dict(init_from="nothing.pt"), r"config.init_from = 'nothing.pt': .*no such file"),
])  # fmt: skip
def test_what_differs_is_one_line(path, fields, pattern):
  with pytest.raises(ConfigError, match=pattern) as error:
    fitted(adm_config(path, **fields))
  assert "\n" not in str(error.value)


def test_parts_of_another_network(path):
  """The encoder goes into one with other heads and classes; its attention only into one with as many heads."""
  fields = dict(dual__heads="dual", data__num_classes=5)
  only = ("net/enc_*", "net/map_*")
  fit = fitted(adm_config(path, init_only=only, **fields))
  assert fit.reasons["net/map_label/kernel"] == "shape [10, 512] there, [5, 512] here"
  assert {path.split("/")[1].split("_")[0] for path in fit.taken} == {"enc", "map"}
  assert {reason for path, reason in fit.reasons.items() if path.startswith("net/enc_")} == {""}
  fit = fitted(adm_config(path, init_only=("net/*",), **fields))
  assert [path for path, reason in fit.reasons.items() if reason] == ["net/map_label/kernel", *HEADS]


def test_published_attention_comes_with_its_heads(path, monkeypatch):
  """The file at 128×128 has 4 heads, which shapes do not tell: a run with others may take all but its attention."""
  monkeypatch.setitem(adm_weights._PUBLISHED, (128, (1,), 1), adm_weights.Published(4, False, process.DDPM()))
  assert not any(fitted(adm_config(path)).reasons.values())
  for only in ((), ("net/enc_*",)):
    with pytest.raises(ConfigError, match="config.network.num_heads = 0: init_from was trained with 4"):
      fitted(adm_config(path, network__num_heads=0, init_only=only))
  assert fitted(adm_config(path, network__num_heads=0, init_only=("net/map_*",))).taken


def test_a_run_starts_from_the_encoder(path, tmp_path):
  """Parameters and averages hold what was taken, the rest starts by itself, and the run's report says which."""
  config = adm_config(path, dual__heads="dual", init_only=("net/enc_*", "net/map_*"))
  method, fit = methods.from_config(config), fitted(config)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), start.shapes(method, config))
  state = warm.take(zeros, fit)
  for tree in (state.params, state.ema):
    for name, leaf in traverse_util.flatten_dict(tree, sep="/").items():
      np.testing.assert_array_equal(leaf, fit.taken.get(name, 0))
  warm.report(fit, config, tmp_path)
  record = json.loads((tmp_path / "init_from.json").read_text())
  assert record["init_from"] == str(path) and record["taken"] == list(fit.taken)
  assert not any(name.startswith(("net/enc_", "net/map_")) for name in record["not_taken"])
  assert {record["not_taken"][name] for name in HEADS} == {"matches no pattern"}
