"""Fine-tuning: a run starts from the averaged parameters of another, or of a published pickle."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from training import tiny, toy
from training.published import published_config

from diffusion_jax import methods
from diffusion_jax.config import ConfigError
from diffusion_jax.interop import edm_checkpoint
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, loop, start, warm


def zeros(config):
  shapes = start.shapes(methods.from_config(config), config)
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def fitted(config, workdir):
  source = warm.load(config, workdir)
  config = warm.resolve(config, source, workdir)
  return warm.fit(source, methods.from_config(config), config)


def test_a_published_pickle_gives_its_parameters_to_both_copies():
  config = published_config()
  state = warm.take(zeros(config), fitted(config, "nowhere"))
  _, params = edm_checkpoint.load(config.init_from)
  for tree in (state.params["net"], state.ema["net"]):
    jax.tree.map(np.testing.assert_array_equal, tree, params)
  assert state.params["net"]["map_layer0"]["kernel"] is not state.ema["net"]["map_layer0"]["kernel"]
  assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(state.opt_state))


@pytest.mark.parametrize("change, pattern", [
  (lambda c: c.network.update(channels=8), r"config.init_from = .*edm_tiny.pkl.: net/.*: shape .* there, .* here"),
  (lambda c: c.data.update(augment=0.0), r"config.init_from = .*: net/map_augment/kernel: not in this network"),
  (lambda c: c.edm.update(preconditioner="vp"), r"config.edm.preconditioner = 'vp': init_from was trained with EDMP"),
  (lambda c: c.edm.update(sigma_data=0.4), r"config.edm.preconditioner = 'edm': .*sigma_data=0.5.*sigma_data=0.4"),
  (lambda c: setattr(c, "init_from", "nothing.pkl"), r"config.init_from = 'nothing.pkl': "),
  (lambda c: setattr(c, "init_from", "no/run"), r"config.init_from = 'no/run': .*no run here"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_one_line(change, pattern, tmp_path):
  config = published_config()
  change(config)
  with pytest.raises(ConfigError, match=pattern) as error:
    fitted(config, tmp_path)
  assert "\n" not in str(error.value)


def test_a_run_starts_from_the_averages_of_another(tmp_path, monkeypatch):
  """Its first state holds them; a mistake leaves nothing behind; a started run goes on without its source."""
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
  source = tiny.get_config()
  source.train.update(num_steps=4, log_every=4)
  first = loop.train(source, tmp_path / "first")
  config = tiny.get_config()
  config.init_from = str(tmp_path / "first")
  config.train.update(num_steps=2, log_every=2)
  method = methods.from_config(config)
  state = warm.take(start.create_state(method, config), fitted(config, tmp_path / "second"))
  jax.tree.map(np.testing.assert_array_equal, state.ema, first.ema)
  jax.tree.map(np.testing.assert_array_equal, state.params, first.ema)
  assert int(state.step) == 0
  config.edm.sigma_data = 0.3
  with pytest.raises(ConfigError, match="sigma_data=0.5"):
    loop.train(config, tmp_path / "second")
  assert not (tmp_path / "second").exists()

  config.edm.sigma_data = 0.5
  loop.train(config, tmp_path / "second")
  (tmp_path / "first").rename(tmp_path / "gone")
  config.train.num_steps = 4
  assert int(loop.train(config, tmp_path / "second").step) == 4


def test_fourier_frequencies_come_with_the_weights(tmp_path):
  """A run of ncsnpp takes those of its source, keeps them in its config.json, and refuses others."""
  config = tiny.get_config()
  config.network.arch, config.init_from = "ncsnpp", "somewhere"
  source = warm.Source({}, "edm", {}, (0.5, 1.0, 2.0), None)
  resolved = warm.resolve(config, source, tmp_path)
  assert resolved.network.freqs == (0.5, 1.0, 2.0) and config.network.freqs == ()
  checkpoint.write_config(tmp_path, resolved)
  assert warm.resolve(config, None, tmp_path).network.freqs == (0.5, 1.0, 2.0)
  config.network.freqs = (0.5, 1.0, 3.0)
  with pytest.raises(ConfigError, match="config.network.freqs = .*must be"):
    warm.resolve(config, source, tmp_path)


def test_a_part_of_another_network_is_taken_and_reported(tmp_path, monkeypatch):
  """Of a wider network those that match a pattern and fit; the report accounts for every parameter on either side."""
  config = tiny.get_config()
  config.network.num_blocks = 2
  monkeypatch.setattr(loop, "save_grid", lambda *_: None)
  source = tiny.get_config()
  source.data.num_classes, source.label_dropout = 0, 0.0  # a network without labels, so map_label is not there
  method = methods.from_config(source)
  state = start.create_state(method, source)
  checkpoint.write_config(tmp_path / "source", source)
  checkpoints = checkpoint.Checkpoints(tmp_path / "source", source)
  checkpoints.save(state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema)), 5)
  checkpoints.close()

  config.init_from = str(tmp_path / "source")
  config.init_only = ("net/enc_*", "net/map_label/*", "net/dec_8x8_aux_conv/bias")
  fit = fitted(config, tmp_path / "run")
  before = start.create_state(methods.from_config(config), config)
  flat = lambda tree: traverse_util.flatten_dict(tree, sep="/")
  after, theirs = warm.take(before, fit), flat(state.ema)
  taken = [path for path, reason in fit.reasons.items() if not reason]
  assert "net/dec_8x8_aux_conv/bias" in taken and any("enc_8x8_block0" in path for path in taken)
  assert fit.reasons["net/map_label/kernel"] == "not in that network"
  assert fit.reasons["net/enc_8x8_block1/conv0/kernel"] == "not in that network"
  assert fit.reasons["net/dec_8x8_aux_conv/kernel"] == "matches no pattern"
  assert fit.reasons.keys() == flat(before.params).keys() | theirs.keys()
  for tree in (after.params, after.ema):
    for path, leaf in flat(tree).items():
      np.testing.assert_array_equal(leaf, theirs[path] + 1 if path in taken else flat(before.params)[path])
  warm.report(fit, config, tmp_path)
  record = json.loads((tmp_path / "init_from.json").read_text())
  assert record["taken"] == taken and set(record["not_taken"]) == fit.reasons.keys() - set(taken)


def test_parameters_of_other_shapes_are_left_out_and_patterns_that_take_nothing_refused(tmp_path):
  config = published_config()
  config.network.channels *= 2
  config.init_only = ("net/*",)
  fit = fitted(config, tmp_path)
  assert "shape [" in fit.reasons["net/map_layer0/kernel"] and any(path.endswith("aux_conv/bias") for path in fit.taken)
  config.init_only = ("net/encoder.*",)
  with pytest.raises(ConfigError, match=r"'net/encoder.\*' matches no parameter; nearest: net/enc_"):
    fitted(config, tmp_path)
  config.init_only = ("net/map_layer0/*",)
  with pytest.raises(ConfigError, match=r"config.init_only = .*: no parameter matches and fits; "):
    fitted(config, tmp_path)
