"""The source of latents: what is written, the measured scale, the draws from posteriors, errors of a folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods.test_autoencoder_method import Linear
from training import tiny

from diffusion_jax import config as config_lib
from diffusion_jax import latent, methods
from diffusion_jax.config import ConfigError
from diffusion_jax.data import batching, latents, sources
from diffusion_jax.methods import base, batches
from diffusion_jax.training import run_config

AUTOENCODER = {"name": "ae", "step": 3, "sha256": "f" * 64}
DATA = {"name": "digits", "path": "", "split": "train", "resolution": 4, "channels": 1, "num_classes": 3}


class Conditioned(sources.Arrays):
  """Images with something that they are made from, and what no one here knows."""

  def gather(self, indices):
    return {
      **super().gather(indices), "condition": self.images[indices] // 2, "number": np.asarray(indices, np.float32)
    }  # fmt: skip


def conditioned(count=10):
  rng = np.random.default_rng(0)
  images, labels = rng.integers(0, 256, (count, 4, 4, 1), np.uint8), np.arange(count, dtype=np.int32) % 3
  return Conditioned("made", "train", images, labels, 3)


def encode(x):
  """Two channels at half the size, neither symmetric."""
  assert x.dtype == np.float32 and np.abs(x).max() <= 1
  mean = np.concatenate([x[:, ::2, ::2] + 0.5, 2 * x[:, 1::2, ::2]], -1)
  return mean, np.concatenate([x[:, ::2, 1::2], -1 - x[:, 1::2, 1::2]], -1)


@pytest.fixture
def folder(tmp_path):
  latents.write(tmp_path / "z", conditioned(), encode, AUTOENCODER, DATA, flip=True, batch_size=4)
  return tmp_path / "z"


def latents_config(folder, **fields):
  c = tiny.get_config()
  c.method = "decoupled"
  c.data.update(name="latents", path=str(folder), resolution=2, channels=2, num_classes=3, flip=False)
  c.latent.autoencoder = "runs/ae"
  c.sampling.update(sampler="decoupled", grid="decoupled")
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


def test_posteriors_and_all_else_come_back(folder):
  """Images first, then mirrored ones with their conditions; the latents of a mirrored image are not mirrored ones."""
  made, source = conditioned(), sources.from_config(latents_config(folder))
  images = made.images / np.float32(127.5) - 1
  assert len(source) == 20 and source.image_shape == (2, 2, 2) and source.num_classes == 3
  rows = np.array([0, 9, 10, 19, 3])
  found = source.gather(rows)
  assert set(found) == {"image", "log_variance", "label", "condition", "number"}
  assert all(type(x) is np.ndarray for x in found.values())
  x = np.concatenate([images, images[:, :, ::-1]])[rows]
  mean, log_variance = encode(x)
  np.testing.assert_array_equal(found["image"], mean)
  np.testing.assert_array_equal(found["log_variance"], log_variance)
  np.testing.assert_array_equal(found["label"], made.labels[rows % 10])
  np.testing.assert_array_equal(found["number"], rows % 10)
  np.testing.assert_array_equal(found["condition"][2], made.images[0, :, ::-1] // 2)
  assert np.abs(found["image"][2] - found["image"][0][:, ::-1]).max() > 0.1
  batch = batching.batch(source, 0, 5, 4)
  assert batch["log_variance"].shape == (4, 2, 2, 2)
  held = sources.everything(source)
  np.testing.assert_array_equal(held["log_variance"][rows], log_variance)


def test_the_scale_is_one_over_the_deviation_of_z(folder):
  """Against draws by NumPy, and in the moments that it is made of."""
  held, rng = sources.everything(sources.load("latents", "train", path=str(folder))), np.random.default_rng(1)
  mean, deviation = held["image"].astype(float), np.exp(held["log_variance"].astype(float) / 2)
  z = mean + deviation * rng.standard_normal((2000, *mean.shape))
  scale = latents.describe(str(folder))["scale"]
  np.testing.assert_allclose(scale, 1 / z.std(), rtol=0.01)
  np.testing.assert_allclose(scale**-2, mean.var() + np.mean(deviation**2), rtol=1e-6)
  resolved = latents.resolve(latents_config(folder)).latent
  assert resolved.scale == scale and resolved.sha256 == AUTOENCODER["sha256"]
  assert latents.resolve(latents_config(folder, latent__scale=0.25)).latent.scale == 0.25
  spread = sources.measure_sigma(sources.load("latents", "train", path=str(folder)))
  np.testing.assert_allclose(spread, np.sqrt(np.mean(z.var((0, 1)))), rtol=0.01)  # about each number's own mean


def test_a_draw_is_the_examples_own():
  """scale·(μ + σ·ε): its law, from its key alone, anew for another key; unmeasured it is an error."""
  keys = jax.random.split(jax.random.key(0), 6)
  mean = jnp.arange(6.0)[:, None, None, None] * jnp.ones((6, 16, 16, 2))
  batch = {"image": mean, "log_variance": jnp.full_like(mean, -2.0), "label": jnp.zeros(6)}
  x = batches.images_of(batch, keys, False, 0.5)
  z = (np.asarray(x) / 0.5 - mean) / np.exp(-1)
  assert abs(z.mean()) < 4 / np.sqrt(z.size) and abs(z.std() - 1) < 4 / np.sqrt(2 * z.size)
  part = {name: value[4:] for name, value in batch.items()}
  np.testing.assert_array_equal(batches.images_of(part, keys[4:], False, 0.5), x[4:])
  assert np.abs(batches.images_of(part, keys[2:4], False, 0.5) - x[4:]).max() > 0.1
  with pytest.raises(ValueError, match="config.latent.scale = 0.0"):
    batches.images_of(batch, keys, False, 0.0)


@pytest.mark.parametrize("method", ["edm", "dual_output", "decoupled"])
def test_every_method_trains_on_scaled_draws(method, monkeypatch):
  """Where μ·scale is the same and σ is 0, so are the losses; a posterior with a width changes them."""
  sampling = {"edm": ("heun", "edm"), "dual_output": ("ddim", "respaced"), "decoupled": ("decoupled", "decoupled")}
  sampler, grid = sampling[method]

  def loss(scale, log_variance):
    config = latents_config("none", method=method, sampling__sampler=sampler, sampling__grid=grid, latent__scale=scale)
    made = methods.from_config(config)
    mean = np.random.default_rng(0).standard_normal((4, 2, 2, 2)).astype(np.float32) / scale
    batch = {"image": mean, "log_variance": np.full_like(mean, log_variance), "slot": np.arange(4)}
    batch["label"] = np.arange(4) % 3
    state = made.init(jax.random.key(0), {"image": jax.ShapeDtypeStruct((1, 2, 2, 2), jnp.float32)})
    return float(made.update(state, batch, jax.random.key(1))[1]["loss"])

  class Heads:
    def __init__(self, heads):
      self.heads = heads

    def init(self, key, x, c_noise):
      return {"params": {"a": jnp.full((), 0.3)}}

    def apply(self, variables, x, c_noise, *args):
      return {name: variables["params"]["a"] * jnp.resize(x, (*x.shape[:-1], n)) for name, n in self.heads}

  monkeypatch.setattr(base, "network_from_config", lambda config, heads, **options: Heads(heads))
  assert loss(0.5, -30.0) == pytest.approx(loss(2.0, -30.0), rel=1e-4)
  assert abs(loss(0.5, 0.0) - loss(0.5, -30.0)) > 1e-3


def test_a_folder_is_whole_or_not_there(tmp_path):
  path = tmp_path / "z"
  calls = []

  def failing(x):
    calls.append(len(x))
    if len(calls) > 1:
      raise KeyboardInterrupt
    return encode(x)

  with pytest.raises(KeyboardInterrupt):
    latents.write(path, conditioned(), failing, AUTOENCODER, DATA, batch_size=4)
  assert list(tmp_path.iterdir()) == []
  latents.write(path, conditioned(), encode, AUTOENCODER, DATA)
  before = (path / "latents.json").read_text()
  with pytest.raises(ValueError, match="z is already there; pass --overwrite or another --out"):
    latents.write(path, conditioned(), encode, AUTOENCODER, DATA)
  with pytest.raises(KeyboardInterrupt):
    latents.write(path, conditioned(), failing, AUTOENCODER, DATA, overwrite=True)
  assert (path / "latents.json").read_text() == before and [p.name for p in tmp_path.iterdir()] == ["z"]
  latents.write(path, conditioned(5), encode, AUTOENCODER, DATA, overwrite=True)
  assert len(sources.load("latents", "train", path=str(path))) == 5
  assert [p.name for p in tmp_path.iterdir()] == ["z"]
  (tmp_path / "mine").mkdir()
  with pytest.raises(ValueError, match="mine is there, no latents"):
    latents.check_free(tmp_path / "mine", overwrite=True)
  blown = lambda x: (np.full((len(x), 2, 2, 2), np.nan), np.zeros((len(x), 2, 2, 2)))
  with pytest.raises(ValueError, match="the latents have variance nan"):
    latents.write(tmp_path / "nan", conditioned(), blown, AUTOENCODER, DATA)
  assert not (tmp_path / "nan").exists()


def test_the_images_before_encoding(folder):
  config = latents.before_encoding(latents_config(folder))
  assert (config.data.name, config.data.resolution, config.data.channels) == ("digits", 4, 1)
  config.data.num_classes = 0
  config.method, config.sampling.grid, config.sampling.sampler = "edm", "edm", "heun"
  config_lib.check(config)  # nothing of latents is left
  own = tiny.get_config()
  assert latents.before_encoding(own) is own and latents.resolve(own) is own


def test_a_run_goes_on_with_what_was_measured(folder, tmp_path):
  """A config that leaves the scale to the data fits the run that measured it; another scale does not."""
  run_config.write_config(tmp_path / "run", latents.resolve(latents_config(folder)))
  run_config.check_workdir(tmp_path / "run", latents_config(folder, latent__autoencoder="moved"))
  for field, value in (("scale", 0.5), ("sha256", "0")):
    with pytest.raises(run_config.WorkdirError, match=f"config.latent.{field} = "):
      run_config.check_workdir(tmp_path / "run", latents_config(folder, **{f"latent__{field}": value}))


REFUSED = {
  "data.flip": True, "data.augment": 0.1, "sampling.refit": 1.0, "sampling.clip": 1.0, "latent.autoencoder": "",
  "decoupled.reconstruction_weight": 1.0, "decoupled.reconstruction_lpips": True, "method": "dpdm",
  "latent.scale": -1.0,
}  # fmt: skip


@pytest.mark.parametrize("field", REFUSED)
def test_what_latents_cannot_have(field):
  config = latents_config("z")
  config.update_from_flattened_dict({field: REFUSED[field]})
  with pytest.raises(ConfigError, match=f"config.{field} = {REFUSED[field]!r}: ") as error:
    config_lib.check(config)
  assert "\n" not in str(error.value)


def _damage(folder, name, change):
  path = folder / name
  if name.endswith(".json"):
    path.write_text(change(path.read_text()))
  else:
    path.write_bytes(change(path.read_bytes()))


MISTAKES = {
  "no folder": (lambda folder: (folder / "latents.json").unlink(), "is no folder of latents, .*: latents.json is miss"),
  "no json": (lambda folder: _damage(folder, "latents.json", lambda s: s[:20]), "latents.json cannot be read"),
  "later": (lambda folder: _damage(folder, "latents.json", lambda s: s.replace('"format": 1', '"format": 2')), "too o"),
  "says less": (lambda folder: _damage(folder, "latents.json", lambda s: s.replace("scale", "s")), "not say scale"),
  "no array": (lambda folder: (folder / "mean.npy").unlink(), "mean.npy cannot be read"),
  "cut off": (lambda folder: _damage(folder, "log_variance.npy", lambda b: b[:200]), "log_variance.npy cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_folder_that_cannot_be_read(folder, name):
  change, message = MISTAKES[name]
  change(folder)
  with pytest.raises(ConfigError, match=f"config.data.path = .*{message}") as error:
    sources.from_config(latents_config(folder))
  assert "\n" not in str(error.value)


def test_an_array_of_another_length(folder):
  np.save(folder / "label.npy", np.zeros(3, np.int32))
  with pytest.raises(ValueError, match="label.npy has 3 examples: expected 20, as latents.json says"):
    sources.load("latents", "train", path=str(folder))
  with pytest.raises(ConfigError, match="config.latent.sha256 = '0+': .* was encoded by ae, whose SHA-256 is ff"):
    latents.resolve(latents_config(folder, latent__sha256="0" * 64))
  assert json.loads((folder / "latents.json").read_text())["autoencoder"] == AUTOENCODER


def test_a_decoder_divides_by_the_scale_and_takes_any_number(monkeypatch):
  """Batch after batch gives what all at once give; a latent larger than the window is decoded in tiles."""
  network, params = Linear(), {"d": jnp.float32(1.5)}
  x0 = np.random.default_rng(0).standard_normal((19, 4, 4, 1)).astype(np.float32)
  expected = 7.5 * np.kron(x0, np.ones((1, 2, 2, 1)))
  for pixels in (1 << 20, 64):  # one batch; one image a device
    monkeypatch.setattr(latent, "_PIXELS", pixels)
    images = latent.Decoder(network, params, 0.2)(x0)
    assert images.shape == (19, 8, 8, 1) and images.dtype == np.float32
    np.testing.assert_allclose(images, expected, rtol=1e-5)
  seen = []
  monkeypatch.setattr(Linear, "apply", lambda self, v, z, method: seen.append(z.shape) or z.repeat(2, 1).repeat(2, 2))
  wide = np.ones((1, 100, 70, 1), np.float32)
  np.testing.assert_allclose(latent.Decoder(Linear(), params, 1.0)(wide), np.ones((1, 200, 140, 1)), rtol=1e-5)
  assert {shape[1:] for shape in seen} == {(64, 64, 1)}
