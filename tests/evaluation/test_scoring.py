"""Scorers: chunks of any size are one pass, an interrupted block goes on to the same bits, and what is refused."""

import numpy as np
import pytest

from diffusion_jax import evaluation
from diffusion_jax.data import sources
from diffusion_jax.evaluation import features, scoring, statistics
from diffusion_jax.evaluation.reference import RealImages, StoredStatistics, fingerprint, in_bytes
from diffusion_jax.evaluation.scoring import Scorer

DIGITS = features.load("digits")
REAL = RealImages(DIGITS, sources.load("digits", "all"))
EVERYTHING = ("frechet", "inception_score", "precision", "recall", "kernel_distance")


def draw(seeds):
  """Blurred digits: image i depends on seed i alone."""
  images = sources.load("digits", "all").gather(np.asarray(seeds) % 1797)["image"]
  noise = np.stack([np.random.default_rng(int(seed)).standard_normal((8, 8, 1)) for seed in seeds])
  return (images + 0.2 * noise).astype(np.float32)


def whole(n):
  return DIGITS(in_bytes(draw(np.arange(n))))


@pytest.mark.parametrize("chunk", [300, 128, 37, 1])
def test_scores_are_those_of_all_images_at_once(chunk):
  n = 60 if chunk == 1 else 300
  (got,) = scoring.score_block(draw, np.arange(n), [Scorer(DIGITS, EVERYTHING, REAL)], chunk=chunk)
  fake, real = whole(n), DIGITS(in_bytes(sources.load("digits", "all").gather(np.arange(1797))["image"]))
  precision, recall = evaluation.precision_recall(real["features"], fake["features"], 3)
  wanted = {
    "frechet": evaluation.frechet_distance(
      *evaluation.moments(fake["features"]), *evaluation.moments(real["features"])
    ),
    "inception_score": evaluation.inception_score(fake["logits"], 10)[0],
    "precision": precision,
    "recall": recall,
    "kernel_distance": evaluation.kernel_distance(real["features"], fake["features"], subset_size=n)[0],
  }
  assert set(got) == set(wanted)
  for name, value in wanted.items():
    assert got[name] == pytest.approx(value, rel=1e-6), name


def test_real_images_score_zero_against_themselves():
  source = sources.load("digits", "all")
  (got,) = scoring.score_block(
    lambda seeds: source.gather(seeds)["image"], np.arange(1797), [Scorer(DIGITS, ("frechet", "precision"), REAL)]
  )
  assert got["frechet"] < 1e-6 and got["precision"] == 1.0


def test_every_image_counts_once():
  """With pixels as features the moments are known: 10 images in chunks of 4 on 8 devices."""
  images = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 1)).astype(np.uint8)
  pixels = features.load("pixels", resolution=2, channels=1)
  source = sources.Arrays("a", "all", images[:5], np.zeros(5, np.int32), 0)
  reference = RealImages(pixels, source)
  (got,) = scoring.score_block(lambda i: images[i], np.arange(10), [Scorer(pixels, ("frechet",), reference)], chunk=4)
  rows = images.reshape(10, 4).astype(np.float64)
  moments = lambda x: (x.mean(axis=0), np.cov(x, rowvar=False))
  assert got["frechet"] == pytest.approx(evaluation.frechet_distance(*moments(rows), *moments(rows[:5])), rel=1e-12)


class Killed(BaseException):
  pass


def test_an_interrupted_block_goes_on_to_the_same_bits(tmp_path):
  scorers, drawn = [Scorer(DIGITS, EVERYTHING, REAL)], []

  def counted(seeds):
    drawn.extend(seeds)
    return draw(seeds)

  def killed(seeds):
    if seeds[0] >= 150:
      raise Killed
    return counted(seeds)

  options = dict(seeds=np.arange(300), scorers=scorers, chunk=50, save_seconds=0, partial=tmp_path / "partial.npz")
  uninterrupted = scoring.score_block(draw, np.arange(300), scorers, chunk=50)
  with pytest.raises(Killed):
    scoring.score_block(killed, **options)
  assert (tmp_path / "partial.npz").exists()
  done = []
  assert scoring.score_block(counted, progress=done.append, **options) == uninterrupted  # bit for bit
  assert drawn == list(range(300)) and sum(done) == 300
  assert not list(tmp_path.iterdir())


def test_a_damaged_save_is_drawn_again(tmp_path):
  path = tmp_path / "partial.npz"
  scorers = [Scorer(DIGITS, ("frechet",), REAL)]
  wanted = scoring.score_block(draw, np.arange(40), scorers)
  for data in (b"", b"PK\x03\x04 cut off", b"no zip"):
    path.write_bytes(data)
    assert scoring.score_block(draw, np.arange(40), scorers, path) == wanted
  with path.open("wb") as file:
    np.savez(file, done=20)  # of other metrics
  assert scoring.score_block(draw, np.arange(40), scorers, path) == wanted


def test_images_that_are_not_finite_are_an_error():
  with pytest.raises(ValueError, match="finite"):
    scoring.score_block(
      lambda seeds: np.full((len(seeds), 8, 8, 1), np.nan), np.arange(9), [Scorer(DIGITS, ("frechet",), REAL)]
    )


def test_memorised_share_of_copies_and_of_others():
  train = sources.load("digits", "train")
  pixels = features.load("pixels", resolution=8, channels=1)
  scorers = [Scorer(pixels, ("memorised",), RealImages(pixels, train))]
  copies = lambda seeds: train.gather(seeds)["image"]
  (got,) = scoring.score_block(copies, np.arange(50), scorers)
  assert got["memorised"] == 1.0
  (got,) = scoring.score_block(lambda seeds: draw(seeds) * 0 + 1, np.arange(50), scorers)
  assert got["memorised"] == 0.0


def test_what_cannot_be_measured_is_refused(tmp_path):
  statistics.write(tmp_path / "real.npz", REAL.statistics)
  stored = StoredStatistics(DIGITS, tmp_path / "real.npz")
  pixels = features.load("pixels", resolution=8, channels=1)
  for extractor, metrics, reference, message in [
    (DIGITS, ("fid",), REAL, "metrics are frechet, .*got 'fid'"),
    (DIGITS, ("precision",), stored, "precision needs real images, and real.npz holds their statistics alone"),
    (DIGITS, ("memorised",), REAL, "memorised is measured in pixels, not in features of digits"),
    (pixels, ("inception_score",), REAL, "class logits, which pixels has not"),
  ]:
    with pytest.raises(ValueError, match=message):
      Scorer(extractor, metrics, reference)
  with (tmp_path / "published.npz").open("wb") as file:  # NVIDIA's say nothing of the extractor
    np.savez(file, mu=np.zeros(2048), sigma=np.eye(2048))
  with pytest.raises(ValueError, match="published.npz holds statistics of 2048 features, digits has 64"):
    Scorer(DIGITS, ("frechet",), StoredStatistics(DIGITS, tmp_path / "published.npz"))
  wide = features.load("pixels", resolution=64)
  with pytest.raises(ValueError, match="no Fréchet distance of 12,288 features of pixels"):
    Scorer(wide, ("frechet",), REAL)
  with pytest.raises(ValueError, match="digits"):
    StoredStatistics(pixels, tmp_path / "real.npz")
  with pytest.raises(ValueError, match=r"pixels takes images of \(8, 8, 3\), got \(8, 8, 1\)"):
    RealImages(features.load("pixels", resolution=8), sources.load("digits", "all"))


def test_stored_statistics_score_as_the_images(tmp_path):
  statistics.write(tmp_path / "real.npz", REAL.statistics)
  stored = StoredStatistics(DIGITS, tmp_path / "real.npz")
  scores = [
    scoring.score_block(draw, np.arange(100), [Scorer(DIGITS, ("frechet",), reference)])[0]["frechet"]
    for reference in (REAL, stored)
  ]
  assert scores[0] == scores[1] and stored.num_images == 1797 and len(stored.sha256) == 64


def test_fingerprints_tell_data_apart():
  a, b = sources.load("digits", "train"), sources.load("digits", "test")
  assert fingerprint(a) == fingerprint(sources.load("digits", "train")) != fingerprint(b)


def test_too_few_images():
  assert scoring.minimum_images(("frechet",)) == 2
  assert scoring.minimum_images(("frechet", "recall")) == 4
  assert scoring.minimum_images(("frechet", "inception_score", "recall")) == 10
  with pytest.raises(ValueError, match="at least 2"):
    scoring.score_block(draw, np.arange(1), [Scorer(DIGITS, ("frechet",), REAL)])
