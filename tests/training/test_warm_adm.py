"""A Dual-Output run starts from a guided-diffusion checkpoint: from all of it, or from its encoder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util
from interop import guided_diffusion, torch_files
from training import tiny

from diffusion_jax import methods
from diffusion_jax.config import ConfigError
from diffusion_jax.interop import adm_weights
from diffusion_jax.methods import dual_output
from diffusion_jax.training import warm

ROOT = Path(__file__).parents[2]
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
  monkeypatch.setitem(adm_weights._PUBLISHED, (128, (1,), 1), adm_weights.Published(4, False))
  assert not any(fitted(adm_config(path)).reasons.values())
  for only in ((), ("net/enc_*",)):
    with pytest.raises(ConfigError, match="config.network.num_heads = 0: init_from was trained with 4"):
      fitted(adm_config(path, network__num_heads=0, init_only=only))
  assert fitted(adm_config(path, network__num_heads=0, init_only=("net/map_*",))).taken


def test_from_the_command_line(path, tmp_path):
  """Two updates, the encoder and the embedding taken from the file."""
  config = tmp_path / "config.py"
  config.write_text(
    f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom training import test_warm_adm\n\n"
    "def get_config():\n  return test_warm_adm.adm_config('', dual__heads='dual')\n"
  )
  flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.init_from={path}",
           "--config.init_only=('net/enc_*','net/map_*')", "--config.train.num_steps=2",
           "--config.train.checkpoint_every=2", "--config.train.sample_every=2"]  # fmt: skip
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
  done = subprocess.run(
    [sys.executable, "experiments/train.py", *flags], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr
  assert "MIT" in done.stdout
  record = json.loads((tmp_path / "run" / "init_from.json").read_text())
  assert record["init_from"] == str(path) and record["taken"]
  assert all(name.startswith(("net/enc_", "net/map_")) for name in record["taken"])
  assert not any(name.startswith(("net/enc_", "net/map_")) for name in record["not_taken"])
  assert {record["not_taken"][name] for name in HEADS} == {"matches no pattern"}
