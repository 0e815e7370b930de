"""A classifier from its training to the samples that it guides: one tiny run of each kind, and what refers to them."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from methods.test_classifier_method import classifier_config
from training import tiny

from diffusion_jax import cli, sampling
from diffusion_jax.config import ConfigError
from diffusion_jax.data import sources
from diffusion_jax.evaluation import bench, classification, records
from diffusion_jax.methods import base
from diffusion_jax.methods import classifier as classifier_method
from diffusion_jax.nets import layers
from diffusion_jax.study import run as study_run
from diffusion_jax.training import checkpoint, classifiers, loop

SEEDS = np.arange(8)


class Toy(nn.Module):
  """In place of the U-Net, and with the one head of logits of the classifier: compiles in a second."""

  heads: tuple[tuple[str, int], ...]

  @nn.compact
  def __call__(self, x, c_noise, *args):
    h = nn.silu(layers.Conv(8, name="conv")(x) + layers.Linear(8, name="noise")(c_noise[:, None] / 1e3)[:, None, None])
    out = {name: layers.Linear(width, name=name)(h) for name, width in self.heads}
    return out["logits"].sum((1, 2)) if "logits" in out else out


@pytest.fixture(scope="module", autouse=True)
def toys():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: Toy(heads))
    patch.setattr(classifier_method.classifier, "over", lambda network, classes: network)
    yield


def dual_config():
  c = tiny.get_config()
  c.method = "dual_output"
  c.data.update(num_classes=0, flip=False)
  c.label_dropout = 0.0
  c.sampling.update(sampler="ddim", grid="respaced", num_steps=3)
  c.train.num_steps = 4
  return c


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Workdirs of a classifier, and of a dual run without classes."""
  folder = tmp_path_factory.mktemp("runs")
  loop.train(classifier_config(train__num_steps=4, train__sample_every=4, classifier__process="cosine"), folder / "cl")
  loop.train(dual_config(), folder / "dual")
  return folder


@pytest.fixture(scope="module")
def dual(runs):
  return checkpoint.load_for_inference(runs / "dual")


def guided(runs, scale=1.0, **data):
  config = dual_config()
  config.data.update(data)
  config.sampling.update(classifier=str(runs / "cl"), classifier_scale=scale)
  return config


def test_a_classifiers_run(runs):
  """Metrics and checkpoints as of every method, no pictures; programs that sample refuse it in a line."""
  lines = [json.loads(line) for line in (runs / "cl" / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  assert all(np.isfinite(line["loss"]) and 0 <= line["accuracy"] <= 1 for line in lines)
  assert not (runs / "cl" / "samples").exists() and (runs / "dual" / "samples").exists()
  with pytest.raises(cli.UsageError, match="--workdir=.*cl: a classifier, which draws no images; .*classify.py"):
    cli.open_run(str(runs / "cl"), "--workdir")
  with pytest.raises(cli.UsageError, match="expected a run of method 'classifier', not 'dual_output'"):
    cli.open_run(str(runs / "dual"), "--workdir", classifier=True)
  with pytest.raises(ConfigError, match="config.method = 'classifier': draws no images"):
    study_run.check_sampling(checkpoint.read_config(runs / "cl"), checkpoint.load_for_inference(runs / "cl")[0])


def test_it_goes_on_bit_for_bit(runs, tmp_path):
  config = classifier_config(train__num_steps=2, train__checkpoint_every=2, classifier__process="cosine")
  loop.train(config, tmp_path)
  config.train.num_steps = 4
  state = loop.train(config, tmp_path)
  whole, _ = checkpoint.load_averages(runs / "cl")
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), state.ema)


def test_guided_images(runs, dual):
  """They follow labels and scale; −1 is not guided; scale 0 is none; nothing compiles for another scale or loading."""
  method, variables = dual
  draw = lambda config, labels=None, classifier=None: sampling.generate(
    config, method, variables, SEEDS, labels, classifier=classifier or classifiers.from_config(config)
  )
  plain, first = draw(dual_config()), draw(guided(runs, 50.0))
  compiled = sampling.draw._sample._cache_size()
  assert np.abs(first - plain).max() > 1e-4  # labels: seed modulo the classifier's classes
  np.testing.assert_array_equal(draw(guided(runs, 50.0), SEEDS % 10), first)
  assert np.abs(draw(guided(runs, 50.0), (SEEDS + 1) % 10) - first).max() > 1e-4
  assert np.abs(draw(guided(runs, 99.0)) - first).max() > 1e-4
  np.testing.assert_allclose(draw(guided(runs, 50.0), np.full(8, -1)), plain, rtol=1e-5, atol=1e-5)
  mixed = draw(guided(runs, 50.0), np.where(SEEDS < 4, SEEDS, -1))
  np.testing.assert_allclose(mixed, np.where(SEEDS[:, None, None, None] < 4, first, plain), rtol=1e-4, atol=1e-4)
  assert sampling.draw._sample._cache_size() == compiled
  assert classifiers.from_config(guided(runs, 0.0)) is None
  np.testing.assert_array_equal(draw(guided(runs, 0.0)), plain)
  again = classifiers.from_config(guided(runs, 50.0))
  together = sampling.generate_together(guided(runs, 50.0), method, variables, SEEDS, classifier=again)
  np.testing.assert_array_equal(together, first)
  with pytest.raises(ValueError, match=r"classifier_scale = 50 needs generate\(..., classifier="):
    sampling.generate(guided(runs, 50.0), method, variables, SEEDS)


SETTING = lambda **fields: lambda c: c.sampling.update(fields)
DATA = lambda **fields: lambda c: c.data.update(fields)


@pytest.mark.parametrize("change, message", [
  (SETTING(classifier=""), "_scale = 1.0: guidance without a classifier"),
  (SETTING(classifier_scale=-1.0), "_scale = -1.0: must be a number of at least 0"),
  (SETTING(classifier_scale=float("nan")), "_scale = nan: must be"),
  (SETTING(classifier="no/run"), " = 'no/run': no run here"),
  (lambda c: SETTING(classifier=c.sampling.classifier[:-2] + "dual")(c), " = .*expected a run of method 'classifier'"),
  (DATA(num_classes=7), " = .*: trained with data.num_classes = 10, this run has 7"),
  (DATA(resolution=16), " = .*: trained with data.resolution = 8, this run has 16"),
  (DATA(channels=3), " = .*: trained with data.channels = 1, this run has 3"),
])  # fmt: skip
def test_a_classifier_that_cannot_guide_is_one_line(change, message, runs):
  config = guided(runs)
  change(config)
  for use in (classifiers.from_config, lambda config: bench.of_model({}, config, None)):
    with pytest.raises(ConfigError, match=f"config.sampling.classifier{message}") as error:
      use(config)
    assert "\n" not in str(error.value)


def test_a_classifier_without_a_checkpoint(runs, tmp_path):
  checkpoint.write_config(tmp_path, classifier_config())
  config = guided(runs)
  config.sampling.classifier = str(tmp_path)
  with pytest.raises(ConfigError, match="config.sampling.classifier = .*: no checkpoint here yet"):
    classifiers.from_config(config)


def test_records_tell_what_guides(runs, dual):
  """Unguided ones are those from before there were classifiers; of a classifier its weights count, not its place."""

  def record(config):
    subject = bench.of_model({"name": "dual", "step": 4, "sha256": "0"}, config, lambda: dual)
    scorers = bench.scorers_for(config, ["frechet"], "pixels")
    (found,) = bench.wanted(subject, scorers, 100, 1)
    return found

  plain, off, on = record(dual_config()), record(guided(runs, 0.0)), record(guided(runs))
  before = {**plain, "sampling": dict(plain["sampling"])}
  for field in ("classifier", "classifier_scale"):
    del before["sampling"][field]
  same = {records.identity(each) for each in (plain, off, before)}
  assert len(same) == 1 and "classifier" not in plain and plain["labels"] is None
  assert on["classifier"]["sha256"] == checkpoint.fingerprint(runs / "cl", 4) and on["labels"] == "seed modulo 10"
  moved = {**on, "sampling": {**on["sampling"], "classifier": "elsewhere"}}
  assert records.identity(moved) == records.identity(on)
  others = [record(guided(runs, 2.0)), {**on, "classifier": {**on["classifier"], "sha256": "1"}}]
  assert len({records.identity(each) for each in (on, *others)} | same) == 4


def test_accuracy_by_noise_level(monkeypatch):
  """Logits 2 for class 3 up to t = 500 and 0 from there on: by hand. A last batch that is filled up counts once."""
  source = sources.load("digits", "test")
  labels = source.gather(np.arange(len(source)))["label"]
  logits = lambda variables, x, t: 2 * (np.arange(10) == 3) * (t <= 500)[:, None] + variables["none"]
  monkeypatch.setattr(classification.classifier_method, "logits_from_config", lambda config: logits)
  found = classification.measure(classifier_config(), {"none": np.float32(0)}, source, bins=3, batch_size=160)
  assert [each["t"] for each in found] == [[1, 333], [334, 666], [667, 1000]]
  known, guess = found[0], found[2]
  assert known["accuracy"] == np.mean(labels == 3) and guess["accuracy"] == np.mean(labels == 0)
  np.testing.assert_allclose(known["cross_entropy"], np.log(np.exp(2) + 9) - 2 * np.mean(labels == 3), rtol=1e-6)
  np.testing.assert_allclose(guess["cross_entropy"], np.log(10), rtol=1e-6)
  np.testing.assert_allclose(known["noise_level"][0], 0.0100005, rtol=1e-4)  # √(β_1/(1 − β_1))
  with pytest.raises(ValueError, match=r"expected images \(8, 8, 1\) of 10 classes, photos test has"):
    classification.measure(classifier_config(), {}, sources.load("photos", "test"))
