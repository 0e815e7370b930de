"""The bench: blocks of seeds, nothing computed twice, what a record's identity is, and the tables."""

import json

import numpy as np
import pytest

from diffusion_jax import config as config_lib
from diffusion_jax import evaluation
from diffusion_jax.data import sources
from diffusion_jax.evaluation import bench, features, records, report, scoring, statistics
from diffusion_jax.evaluation.records import Records
from diffusion_jax.evaluation.reference import RealImages

DIGITS = features.load("digits")
REAL = RealImages(DIGITS, sources.load("digits", "test"))


class Generator:
  """Noisy digits, and the seeds that were asked of it."""

  def __init__(self, noise=0.3):
    self.noise, self.seeds, self.opened = noise, [], 0

  def draw(self, seeds):
    self.seeds += list(map(int, seeds))
    images = sources.load("digits", "all").gather(np.asarray(seeds) % 1797)["image"]
    noise = np.stack([np.random.default_rng(int(seed)).standard_normal((8, 8, 1)) for seed in seeds])
    return (images + self.noise * noise).astype(np.float32)

  def subject(self, **sampling):
    def opened():
      self.opened += 1
      return self.draw, 7

    sampling = {**dict(config_lib.default().sampling), **sampling}
    return bench.Subject({"name": "run", "step": 3, "sha256": "ab"}, opened, sampling, "seed modulo 10")


def scorers(*metrics):
  return [scoring.Scorer(DIGITS, metrics, REAL)]


def test_blocks_have_their_own_seeds_and_scores(tmp_path):
  """Block b of a call is the one block of a call that starts at its first seed."""
  generator, log = Generator(), Records(tmp_path / "scores.jsonl")
  found = bench.score(generator.subject(), scorers("frechet"), log, 40, blocks=3)
  assert [record["seeds"] for record in found] == [[0, 39], [40, 79], [80, 119]]
  assert generator.seeds == list(range(120)) and generator.opened == 1
  other = Records(tmp_path / "other.jsonl")
  (alone,) = bench.score(Generator().subject(), scorers("frechet"), other, 40, first=80)
  assert alone["value"] == found[2]["value"] != found[1]["value"]
  stats = bench.summary(found)["frechet", "digits"]
  values = [record["value"] for record in found]
  assert stats["mean"] == pytest.approx(np.mean(values)) and stats["min"] == min(values)
  assert stats["std"] == pytest.approx(np.std(values, ddof=1))


def test_nothing_is_computed_twice(tmp_path):
  path = tmp_path / "scores.jsonl"
  first = bench.score(Generator().subject(), scorers("frechet"), Records(path), 40, blocks=2)
  again, done = Generator(), []
  assert bench.score(again.subject(), scorers("frechet"), Records(path), 40, 2, progress=done.append) == first
  assert again.opened == 0 and sum(done) == 80
  more = Generator()  # one block more, and one metric more
  bench.score(more.subject(), scorers("frechet"), Records(path), 40, blocks=3)
  assert more.seeds == list(range(80, 120))
  recall = Generator()
  found = bench.score(recall.subject(), scorers("frechet", "recall"), Records(path), 40, blocks=2)
  assert recall.seeds == list(range(80)) and found[0] == first[0]
  assert len(path.read_text().splitlines()) == 5


def test_a_record_says_where_it_comes_from(tmp_path):
  (record,) = bench.score(Generator().subject(num_steps=4), scorers("precision"), Records(tmp_path / "s.jsonl"), 40)
  assert record == json.loads((tmp_path / "s.jsonl").read_text())
  assert record["metric"] == "precision" and record["options"] == {"k": 3} and 0 <= record["value"] <= 1
  assert record["extractor"] == {"name": "digits", "weights": DIGITS.weights, "layer": "features", "resize": "none"}
  assert record["reference"] == {"name": "digits/test", "sha256": REAL.sha256, "num_images": 297}
  assert record["checkpoint"] == {"name": "run", "step": 3, "sha256": "ab"}
  assert (record["num_images"], record["standard"], record["nfe"]) == (40, False, 7)
  assert record["sampling"]["num_steps"] == 4 and record["labels"] == "seed modulo 10"
  assert set(record["versions"]) >= {"diffusion-jax", "jax", "numpy"} and record["device"] == "8 × cpu"


def template(**changes):
  (record,) = bench.wanted(Generator().subject(), scorers("frechet"), 40, 1)
  return {**record, **changes}


def test_identity_is_what_determines_the_value():
  same, record = records.identity(template()), template()
  renamed = {**record["checkpoint"], "name": "moved"}
  new_field = {**record["sampling"]}
  del new_field["snr"]  # as a record written before the field was there
  for changes in (
    {"checkpoint": renamed},
    {"sampling": new_field},
    {"value": 1.0, "nfe": 7, "versions": {}, "device": "1 × TPU"},
  ):
    assert records.identity(template(**changes)) == same, changes
  for changes in (
    {"checkpoint": {**renamed, "sha256": "ac"}},
    {"sampling": {**record["sampling"], "num_steps": 17}},
    {"seeds": [40, 79]},
    {"metric": "recall"},
    {"extractor": {**record["extractor"], "weights": "0"}},
    {"reference": {**record["reference"], "sha256": "0"}},
    {"labels": None},
  ):
    assert records.identity(template(**changes)) != same, changes


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path):
  path = tmp_path / "scores.jsonl"
  Records(path).add([template(value=1.0)])
  path.write_text(path.read_text() + '{"metric": "fre')
  log = Records(path)
  assert len(log) == 1 and log.get(template())["value"] == 1.0
  log.add([template(seeds=[5, 6], value=2.0)])
  assert len(Records(path)) == 2


def test_scores_that_are_not_finite_or_too_few_images_are_errors(tmp_path, monkeypatch):
  log = Records(tmp_path / "scores.jsonl")
  with pytest.raises(ValueError, match="at least 4 images and 1 block, got 3 and 1"):
    bench.score(Generator().subject(), scorers("recall"), log, 3)
  monkeypatch.setattr(scoring.Scorer, "scores", lambda self: {"frechet": float("nan")})
  with pytest.raises(ValueError, match=r"frechet of seeds \[0, 39\] is nan"):
    bench.score(Generator().subject(), scorers("frechet"), log, 40)
  assert not log.path.exists()


def config_of(**data):
  config = config_lib.default()
  config.data.update(**data)
  return config


def test_scorers_of_the_built_in_data():
  """Digits by their own features against all of them, memorisation in pixels against what was trained on."""
  main, copies = bench.scorers_for(config_of())
  assert (main.extractor.name, main.metrics) == ("digits", ("frechet", "precision", "recall"))
  assert main.reference("frechet").num_images == 1797
  assert (copies.extractor.name, copies.metrics) == ("pixels", ("memorised",))
  assert copies.reference("memorised").num_images == 1500
  (photos,) = bench.scorers_for(config_of(name="photos", resolution=16, channels=3, num_classes=0), ["frechet"])
  assert photos.extractor.name == "pixels" and photos.reference("frechet").name == "photos/train"


def test_each_metric_has_its_own_reference(tmp_path):
  """In pixels, the Fréchet distance is to what was asked for, and memorisation to what was trained on."""
  shifted = np.zeros(64), np.eye(64)
  statistics.write(tmp_path / "shifted.npz", statistics.Statistics(*shifted, extractor="pixels"))
  config, metrics = config_of(), ["frechet", "memorised"]
  values = {}
  for name, path in (("images", None), ("file", str(tmp_path / "shifted.npz"))):
    made = bench.scorers_for(config, metrics, "pixels", reference=path)
    log = Records(tmp_path / f"{name}.jsonl")
    found = bench.score(Generator().subject(), made, log, 40)
    assert [record["metric"] for record in found] == metrics
    assert found[1]["reference"]["name"] == "digits/train"
    values[name] = found[0]["value"]
    images = scoring.in_bytes(Generator().draw(np.arange(40))).reshape(40, 64).astype(np.float64)
    real = scoring.in_bytes(sources.load("digits", "all").gather(np.arange(1797))["image"]).reshape(1797, 64)
    target = shifted if path else evaluation.moments(real)
    wanted = evaluation.frechet_distance(*evaluation.moments(images), *target)
    assert values[name] == pytest.approx(wanted, rel=1e-9), name
  photos = config_of(name="photos", resolution=16, channels=3, num_classes=0)
  (one,) = bench.scorers_for(photos)
  assert one.metrics == ("frechet", "precision", "recall", "memorised")  # one pass over the images
  (one,) = bench.scorers_for(photos, None, "pixels", None, None)
  assert one.reference("memorised") is one.reference("frechet")


def test_statistics_stand_for_data_that_are_elsewhere(tmp_path):
  statistics.write(tmp_path / "real.npz", statistics.Statistics(np.zeros(192), np.eye(192)))
  config = config_of(name="zip", path="not/here.zip", channels=3, num_classes=0)
  (scorer,) = bench.scorers_for(config, reference=str(tmp_path / "real.npz"))
  assert scorer.metrics == ("frechet",) and scorer.reference("frechet").name == "real.npz"
  with pytest.raises(config_lib.ConfigError, match="not/here.zip"):
    bench.scorers_for(config, ["frechet", "recall"], reference=str(tmp_path / "real.npz"))


def test_scorers_that_cannot_be_had():
  for args, message in [
    ((["fid"],), "got 'fid'"),
    ((None, "inception"), "'inception' needs the file of its weights"),
    ((None, "clip"), "got 'clip'"),
  ]:
    with pytest.raises(ValueError, match=message):
      bench.scorers_for(config_of(), *args)
  with pytest.raises(ValueError, match="the real images are missing"):
    bench.scorers_for(config_of(name="", resolution=16, channels=3), ["frechet"])
  with pytest.raises(ValueError, match="precision needs the real images themselves"):
    bench.scorers_for(config_of(name="", resolution=16, channels=3), ["precision"], reference="a.npz")


def test_titles_name_fid_only_where_it_is_fid():
  assert report.title("frechet", features.INCEPTION) == "FID"
  assert report.title("kernel_distance", features.INCEPTION) == "KID"
  assert report.title("frechet", "digits") == "Fréchet distance (digits)"
  assert report.title("recall", "vgg16") == "recall (vgg16)"
  assert report.title("memorised", "pixels") == "memorised share"


def test_numbers_have_four_digits():
  assert [report.number(v) for v in (1.9712, 12.3456, 321.98, 0.01234, 0.0, 5, None, "x", 3731160.5)] == [
    "1.971", "12.35", "322.0", "0.0123", "0", "5", "–", "x", "3,731,160"
  ]  # fmt: skip
  stats = {"mean": 0.5, "std": 0.0123, "min": 0.49, "max": 0.52}
  assert report.cell(stats, "frechet") == "0.500 ± 0.012 (0.490)"
  assert report.cell(stats, "precision") == "0.500 ± 0.012 (0.520)"
  assert report.cell({**stats, "min": 0.5, "max": 0.5}, "frechet") == "0.500"


def test_a_table_is_markdown_and_its_rows_fit():
  assert report.markdown(["a", "score"], [["long name", 1.5], ["b", None]]) == "\n".join(
    ["| a         | score |", "|-----------|-------|", "| long name | 1.500 |", "| b         | –     |"]
  )
  with pytest.raises(ValueError, match="every row must have 2 cells"):
    report.markdown(["a", "b"], [["c"]])


def test_a_plot_is_written(tmp_path):
  lines = {"heun": [(3, 5.0, 0.1), (5, 0.4, 0.1)], "euler": [(4, 2.0, 0.0)]}
  report.plot(tmp_path / "a" / "plot.png", {"FID": lines, "recall": lines}, "NFE", note="note")
  assert (tmp_path / "a" / "plot.png").read_bytes()[:4] == b"\x89PNG"
