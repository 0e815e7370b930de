"""Distribution recovery: its law against closed forms, seeds, records, and what is refused."""

import functools
import types

import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from diffusion_jax import config as config_lib
from diffusion_jax import parameterization as par
from diffusion_jax import process, sampling
from diffusion_jax.data import sources
from diffusion_jax.evaluation import bench, features, recovery, scoring
from diffusion_jax.evaluation.records import Records
from diffusion_jax.evaluation.reference import RealImages
from diffusion_jax.methods import Method

MEAN, VARIANCE = 0.3, 0.25  # of the data in closed forms
DIGITS = RealImages(features.load("digits"), sources.load("digits", "test"))
SCORERS = [scoring.Scorer(features.load("digits"), ["frechet"], DIGITS)]
FRAMES = {"EDM": process.EDM(), "VP": process.VP(), "VE": process.VE(), "DDPM": process.DDPM()}


@functools.cache
def exact(frame, preconditioner=None):
  """The best denoiser for data N(MEAN, VARIANCE) as a method."""

  def denoise(variables, x, t, cond=None):
    return oracle.gaussian_denoise(frame, variables["mean"], VARIANCE)(x, t)

  return Method(None, None, denoise, frame, ("heun",), preconditioner)


def config_of(classes=0):
  config = config_lib.default()
  config.data.num_classes = classes
  return config


def subject(sigma, classes=0, images=DIGITS, opened=None):
  def open_model():
    if opened is not None:
      opened.append(sigma)
    return exact(process.EDM()), {"mean": jnp.float32(MEAN)}

  return recovery.of_model({"name": "run", "step": 3, "sha256": "ab"}, config_of(classes), open_model, images, sigma)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 4.0])
@pytest.mark.parametrize("frame", FRAMES)
def test_the_recovered_law_is_that_of_the_posterior_mean(frame, sigma):
  """Mean m, variance s⁴/(s² + σ²), whatever the process: noise levels are EDM's."""
  frame = FRAMES[frame]
  rng = np.random.default_rng(0)
  images = (MEAN + VARIANCE**0.5 * rng.standard_normal((256, 16, 16, 1))).astype(np.float32)
  denoise = oracle.gaussian_denoise(frame, MEAN, VARIANCE)
  got = np.asarray(recovery.recover(denoise, frame, images, sampling.keys_of(np.arange(256)), sigma), np.float64)
  variance, n = VARIANCE**2 / (VARIANCE + sigma**2), images.size
  assert abs(got.mean() - MEAN) < 4 * np.sqrt(variance / n)
  assert abs(got.var() / variance - 1) < 4 * np.sqrt(2 / n)
  slope = np.cov(images.ravel(), got.ravel())[0, 1] / VARIANCE  # E[x̂_0 | x_0] = m + s²/(s² + σ²)·(x_0 − m)
  assert slope == pytest.approx(VARIANCE / (VARIANCE + sigma**2), abs=0.02)


def test_noise_is_the_same_in_every_frame_and_no_other_draw_of_its_seed():
  keys, clean = sampling.keys_of(np.arange(4)), np.zeros((4, 8, 8, 1), np.float32)
  noises = []
  for frame in FRAMES.values():
    x, t = recovery.perturb(frame, clean, keys, 2.0)
    noises.append(np.asarray(x / frame.sigma(t)))
    np.testing.assert_allclose(frame.noise_level(t), 2.0, rtol=1e-4)
  for noise in noises[1:]:
    np.testing.assert_allclose(noise, noises[0], rtol=1e-4)
  prior = process.EDM().prior(keys, (8, 8, 1), 1.0)
  assert abs(np.corrcoef(np.asarray(prior).ravel(), noises[0].ravel())[0, 1]) < 0.3


def test_image_i_depends_on_seed_i_alone():
  """Not on the batch; seed s perturbs image s mod N, with new noise each time round."""
  draw, nfe = subject(0.5).draw()
  together = draw(np.arange(594))
  assert nfe == 1 and together.shape == (594, 8, 8, 1) and together.dtype == np.float32
  np.testing.assert_array_equal(draw(np.array([5, 300, 17])), together[[5, 300, 17]])
  first, second = together[:297], together[297:]
  assert np.abs(first - second).max() > 0.1 and np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.6


def test_the_image_of_a_seed_comes_with_its_label():
  asked = []

  class Asked(types.SimpleNamespace):
    __len__ = lambda self: 7

  def gather(rows):
    asked.append(list(rows))
    return {"image": np.zeros((len(rows), 8, 8, 1), np.uint8), "label": np.asarray(rows, np.int32)}

  source = Asked(image_shape=(8, 8, 1), num_classes=10, gather=gather)

  def denoise(variables, x, t, cond):
    return oracle.Prediction(jnp.broadcast_to(cond["label"][:, None, None, None], x.shape) * 1.0, x)

  method = exact(process.EDM())._replace(denoise=denoise)
  got = recovery.generate(config_of(10), method, {}, source, np.arange(5, 13), 0.5)
  assert asked == [[5, 6, 0, 1, 2, 3, 4, 5]]
  np.testing.assert_array_equal(got[:, 0, 0, 0], asked[0])


def test_one_compilation_serves_all_noise_levels():
  traced = []

  def denoise(variables, x, t, cond):
    traced.append(cond)
    return oracle.Prediction(x, x)

  for sigma in (0.1, 1.0, 10.0):
    method = exact(process.VP())._replace(denoise=denoise)
    recovery.generate(config_of(), method, {}, DIGITS.source, np.arange(16), sigma)
  assert traced == [None]


@pytest.mark.parametrize("frame", FRAMES)
def test_a_vanishing_noise_level_gives_the_images_back(frame):
  images = DIGITS.source.gather(np.arange(64))["image"]
  frame = FRAMES[frame]
  denoise = oracle.gaussian_denoise(frame, MEAN, VARIANCE)
  got = recovery.recover(denoise, frame, images, sampling.keys_of(np.arange(64)), 1e-6)
  np.testing.assert_allclose(got, images, atol=2e-5)


def test_the_distance_is_0_where_the_noise_vanishes_and_grows_with_it(tmp_path):
  """Bytes come back as they were; the real images of the score are those that are perturbed."""
  images = scoring.in_bytes(DIGITS.source.gather(np.arange(297))["image"])
  real = RealImages(features.load("digits"), sources.Arrays("bytes", "all", images, np.zeros(297, np.int32), 0))
  scorers = [scoring.Scorer(features.load("digits"), ["frechet"], real)]
  assert recovery.real_images(scorers) is real
  values = [score(subject(s, images=real), tmp_path, scorers, 297)[0]["value"] for s in (1e-4, 0.2, 1.0)]
  assert abs(values[0]) < 1e-6 < values[1] < values[2]


def score(subject, folder, scorers=SCORERS, count=40, blocks=1):
  return bench.score(subject, scorers, Records(folder / "recovery.jsonl"), count, blocks)


def test_records_of_noise_levels_differ_and_are_found_again(tmp_path):
  opened = []
  found = [score(subject(sigma, 10, opened=opened), tmp_path)[0] for sigma in (0.5, 1)]
  assert opened == [0.5, 1.0] and found[0]["value"] != found[1]["value"]
  assert [score(subject(sigma, 10, opened=opened), tmp_path)[0] for sigma in (0.5, 1.0)] == found
  assert opened == [0.5, 1.0] and len(Records(tmp_path / "recovery.jsonl")) == 2
  (record, _) = found
  assert record["recovery"] == {"sigma": 0.5, "images": DIGITS.sha256} and record["nfe"] == 1
  assert record["sampling"] is None and record["labels"] == "those of the images" and record["seeds"] == [0, 39]
  score(subject(0.5, 10, opened=opened), tmp_path, blocks=2)
  assert opened == [0.5, 1.0, 0.5] and len(Records(tmp_path / "recovery.jsonl")) == 3


def test_other_records_have_no_such_field():
  other = bench.Subject({"name": "run", "step": 3, "sha256": "ab"}, None, {})
  assert "recovery" not in bench.wanted(other, SCORERS, 40, 1)[0]


@pytest.mark.parametrize("sigma", [0, -0.5, float("nan"), float("inf"), "0.5", None, True, np.ones(2)])
def test_a_noise_level_is_a_positive_number(sigma):
  images, keys = np.zeros((2, 8, 8, 1), np.float32), sampling.keys_of([0, 1])
  denoise = oracle.gaussian_denoise(process.EDM(), MEAN, VARIANCE)
  for call in (
    lambda: recovery.recover(denoise, process.EDM(), images, keys, sigma),
    lambda: recovery.check(exact(process.EDM()), sigma),
    lambda: subject(sigma),
  ):
    with pytest.raises(ValueError, match="sigma must be a positive number, got "):
      call()


@pytest.mark.parametrize("sigma", [0.5, np.float32(0.5), jnp.float32(0.5), np.array(0.5)])
def test_a_noise_level_of_any_kind_of_number(sigma):
  assert recovery.check(exact(process.EDM()), sigma) == 0.5
  x, _ = recovery.perturb(process.EDM(), np.zeros((1, 8, 8, 1), np.float32), sampling.keys_of([0]), sigma)
  assert float(jnp.std(x)) == pytest.approx(0.5, rel=0.3)


def test_what_cannot_be_recovered_from():
  images, keys = np.zeros((2, 8, 8, 1), np.float32), sampling.keys_of([0, 1])
  for frame in (process.Decoupled(), process.Process()):
    for call in (lambda: recovery.recover(None, frame, images, keys, 1.0), lambda: recovery.check(exact(frame), 1.0)):
      with pytest.raises(ValueError, match="a Gaussian process such as"):
        call()
  with pytest.raises(ValueError, match=r"keys must hold one PRNG key an image \[2\], got shape \[1\]"):
    recovery.recover(None, process.EDM(), images, keys[:1], 1.0)
  with pytest.raises(ValueError, match=r"images must be \[B, H, W, C\]"):
    recovery.recover(None, process.EDM(), images[0], keys, 1.0)
  pixels = features.load("pixels", None, 16, 3)
  photos = RealImages(pixels, sources.load("photos", "test", resolution=16, stride=16))
  with pytest.raises(ValueError, match=r"needs images \(8, 8, 1\) for run, photos/test has \(16, 16, 3\)"):
    subject(1.0, images=photos)
  plain = sources.Arrays("plain", "all", np.zeros((8, 8, 8, 1), np.uint8), np.zeros(8, np.int32), 0)
  with pytest.raises(ValueError, match="run knows 10 classes, plain/all has no labels"):
    subject(1.0, 10, images=RealImages(features.load("digits"), plain))
  with pytest.warns(UserWarning, match="noise levels 0.01 to 0.01 are clamped"):
    recovery.check(exact(process.EDM(), par.VEPreconditioner()), 0.01)
