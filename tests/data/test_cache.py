"""Images held in memory, and σ_data."""

import concurrent.futures

import numpy as np
import pytest
from data.formats import make_zip, random_images

from diffusion_jax import config as config_lib
from diffusion_jax.data import batching, cache, sources
from diffusion_jax.evaluation import reference


class Counting(sources.Arrays):
  """Counts how often each image is read."""

  def gather(self, indices):
    np.add.at(self.__dict__.setdefault("reads", np.zeros(len(self), int)), indices, 1)
    return super().gather(indices)


def counting(count=50):
  images = random_images(count, 4, 4, 3)
  return Counting("a", "train", images, np.arange(count, dtype=np.int32) % 7, 7)


def test_every_image_is_read_once():
  source = counting()
  held = sources.Cached(source)
  for indices in ([3, 3, 1], [1, 2, 49], np.arange(0, 50, 2), np.arange(50)):
    got = held.gather(np.array(indices))
    np.testing.assert_array_equal(got["image"], source.images[indices])
    np.testing.assert_array_equal(got["label"], source.labels[indices])
  assert (source.reads == 1).all()
  assert (held.name, held.split, held.num_classes, held.image_shape, len(held)) == ("a", "train", 7, (4, 4, 3), 50)
  with pytest.raises(IndexError, match="must lie in"):
    held.gather(np.array([50]))


def test_a_host_holds_its_own_share_alone():
  source = counting()
  held = sources.Cached(source)
  mine = np.unique(batching.batch(held, 0, 0, 8, 4, 8)["index"])
  np.testing.assert_array_equal(np.flatnonzero(source.reads), mine)


def test_batches_are_the_same_with_and_without_a_cache(tmp_path):
  source = sources.load("zip", "train", path=make_zip(tmp_path / "a.zip", random_images(50, 4, 4, 3)))
  held = sources.Cached(source)
  for step in range(10):
    plain, cached = (batching.batch(s, 1, step, 16) for s in (source, held))
    for key in plain:
      np.testing.assert_array_equal(plain[key], cached[key])


def test_threads_share_a_cache():
  source = counting(2000)
  held = sources.Cached(source)
  draws = np.random.default_rng(0).integers(0, 2000, (64, 100))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for indices, got in zip(draws, pool.map(held.gather, draws)):
      np.testing.assert_array_equal(got["image"], source.images[indices])


def test_everything(tmp_path):
  images, labels = random_images(3000, 2, 2, 1), list(np.arange(3000) % 5)
  path = make_zip(tmp_path / "a.zip", images, list(map(int, labels)))
  source = sources.load("zip", "train", path=path)
  for kind in (source, sources.Cached(source), sources.load("digits", "train"), counting()):
    got = sources.everything(kind)
    expected = kind.gather(np.arange(len(kind)))
    assert got["image"].dtype == expected["image"].dtype and got["label"].dtype == np.int32
    np.testing.assert_array_equal(got["image"], expected["image"])
    np.testing.assert_array_equal(got["label"], expected["label"])


def test_everything_of_what_is_in_memory_is_no_copy(tmp_path):
  digits = sources.load("digits", "train")
  np.savez(tmp_path / "a.npz", images=random_images(5, 4, 4, 3))
  for source in (digits, sources.load("npz", "train", path=str(tmp_path / "a.npz"))):
    got = sources.everything(source)
    assert got["image"] is source.images and got["label"] is source.labels
  held = sources.Cached(digits)
  assert sources.everything(held)["image"] is held.whole()["image"]


def test_the_config_says_what_is_held(tmp_path, monkeypatch):
  path = make_zip(tmp_path / "a.zip", random_images(10, 4, 4, 3))
  config = config_lib.default()
  config.data.update(name="zip", path=path, resolution=4, channels=3, num_classes=0)
  size = 10 * 4 * 4 * 3

  def is_held(mode, memory=10**9, **changes):
    monkeypatch.setattr(cache, "available_memory", lambda: memory)
    config.data.cache = mode
    source = sources.from_config(config)
    assert reference.fingerprint(source) == reference.fingerprint(sources.load("zip", "train", path=path))
    return isinstance(source, sources.Cached)

  assert [is_held(mode) for mode in ("none", "host", "device", "auto")] == [False, True, True, True]
  assert is_held("auto", 4 * size) and not is_held("auto", 4 * size - 1) and is_held("host", 0)
  digits = config_lib.default()
  digits.data.cache = "host"
  assert isinstance(sources.from_config(digits), sources.Arrays)  # in memory already


def test_available_memory_is_less_than_all():
  assert 0 < cache.available_memory() < 2**50


MEMINFO = "MemTotal:  9000 kB\nMemAvailable:  4000 kB\nHugePages_Total:  0\n"
V2 = {"": ("max", 0, 0), "/job": ("3000000", 2000000, 500000), "/job/step": ("2800000", 1000000, 0)}


@pytest.mark.parametrize("version, own, changes, expected", [
  ("v2", "/job/step", {}, 1500000),  # that above it is less; its inactive files count as left
  ("v2", "/job/step", {"/job": ("max", 2000000, 0)}, 1800000),
  ("v2", "/", {}, 4000 * 1024),
  ("v2", "/", {"": ("100", 200, 0)}, 0),
  ("v2", "/../other/job", {"": ("900000", 500000, 0)}, 400000),  # a container, whose cgroup is at the top
  ("v1", "/job/step", {}, 1500000),
  ("v1", "/other", {"": ("9223372036854771712", 0, 0)}, 4000 * 1024),
])  # fmt: skip
def test_memory_of_cgroups(tmp_path, version, own, changes, expected):
  names = cache._CGROUP_V2 if version == "v2" else cache._CGROUP_V1
  (tmp_path / "proc/self").mkdir(parents=True)
  (tmp_path / "proc/meminfo").write_text(MEMINFO)
  line = "0::" if version == "v2" else "8:cpu,cpuacct:/x\n4:memory:"
  (tmp_path / "proc/self/cgroup").write_text(f"{line}{own}\n")
  for folder, (limit, used, inactive) in {**V2, **changes}.items():
    path = tmp_path / ("sys/fs/cgroup" + ("" if version == "v2" else "/memory") + folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, (limit, used, f"anon 1\n{names[2]} {inactive}\n")):
      (path / (name if name != names[2] else "memory.stat")).write_text(f"{text}\n")
  assert cache.available_memory(tmp_path) == expected
  assert cache.available_memory(tmp_path / "none") == 0


@pytest.mark.parametrize("chunk", [3, 1000])
def test_sigma_is_the_spread_about_the_mean_image(monkeypatch, chunk):
  monkeypatch.setattr("diffusion_jax.data.measure._CHUNK", chunk)
  images = random_images(50, 4, 4, 3)
  source = sources.Arrays("a", "train", images, np.zeros(50, np.int32), 0)
  x = (images / 127.5 - 1).reshape(50, -1)
  expected = np.sqrt(np.trace(np.cov(x.T, bias=True)) / x.shape[1])
  assert sources.measure_sigma(source) == pytest.approx(expected, rel=1e-12)
  few = np.arange(7) * 50 // 7
  expected = np.sqrt(np.trace(np.cov(x[few].T, bias=True)) / x.shape[1])
  assert sources.measure_sigma(source, 7) == pytest.approx(expected, rel=1e-12)
  digits = sources.load("digits", "train")
  variances = digits.images.astype(float).var(axis=0)
  assert sources.measure_sigma(digits) == pytest.approx(np.sqrt(variances.mean()), rel=1e-9)


def test_sigma_does_not_count_the_mean_image():
  """±a about any mean image is a; a set of one image has no spread."""
  mean, a = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 4, 1)), 0.25
  images = np.stack([mean + a, mean - a] * 10).astype(np.float32)
  source = sources.Arrays("a", "train", images, np.zeros(20, np.int32), 0)
  assert sources.measure_sigma(source) == pytest.approx(a, rel=1e-6)
  assert sources.measure_sigma(source, 1) == 0
  with pytest.raises(ValueError, match="limit must be >= 1"):
    sources.measure_sigma(source, 0)
