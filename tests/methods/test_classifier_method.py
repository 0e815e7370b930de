"""The method of classifiers: its loss against a computation of its own, its optimizer, its config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import tiny

from diffusion_jax import config as config_lib
from diffusion_jax import methods, process
from diffusion_jax.config import ConfigError
from diffusion_jax.methods import batches
from diffusion_jax.methods import classifier as classifier_method
from diffusion_jax.training import state, update, warm


def classifier_config(**fields):
  c = tiny.get_config()
  c.method = "classifier"
  c.label_dropout = 0.0
  c.data.flip = False
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


class Linear:
  """In place of the network: logits that are linear in the mean pixel and the index, and so sensitive to both."""

  def init(self, key, x, index):
    return {"params": {"a": jnp.linspace(-1, 1, 10), "b": jnp.linspace(2, -1, 10) ** 2}}

  def apply(self, variables, x, index, dropout_keys=None):
    p = variables["params"]
    return p["a"] * x.mean((1, 2, 3))[:, None] + p["b"] * index[:, None] / 1000


def batch_of(size=8):
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (size, 8, 8, 1)).astype(np.float32)
  return {"image": images, "label": rng.integers(0, 10, size).astype(np.int32), "slot": np.arange(size)}


@pytest.mark.parametrize("name, chain", [("linear", process.DDPM()), ("cosine", process.Cosine())])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_is_the_cross_entropy_of_noisy_images(name, chain, accumulation, monkeypatch):
  """x = α_t·x_0 + σ_t·ε by the chain's ᾱ, the index t − 1, the labels as they are."""
  monkeypatch.setattr(classifier_method.classifier, "over", lambda network, classes: Linear())
  config = classifier_config(classifier__process=name, train__accumulation=accumulation)
  method, key, batch = methods.from_config(config), jax.random.key(3), batch_of()
  first = method.init(jax.random.key(0), {"image": jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)})
  _, metrics = method.update(first, batch, key)

  keys = state.example_keys(key, first.step, batch["slot"])
  t = np.asarray(method.times(keys))
  assert t.min() >= 1 and t.max() <= chain.num_steps and (t == np.round(t)).all() and len(set(t)) > 4
  bars = chain.alpha_bars()[t.astype(int) - 1][:, None, None, None]
  eps = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(batches.streams(keys, classifier_method._NOISE))
  x = np.sqrt(bars) * batch["image"] + np.sqrt(1 - bars) * np.asarray(eps)
  p = first.params["net"]
  logits = np.asarray(p["a"]) * x.mean((1, 2, 3))[:, None] + np.asarray(p["b"]) * (t - 1)[:, None] / 1000
  log_prob = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  np.testing.assert_allclose(metrics["loss"], -log_prob[np.arange(8), batch["label"]].mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], np.mean(log_prob.argmax(1) == batch["label"]), rtol=1e-6)


def test_it_draws_nothing():
  method = methods.from_config(classifier_config())
  assert method.denoise is None and method.samplers == ()


def test_equal_networks_share_what_is_compiled():
  a, b = (classifier_method.logits_from_config(classifier_config()) for _ in range(2))
  other = classifier_method.logits_from_config(classifier_config(network__channels=16))
  assert a == b and hash(a) == hash(b) and a != other


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_weight_decay_is_adamws(decay):
  """Three updates against optax's adamw; without decay the state is Adam's, bit for bit."""
  config = tiny.get_config()
  config.optimizer.update(warmup_images=0, weight_decay=decay, learning_rate=0.1)
  params = {"a": jnp.array([1.0, -2.0, 3.0])}
  theirs = optax.adamw(0.1, 0.9, 0.999, 1e-8, weight_decay=decay)
  expected, other = params, theirs.init(params)
  mine = state.create({"net": params}, update.init_optimizer(config, {"net": params}))
  for i in range(3):
    grads = {"a": jnp.array([0.3, -0.1, 2.0]) * (i + 1)}
    mine, _ = update.apply_gradients(config, mine, "net", jnp.zeros(()), grads, None)
    steps, other = theirs.update(grads, other, expected)
    expected = optax.apply_updates(expected, steps)
  np.testing.assert_allclose(mine.params["net"]["a"], expected["a"], rtol=1e-6)
  plain = optax.scale_by_adam(0.9, 0.999, 1e-8)
  assert jax.tree.structure(mine.opt_state["net"]) == jax.tree.structure(plain.init(params))


def test_an_encoder_goes_from_a_diffusion_run_to_a_classifier_and_back():
  """Everything that init_only names is taken, with the averages; labels and decoder are not there."""
  dual = classifier_config(method="dual_output", network__channel_mult=(1, 2), network__attention_resolutions=(4,))
  dual.sampling.update(sampler="ddim", grid="respaced")
  own = classifier_config(network__channel_mult=(1, 2), network__attention_resolutions=(4,))
  for config, other in ((own, dual), (dual, own)):
    config = config.copy_and_resolve_references()
    config.init_from, config.init_only = "another", ("net/enc_*", "net/map_layer*")
    fitting = warm.fit(warm.to_come(other), methods.from_config(config), config)
    named = ("net/enc_", "net/map_layer")
    assert set(fitting.taken) == {path for path in fitting.reasons if path.startswith(named)}
    assert {"net/enc_8x8_conv/kernel", "net/enc_4x4_block0/qkv/kernel", "net/map_layer1/bias"} <= set(fitting.taken)
    assert fitting.reasons["net/pool/positions"].startswith("not in ")
    assert fitting.reasons["net/dec_4x4_in0/conv0/kernel"] == "matches no pattern"


def test_a_start_from_another_chain_is_named():
  own, other = classifier_config(), classifier_config(classifier__process="cosine")
  own.init_from = "another"
  with pytest.raises(ConfigError, match="config.classifier.process = 'linear': init_from was trained with .*Cosine"):
    warm.fit(warm.to_come(other), methods.from_config(own), own)


@pytest.mark.parametrize("field, value, message", [
  ("data.num_classes", 0, "must be positive for method 'classifier'"),
  ("classifier.process", "linar", "expected one of linear, cosine; nearest: linear"),
  ("label_dropout", 0.1, "must be 0 for method 'classifier'"),
  ("data.augment", 0.1, "must be 0 for method 'classifier'"),
  ("train.score_every", 4, "must be 0 for method 'classifier', which draws no images"),
  ("optimizer.weight_decay", -0.1, "must not be negative"),
  ("network.channels", 18, "GroupNorm groups divide 18 channels"),
])  # fmt: skip
def test_a_config_that_cannot_be_trained(field, value, message):
  config = classifier_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ConfigError, match=f"config.{field} = {value!r}: .*({message})") as error:
    methods.from_config(config)
  assert "\n" not in str(error.value)


def test_sampling_fields_of_a_classifier_are_nobodys_business():
  config = classifier_config(sampling__eta=0.5, sampling__guidance=3.0, sampling__sampler="none")
  config_lib.check(config)
  methods.from_config(config)

