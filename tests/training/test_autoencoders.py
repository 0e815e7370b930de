"""Where an autoencoder comes from: published weights on files in their format, the checkpoint that encoded the data."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.test_latents import latents_config
from flax import traverse_util
from interop import torch_files
from methods.test_autoencoder_method import Linear, autoencoder_config

from diffusion_jax import cli, sampling
from diffusion_jax.config import ConfigError
from diffusion_jax.evaluation import bench
from diffusion_jax.methods import autoencoder as autoencoder_method
from diffusion_jax.nets import autoencoder
from diffusion_jax.training import autoencoders, checkpoint, loop

FIELDS = {"autoencoder__channels": 4, "autoencoder__channel_mult": (1, 2), "autoencoder__num_blocks": 1}
NETWORK = autoencoder.Autoencoder(4, (1, 2), 1, 2)


def published(seed=0) -> tuple[dict, dict]:
  """(parameters, the same as a state dict in PyTorch's layout)."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, 2, 2, 3)))["params"]
  flat = traverse_util.flatten_dict(shapes)
  params = {path: rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in flat.items()}
  tensors = {}
  for path, value in params.items():
    name = autoencoder._name_of((*path[:-1], {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])))
    if path[-1] == "kernel":
      value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T[:, :, None, None]
    tensors[name] = np.ascontiguousarray(value)
  return traverse_util.unflatten_dict(params), tensors


def lightning_file(tensors, **more) -> bytes:
  """A checkpoint as latent diffusion's trainer writes it: tensors under "state_dict", numbers beside them."""
  storages = {str(i): array for i, array in enumerate(tensors.values())}
  tensor = lambda key, array: torch_files.tensor(torch_files.storage(key, array), array.shape)
  parts = {name: tensor(*each) for name, each in zip(tensors, storages.items())}
  return torch_files.zip_file({"epoch": 3, "global_step": 17, "state_dict": parts, **more}, storages)


def test_published_weights(tmp_path):
  """With and without the prefix of a whole model, under "state_dict" or bare, they are the same parameters."""
  params, tensors = published()
  other = {"model.diffusion_model.out.weight": np.zeros(3, np.float32)}
  loss = {"loss.logvar": np.zeros(1, np.float32)}
  whole = {**other, **{f"first_stage_model.{name}": x for name, x in {**tensors, **loss}.items()}}
  contents = {
    "own.ckpt": lightning_file({**tensors, **loss}),
    "whole.pt": lightning_file(whole),
    "bare.pth": torch_files.state_dict_file(tensors),
  }
  for name, data in contents.items():
    path = tmp_path / name
    path.write_bytes(data)
    config = latents_config("z", **FIELDS, latent__autoencoder=str(path), latent__scale=0.5)
    config.autoencoder.latent_channels = 2
    assert autoencoders.image_shape(config) == (4, 4, 3)
    decoder = autoencoders.from_config(config)
    assert decoder.network == NETWORK and decoder.scale == 0.5
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(decoder.params), params)
    sha256 = hashlib.sha256(data).hexdigest()
    assert autoencoders.find(config).provenance() == {"name": name, "step": None, "sha256": sha256}
    config.latent.sha256 = sha256
    autoencoders.find(config)
    config.latent.sha256 = "0" * 64
    with pytest.raises(ConfigError, match=f"it did not encode the data: their .* is 0+, not {sha256}"):
      autoencoders.find(config)


MISTAKES = {
  "missing": (lambda path: None, "no such file"),
  "other": (lambda path: path.write_bytes(torch_files.state_dict_file({"a": np.zeros(3, np.float32)})), "missing"),
  "no tensors": (lambda path: path.write_bytes(torch_files.pickled({"epoch": 3})), "it holds no tensors by name"),
  "damaged": (lambda path: path.write_bytes(b"PK\3\4 nothing"), "damaged"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_weights_that_cannot_be_read(tmp_path, name):
  make, message = MISTAKES[name]
  make(tmp_path / "w.ckpt")
  config = latents_config("z", **FIELDS, latent__autoencoder=str(tmp_path / "w.ckpt"), data__channels=3)
  with pytest.raises(ConfigError, match=f"config.latent.autoencoder = .*{message}") as error:
    autoencoders.from_config(config)
  assert "\n" not in str(error.value)


def test_the_checkpoint_that_encoded_the_data(tmp_path, monkeypatch):
  """Of a run that went on it is not the newest; other runs, images and places are one line."""
  monkeypatch.setattr(autoencoder_method, "network_from_config", lambda config, channels: Linear())
  run = tmp_path / "ae"
  loop.train(autoencoder_config(train__num_steps=2, train__checkpoint_every=1, train__keep_checkpoints=2), run)
  config = latents_config("z", latent__autoencoder=str(run), data__channels=1, latent__scale=2.0)
  first, last = (checkpoint.fingerprint(run, step) for step in (1, 2))
  for sha256, step in (("", 2), (first, 1), (last, 2)):
    config.latent.sha256 = sha256
    found = autoencoders.find(config)
    assert (found.step, found.sha256) == (step, sha256 or last) and found.provenance()["name"] == "ae"
  averages, _ = checkpoint.load_averages(run, 1)
  config.latent.sha256 = first
  decoder = autoencoders.from_config(config)
  jax.tree.map(np.testing.assert_array_equal, decoder.params, averages["net"])
  with pytest.raises(ValueError, match=r"latents need generate\(..., decoder="):
    sampling.generate(config, None, None, [0])
  for change, message in (
    ({"data.channels": 3}, "its latents have 1 channels, config.data.channels = 3"),
    ({"latent.sha256": "0"}, "it did not encode the data"),
    ({"latent.autoencoder": "no/run"}, "no run here"),
  ):
    wrong = config.copy_and_resolve_references()
    wrong.update_from_flattened_dict(change)
    for use in (autoencoders.from_config, lambda config: bench.of_model({}, config, None)):
      with pytest.raises(ConfigError, match=f"config.latent.autoencoder = .*{message}") as error:
        use(wrong)
      assert "\n" not in str(error.value)
  with pytest.raises(cli.UsageError, match="--workdir=.*ae: an autoencoder, which draws no images; .*reconstruct.py"):
    cli.open_run(str(run), "--workdir")
  checkpoint.write_config(tmp_path / "other", latents_config("z"))
  config.latent.autoencoder = str(tmp_path / "other")
  with pytest.raises(ConfigError, match="expected a run of method 'autoencoder', not 'decoupled'"):
    autoencoders.find(config)
  with pytest.raises(cli.UsageError, match="a run in latent space, which sample.py and evaluate.py alone decode"):
    cli.open_run(str(tmp_path / "other"), "--workdir")
  assert autoencoders.find(autoencoder_config()) is None
