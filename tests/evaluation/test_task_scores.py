"""Scores of tasks: pairs of image and truth, examples of seeds, composites, what a task comes to without a model."""

import numpy as np
import pytest
from PIL import Image
from training import toy_task

from diffusion_jax import methods as methods_lib
from diffusion_jax import sampling
from diffusion_jax.data import sources
from diffusion_jax.evaluation import bench, features, records, scoring, tasks
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.evaluation.reference import RealImages, in_bytes
from diffusion_jax.evaluation.tasks import PairedScorer

CHECKPOINT = {"name": "mine", "step": None, "sha256": ""}


def config_of(**fields):
  config = toy_task.get_config()
  config.data.split = "test"
  config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return config


@pytest.fixture(scope="module")
def source():
  """Holes in the 297 held-out digits, floats in [−1, 1]."""
  return sources.from_config(config_of())


@pytest.fixture(scope="module")
def colours():
  fields = dict(data__name="photos", data__resolution=16, data__channels=3, task__masks="boxes")
  return sources.from_config(config_of(**fields))


def drawn(seeds, shape=(8, 8, 1)):
  """Random bytes, image i of seed i alone."""
  return np.stack([np.random.default_rng(int(seed)).integers(0, 256, shape) for seed in seeds]).astype(np.uint8)


# --- which example a seed has -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 10, 297, 1000, 1797])
def test_as_many_seeds_as_examples_have_each_once(size):
  for first in (0, size, 12345):
    np.testing.assert_array_equal(np.sort(tasks.examples_of(np.arange(first, first + size), size)), np.arange(size))
  assert tasks.examples_of([2**32], size)[0] == 2**32 * int(tasks.examples_of([1], size)[0]) % size


@pytest.mark.parametrize("size", [297, 1797, 7622])  # of the built-in data
@pytest.mark.parametrize("count", [5, 30, 100])
def test_few_seeds_are_spread_over_all_examples(size, count):
  """Between neighbours lie at most three times as many examples as in an even spread, and where blocks begin too."""
  for first in (0, 250):
    found = np.sort(tasks.examples_of(np.arange(first, first + count), size))
    gaps = np.diff(np.append(found, found[0] + size))
    assert len(set(found)) == count and gaps.max() <= 3 * size / count


# --- pairs ------------------------------------------------------------------------------------------------------------

PAIRED = ("psnr", "psnr_pooled", "mae", "mae_binary")


def truths(source, seeds):
  return in_bytes(source.gather(tasks.examples_of(seeds, len(source)))["image"])


def directly(images, truth):
  error = (images.astype(float) - truth) / 255
  squares = np.square(error).mean((1, 2, 3))
  return {
    "psnr": np.mean(-10 * np.log10(squares)),
    "psnr_pooled": -10 * np.log10(np.square(error).mean()),
    "mae": np.abs(error).mean(),
    "mae_binary": ((images > 127) ^ (truth > 127)).mean(),
  }


@pytest.mark.parametrize("chunk", [7, 40])
def test_scores_of_pairs_are_those_of_all_images(source, chunk):
  """In one chunk or several; for some of the metrics the same."""
  seeds = np.arange(300, 340)
  scorer = PairedScorer(PAIRED, source)
  (found,) = scoring.score_block(drawn, seeds, [scorer], chunk=chunk)
  wanted = directly(drawn(seeds), truths(source, seeds))
  assert found.keys() == wanted.keys()
  for metric, value in wanted.items():
    assert found[metric] == pytest.approx(value, rel=1e-12), metric
  (some,) = scoring.score_block(drawn, seeds, [scorer.fresh(["mae", "psnr_pooled"])], chunk=chunk)
  assert some == {metric: found[metric] for metric in ("mae", "psnr_pooled")}


def test_an_interrupted_block_goes_on(source, tmp_path):
  seeds, scorers, seen = np.arange(40), [PairedScorer(PAIRED, source)], []

  def stops(seeds):
    seen.extend(seeds)
    if len(seen) > 20:
      raise KeyboardInterrupt
    return drawn(seeds)

  partial = tmp_path / "partial.npz"
  with pytest.raises(KeyboardInterrupt):
    scoring.score_block(stops, seeds, scorers, partial, save_seconds=0, chunk=10)
  asked = []
  again = lambda seeds: asked.extend(seeds) or drawn(seeds)
  resumed = scoring.score_block(again, seeds, scorers, partial, chunk=10)
  assert asked == list(range(20, 40)) and not partial.exists()
  assert resumed == scoring.score_block(drawn, seeds, scorers, chunk=10)


def test_images_without_an_error_count_as_100_decibels(source):
  """And do not end in an infinite score, which no record may have."""
  half = lambda seeds: np.where((np.asarray(seeds) % 2 == 0)[:, None, None, None], truths(source, seeds), drawn(seeds))
  perfect = lambda seeds: truths(source, seeds)
  (found,) = scoring.score_block(perfect, np.arange(8), [PairedScorer(PAIRED, source)])
  assert found == pytest.approx({"psnr": 100, "psnr_pooled": 100, "mae": 0, "mae_binary": 0})
  (found,) = scoring.score_block(half, np.arange(8), [PairedScorer(PAIRED, source)])
  odd = np.arange(1, 8, 2)
  wanted = directly(drawn(odd), truths(source, odd))
  assert found["psnr"] == pytest.approx((100 + wanted["psnr"]) / 2)
  assert found["psnr_pooled"] == pytest.approx(wanted["psnr_pooled"] + 10 * np.log10(2))


def test_images_that_are_not_finite_are_refused(source):
  nan = lambda seeds: np.full((len(seeds), 8, 8, 1), np.nan, np.float32)
  with pytest.raises(ValueError, match="finite"):
    scoring.score_block(nan, np.arange(4), [PairedScorer(["psnr"], source)])


def test_records_say_what_was_compared(source, tmp_path):
  """Computed once; a folder of partners that was moved, and other conditions, are told apart by the conditions."""
  calls = []
  draw = lambda seeds: calls.extend(seeds) or drawn(seeds)
  task = {"name": "inpaint", "path": "", "conditions": tasks.fingerprint(source)}
  subject = bench.Subject(CHECKPOINT, lambda: (draw, 5), {"num_steps": 5}, task=task)
  log, scorers = records.Records(tmp_path / "scores.jsonl"), [PairedScorer(("psnr", "mae"), source)]
  found = bench.score(subject, scorers, log, 6, 2)
  assert [(r["metric"], r["seeds"], r["nfe"]) for r in found] == [
    ("psnr", [0, 5], 5), ("mae", [0, 5], 5), ("psnr", [6, 11], 5), ("mae", [6, 11], 5)
  ]  # fmt: skip
  assert {(r["reference"]["name"], r["reference"]["num_images"], r["extractor"]["name"]) for r in found} == {
    ("digits/test", 297, "pairs")
  }
  assert found[0]["task"] == task and calls == list(range(12))
  assert bench.score(subject, scorers, log, 6, 2) == found and len(calls) == 12
  own = tasks.of_model(CHECKPOINT, config_of(task__path="somewhere"), None, source)
  assert own.task["path"] == "" and own.task["conditions"] == task["conditions"] and own.task["masks"] == "mixed"
  other = sources.from_config(config_of(task__masks="boxes"))
  assert tasks.fingerprint(other) != tasks.fingerprint(source)


# --- composites and references ----------------------------------------------------------------------------------------


def test_a_composite_is_the_image_in_the_holes_alone(source, colours):
  for each, images in ((source, drawn(range(20))), (colours, drawn(range(20), (16, 16, 3)))):
    found = each.gather(np.arange(20))
    got, mask = tasks.composite(images, found["condition"], found["mask"]), found["mask"].repeat(images.shape[-1], -1)
    assert got.dtype == np.uint8 and 0 < mask.mean() < 1
    np.testing.assert_array_equal(got[mask == 1], images[mask == 1])
    np.testing.assert_array_equal(got[mask == 0], in_bytes(found["image"])[mask == 0])


def test_composites_of_the_truth_are_the_truth(source, monkeypatch):
  """So their Fréchet distance is 0 and their PSNR the largest; what the model says outside of holes does not count."""
  config = config_of()

  def generate(config, method, variables, seeds, labels, batch_size, condition, decoder):
    assert decoder is None
    found = tasks.gather(source, seeds)
    np.testing.assert_array_equal(condition, found["condition"])
    return np.where(found["mask"] == 1, found["image"], 0.123)

  monkeypatch.setattr(sampling, "generate", generate)
  draw = lambda seeds: tasks.make_images(config, None, None, source, seeds)
  extractor = features.load("digits")
  frechet = scoring.Scorer(extractor, ["frechet"], RealImages(extractor, source))
  scorers = [PairedScorer(["psnr"], source), frechet]
  psnr, frechet = scoring.score_block(draw, np.arange(len(source)), scorers)
  assert psnr["psnr"] == 100 and abs(frechet["frechet"]) < 1e-6


def test_models_are_given_conditions_labels_and_classes(source, monkeypatch):
  config, seen = config_of(data__num_classes=10, label_dropout=0.1), []
  monkeypatch.setattr(methods_lib.base, "network_from_config", toy_task.network_from_config)
  method = methods_lib.from_config(config)

  def generate(config, method, variables, seeds, labels, batch_size, condition, decoder):
    assert decoder is None
    seen.append((seeds, labels, condition))
    return condition

  monkeypatch.setattr(sampling, "generate", generate)
  subject = tasks.of_model(CHECKPOINT, config, lambda: (method, {"params": {}}), source)
  draw, nfe = subject.draw()
  images = draw(range(4))
  (seeds, labels, condition), found = seen[0], source.gather(tasks.examples_of(range(4), 297))
  assert nfe == 3 and subject.labels == "those of the images"
  np.testing.assert_array_equal(seeds, range(4))
  np.testing.assert_array_equal(labels, found["label"])
  np.testing.assert_array_equal(condition, found["condition"])
  np.testing.assert_array_equal(images, in_bytes(found["condition"]))


def test_bicubic_is_pils():
  config = config_of(task__name="superres")
  source = sources.from_config(config)
  name, subject = tasks.simple(config.task, source)
  images = subject.draw()[0](np.arange(12))
  assert (name, subject.checkpoint["name"], subject.draw()[1]) == ("bicubic", "bicubic", None)
  for image, truth in zip(images, truths(source, np.arange(12))):
    small = Image.fromarray(truth[..., 0]).resize((2, 2), Image.Resampling.BICUBIC)
    again = np.asarray(small.resize((8, 8), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(image[..., 0] - again).max() <= 1  # floats of digits are rounded on two ways


def test_holes_are_filled_with_the_mean_around(colours):
  config = config_of()
  name, subject = tasks.simple(config.task, colours)
  seeds = np.arange(10)
  images, found = subject.draw()[0](seeds), colours.gather(tasks.examples_of(seeds, len(colours)))
  assert name == "mean colour"
  for image, truth, mask in zip(images, found["image"], found["mask"][..., 0]):
    np.testing.assert_array_equal(image[mask == 0], truth[mask == 0])
    mean = truth[mask == 0].astype(float).mean(0)
    assert np.abs(image[mask == 1] - mean).max() <= 0.5


def test_nothing_salient_has_the_error_of_the_masks():
  config = config_of(task__name="saliency", data__name="scenes", data__resolution=16)
  source = sources.from_config(config)
  name, subject = tasks.simple(config.task, source)
  (scores,) = scoring.score_block(subject.draw()[0], np.arange(20), tasks.scorers_for(config))
  truth = truths(source, np.arange(20))
  assert name == "nothing salient" and scores.keys() == {"mae", "mae_binary"}
  assert scores["mae"] == pytest.approx(truth.mean() / 255) and scores["mae_binary"] == (truth > 127).mean()


# --- scorers and pictures ---------------------------------------------------------------------------------------------


def test_scorers_of_a_task(source):
  pairs, frechet = tasks.scorers_for(config_of())
  assert pairs.metrics == ("psnr", "psnr_pooled") and frechet.metrics == ("frechet",)
  assert frechet.real.num_images == 297  # of the split: all digits would hold what the network was trained on
  assert tasks.source_of([pairs, frechet]) is pairs.source and tasks.source_of([frechet]) is frechet.real.source
  with pytest.raises(ValueError, match="metrics are psnr, .*, frechet, .*got 'fid'"):
    tasks.scorers_for(config_of(), ["fid"])
  stored = type("Stored", (), {"real": None})()
  with pytest.raises(ValueError, match="there is only a file of statistics: ask for psnr or mae too"):
    tasks.source_of([stored])


@pytest.mark.parametrize("count, columns, shown", [(40, 10, 30), (25, 10, 20), (7, 7, 7)])
def test_pictures_show_condition_image_truth(colours, count, columns, shown):
  seeds = np.arange(count)
  images = drawn(seeds, (16, 16, 3))
  rows = tasks.beside(colours, seeds, images, columns).reshape(-1, 3, columns, 16, 16, 3)
  found = tasks.gather(colours, seeds[:shown])
  for k, wanted in enumerate((found["condition"], images[:shown], found["image"])):
    np.testing.assert_array_equal(rows[:, k].reshape(-1, 16, 16, 3), wanted)


def test_masks_and_photographs_are_shown_together():
  """One channel beside three, floats beside bytes; sets of other sizes, or numbers, are refused."""
  grey, colour = drawn(range(4)), drawn(range(4), (8, 8, 3)).astype(np.float32) / 127.5 - 1
  rows = images_lib.compared([grey, colour], columns=2).reshape(2, 2, 2, 8, 8, 3)
  np.testing.assert_array_equal(rows[:, 0].reshape(4, 8, 8, 3), grey.repeat(3, -1))
  np.testing.assert_array_equal(rows[:, 1].reshape(4, 8, 8, 3), drawn(range(4), (8, 8, 3)))
  for sets, columns in (([grey, grey[:2]], 2), ([grey, drawn(range(4), (4, 4, 1))], 2), ([grey, grey], 3)):
    with pytest.raises(ValueError, match=r"sets must be \[N, H, W, C\]"):
      images_lib.compared(sets, columns)
