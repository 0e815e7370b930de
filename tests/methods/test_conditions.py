"""Methods with a task: image and condition are mirrored together, features are as good as the condition, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import toy_task

from diffusion_jax import config as config_lib
from diffusion_jax import methods
from diffusion_jax.data import sources
from diffusion_jax.methods import base, batches, conditions
from diffusion_jax.training import start, state


def config_of(**fields):
  config = toy_task.get_config()
  config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return config


# Networks that put the condition where the image belongs, given x and c_noise as the method scales them.
PERFECT = {
  "edm": (dict(sampling__sampler="heun", sampling__grid="edm"), "loss"),
  "dual_output": (dict(sampling__sampler="ddim", sampling__grid="respaced"), "x_loss"),
  "decoupled": (dict(decoupled__preconditioned=False), "phi_loss"),
}


@dataclasses.dataclass
class Perfect:
  method: str

  def init(self, key, x, c_noise, context):
    return {"params": {"a": jnp.zeros(())}}

  def apply(self, variables, x, c_noise, labels, augment, dropout, context):
    a = variables["params"]["a"]
    if self.method == "edm":  # F of D = c_skip·x + c_out·F, σ = exp(4·c_noise), x = c_in·y
      sigma, s = jnp.exp(4 * c_noise)[:, None, None, None], 0.5
      root = jnp.sqrt(sigma**2 + s**2)
      return {"out": (context - s**2 / root**2 * x * root) * root / (sigma * s) + a}
    if self.method == "dual_output":
      return {"eps": 0 * x, "x": context + a, "r": 0 * x[..., :1]}
    return {"phi": a - context, "eps": 0 * x}


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("method", PERFECT)
def test_a_condition_is_mirrored_with_its_image(method, flip, monkeypatch):
  """A network that answers with the condition makes no error where the condition is the image itself, in bytes too."""
  fields, metric = PERFECT[method]
  config = config_of(method=method, data__flip=flip, **fields)
  monkeypatch.setattr(base, "network_from_config", lambda config, heads, **options: Perfect(method))
  made = methods.from_config(config)
  example = start.example_batch(config, 16)
  assert example["condition"].shape == example["image"].shape
  images = np.random.default_rng(0).integers(0, 256, example["image"].shape).astype(np.uint8)
  first = made.init(jax.random.key(0), start.example_batch(config))
  batch = {"image": images, "condition": images, "label": np.zeros(16, int), "slot": np.arange(16)}
  update = jax.jit(made.update)
  assert update(first, batch, jax.random.key(1))[1][metric] < 1e-8
  batch["condition"] = images[:, :, ::-1]
  assert update(first, batch, jax.random.key(1))[1][metric] > 0.1


def test_half_are_mirrored_and_all_are_in_range():
  keys = jax.random.split(jax.random.key(0), 200)
  images = np.broadcast_to(np.uint8([[0, 255]])[..., None], (200, 1, 2, 1))
  batch = {"image": images, "condition": images.repeat(2, 2).repeat(2, 1)}
  image, condition = batches.images_of(batch, keys, True), batches.condition_of(batch, keys, True)
  assert condition.shape == (200, 2, 4, 1)
  np.testing.assert_array_equal(condition[:, ::2, ::2], image)
  assert set(np.unique(condition)) == {-1.0, 1.0} and 60 < (image[:, 0, 0, 0] == 1).sum() < 140
  np.testing.assert_array_equal(batches.condition_of(batch, keys, False)[:, ::2, ::2], images / 127.5 - 1)
  assert batches.condition_of({"image": images}, keys, True) is None


@pytest.mark.parametrize("method", PERFECT)
def test_features_are_as_good_as_the_condition(method, monkeypatch):
  """`denoise` with the condition, and with what `encode` makes of it; another condition says something else."""
  config = config_of(method=method, **PERFECT[method][0])
  monkeypatch.setattr(base, "network_from_config", toy_task.network_from_config)
  made = methods.from_config(config)
  first = jax.jit(lambda key: made.init(key, start.example_batch(config)))(jax.random.key(0))
  variables, t = state.inference_variables(first.ema), jnp.array([0.3, 0.7])
  if method == "dual_output":
    t = jnp.array([100.0, 900.0])
  x, condition = jax.random.normal(jax.random.key(1), (2, 2, 8, 8, 1))

  @jax.jit
  def found(variables, condition):
    run = lambda value: made.denoise(variables, x, t, value)
    features = made.encode(variables, condition)
    return run({"condition": condition}), run({"condition": features}), run({"condition": None}), run(None)

  by_condition, by_features, by_none, by_nothing = found(variables, condition)
  for part in ("clean", "eps"):
    of = [getattr(pred, part) for pred in (by_condition, by_features, by_none, by_nothing)]
    np.testing.assert_allclose(of[0], of[1], atol=1e-6)
    np.testing.assert_array_equal(of[2], of[3])
    assert np.abs(of[0] - of[2]).max() > 1e-3


def test_a_run_without_a_task_encodes_nothing():
  config = config_of(task__name="")
  assert methods.from_config(config).encode is None and "condition" not in start.example_batch(config)


def test_what_an_encoder_is():
  """Levels above the U-Net's for a larger condition; of Swin the stages that the U-Net has a level for."""
  fields = dict(data__resolution=32, data__channels=3, network__channels=8, network__channel_mult=(1, 2))
  encoder, context = conditions.encoder_from_config(config_of(**fields))
  assert encoder.widths == (8, 16) and context == ((32, 8), (16, 16))
  encoder, context = conditions.encoder_from_config(config_of(**fields, condition__resolution=128))
  assert encoder.widths == (8, 8, 8, 16) and context == ((32, 8), (16, 16))
  encoder, context = conditions.encoder_from_config(
    config_of(**fields, condition__encoder="swin_b", condition__upsample=2)
  )
  assert (encoder.variant, encoder.upsample, context) == ("b", 2, ((16, 128),))
  fields = dict(fields, condition__encoder="swin_t", network__channel_mult=(1,) * 6)
  _, context = conditions.encoder_from_config(config_of(**fields))  # 8, 4, 2, 1 pixels
  assert context == ((8, 96), (4, 192), (2, 384), (1, 768))


@pytest.mark.parametrize(
  "fields, shape",
  [
    ({}, (8, 8, 1)),
    (dict(task__name="saliency", data__resolution=16), (16, 16, 3)),
    (dict(task__name="superres", data__channels=3, condition__resolution=32), (32, 32, 3)),
    (dict(condition__channels=2), (8, 8, 2)),
  ],
)
def test_the_shape_of_a_condition(fields, shape):
  config = config_of(**fields)
  assert conditions.condition_shape(config) == start.example_batch(config, 5)["condition"].shape[1:] == shape


COLOURS = dict(data__name="photos", data__resolution=16, data__channels=3)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"condition__encoder": "swin"}, r"config.condition.encoder = 'swin': expected one of .*; nearest: swin_"),
    ({"condition__encoder": "swin_t"}, r"condition.encoder = 'swin_t': sees 3 channels, the condition has 1: conv"),
    (
      dict(COLOURS, condition__encoder="swin_t"),
      r"condition.encoder = 'swin_t': features of \[4, 2, 1, 1\] pixels a side meet no level of the U-Net, \[16\]",
    ),
    (
      dict(COLOURS, condition__encoder="swin_t", condition__resolution=32),
      r"condition.resolution = 32: features of \[8, 4, 2, 1\] pixels a side meet no level .*see condition.upsample",
    ),
    ({"condition__resolution": 12}, r"condition.resolution = 12: must be data.resolution \(8\) times a power of 2"),
    ({"condition__resolution": 4}, r"condition.resolution = 4: must be data.resolution \(8\) times a power of 2"),
    ({"condition__upsample": 2}, r"condition.upsample = 2: must be 1 for the encoder conv"),
    ({"condition__weights": "a.pth"}, r"condition.weights = 'a.pth': must be '' for the encoder conv"),
    (
      {"condition__cross_attention": (4,)},
      r"condition.cross_attention = \(4,\): expected only resolutions at which a condition is joined: \[8\]",
    ),
  ],
)
def test_an_encoder_that_cannot_be_built(fields, message):
  config = config_of(**fields)
  config_lib.check(config)
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    methods.from_config(config)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"decoupled__t_min": 0.0}, r"config.decoupled.t_min = 0.0: must be in \(0, 1\)"),
    ({"decoupled__t_min": 1.0}, r"config.decoupled.t_min = 1.0: must be in \(0, 1\)"),
    ({"decoupled__t_min": float("nan")}, r"config.decoupled.t_min = nan: must be in \(0, 1\)"),
    ({"condition__upsample": 0}, r"config.condition.upsample = 0: must be positive"),
    ({"condition__resolution": -8}, r"config.condition.resolution = -8: must not be negative"),
    ({"task__name": "", "condition__cross_attention": (8,)}, r"cross_attention = \(8,\): must be \(\) without a task"),
    ({"condition__cross_attention": (8.0,)}, r"config.condition.cross_attention = \(8.0,\): expected tuple of int"),
    (
      {"sampling__classifier": "x", "sampling__classifier_scale": 1.0},
      r"config.sampling.classifier_scale = 1.0: must be 0.0 with a task",
    ),
    (
      {"method": "dual_output", "sampling__ratio": "mean"},
      r"config.sampling.ratio = 'mean': must be learned or numbers with a task",
    ),
  ],
)
def test_fields_that_do_not_go_together(fields, message):
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    config_lib.check(config_of(**fields))
  assert "\n" not in str(error.value)


def test_data_whose_conditions_are_others():
  """The network would be built for what the config says."""
  config = config_of(data__split="test")
  source = sources.from_config(config)
  conditions.check(config, source)
  config.condition.resolution = 16
  with pytest.raises(config_lib.ConfigError, match=r"= \(16, 16, 1\): the conditions of digits are \(8, 8, 1\)"):
    conditions.check(config, source)


def test_t_min_is_where_training_begins():
  keys = jax.random.split(jax.random.key(0), 1000)
  t = methods.from_config(config_of(decoupled__t_min=0.9)).times(keys)
  assert 0.9 <= t.min() < 0.905 and 0.995 < t.max() < 1
