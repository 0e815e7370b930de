"""Reference statistics on disk: read back, read as EDM publishes them, and refused."""

import pickle

import numpy as np
import pytest

from diffusion_jax.evaluation import Moments, statistics
from diffusion_jax.evaluation.statistics import Statistics

X = np.random.default_rng(0).standard_normal((20, 4))
MEAN, COV = X.mean(0), np.cov(X, rowvar=False)
FULL = Statistics(MEAN, COV, 20, "digits", "ab12", "digits/all")


def same(got, expected):
  for name in ("mean", "covariance"):
    np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    assert getattr(got, name).dtype == np.float64
  for name in statistics.EXTRAS:
    assert getattr(got, name) == getattr(expected, name)
    assert type(getattr(got, name)) is type(getattr(expected, name))


def test_reads_back(tmp_path):
  path = tmp_path / "new" / "digits.npz"
  statistics.write(str(path), FULL)
  same(statistics.read(str(path)), FULL)
  same(statistics.read(path, "digits", "ab12"), FULL)
  assert [p.name for p in path.parent.iterdir()] == ["digits.npz"]
  with np.load(path) as file:  # as EDM's own fid.py reads it
    np.testing.assert_array_equal(file["mu"], MEAN)
    np.testing.assert_array_equal(file["sigma"], COV)


def test_reads_what_edm_publishes(tmp_path):
  path = tmp_path / "cifar10-32x32.npz"
  np.savez(path, mu=MEAN, sigma=COV)
  same(statistics.read(path, "inception-2015-12-05", "cd34"), Statistics(MEAN, COV))


def test_unknown_fields_are_not_written(tmp_path):
  statistics.write(tmp_path / "a.npz", Statistics(MEAN.astype(np.float32), COV, data="photos/train"))
  got = statistics.read(tmp_path / "a.npz", "digits")
  same(got, Statistics(MEAN.astype(np.float32), COV, data="photos/train"))
  with np.load(tmp_path / "a.npz") as file:
    assert sorted(file) == ["data", "mu", "sigma"]


def test_from_moments():
  got = Statistics.from_moments(Moments.empty(4).add(X), "digits", "ab12", "digits/all")
  np.testing.assert_allclose(got.mean, MEAN, rtol=1e-12)
  np.testing.assert_allclose(got.covariance, COV, rtol=1e-12)
  assert (got.num_images, got.extractor, got.weights, got.data) == (20, "digits", "ab12", "digits/all")
  with pytest.raises(ValueError, match="at least 2"):
    Statistics.from_moments(Moments.empty(4))


def test_is_replaced_only_when_asked(tmp_path):
  path = tmp_path / "a.npz"
  statistics.write(path, FULL)
  other = Statistics(MEAN + 1, COV)
  with pytest.raises(FileExistsError, match="overwrite=True"):
    statistics.write(path, other)
  same(statistics.read(path), FULL)
  statistics.write(path, other, overwrite=True)
  same(statistics.read(path), other)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
  path = tmp_path / "a.npz"
  statistics.write(path, FULL)

  def fail(file, **arrays):
    file.write(b"half")
    raise OSError("disk full")

  monkeypatch.setattr(np, "savez", fail)
  with pytest.raises(OSError, match="disk full"):
    statistics.write(path, Statistics(MEAN + 1, COV), overwrite=True)
  same(statistics.read(path), FULL)
  assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
  "asked, message", [(("inception", None), "digits, not with inception"), ((None, "cd"), "ab12, not with cd")]
)
def test_taken_with_something_else(tmp_path, asked, message):
  statistics.write(tmp_path / "a.npz", FULL)
  with pytest.raises(ValueError, match=f"a.npz: its statistics were taken with .*{message}"):
    statistics.read(tmp_path / "a.npz", *asked)


ASYMMETRIC = COV + np.triu(np.ones((4, 4)), 1)
WRONG = {
  "no covariance": ({"mu": MEAN}, "not an .npz file of statistics"),
  "other names": ({"mean": MEAN, "cov": COV}, "not an .npz file of statistics"),
  "other widths": ({"mu": MEAN[:3], "sigma": COV}, r"got shapes \[3\] and \[4, 4\]"),
  "transposed": ({"mu": COV, "sigma": MEAN}, r"got shapes \[4, 4\] and \[4\]"),
  "nothing": ({"mu": MEAN[:0], "sigma": COV[:0, :0]}, r"got shapes \[0\] and \[0, 0\]"),
  "not finite": ({"mu": MEAN, "sigma": COV * np.nan}, "must be finite"),
  "mean not finite": ({"mu": MEAN * np.inf, "sigma": COV}, "must be finite"),
  "not symmetric": ({"mu": MEAN, "sigma": ASYMMETRIC}, "must be symmetric"),
  "text": ({"mu": np.array(["a"] * 4), "sigma": COV}, "not an .npz file of statistics"),
  "objects": ({"mu": np.array([1, "a"], object), "sigma": COV}, "not an .npz file of statistics"),
  "two counts": ({"mu": MEAN, "sigma": COV, "num_images": [1, 2]}, "not an .npz file of statistics"),
}


@pytest.mark.parametrize("arrays, message", WRONG.values(), ids=WRONG)
def test_other_arrays(tmp_path, arrays, message):
  np.savez(tmp_path / "a.npz", **arrays)
  refused(tmp_path / "a.npz", message)


def refused(path, message):
  with pytest.raises(ValueError, match=message) as error:
    statistics.read(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


class Trap:
  """Pickled, it would make a file when it is read."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


def test_nothing_in_a_file_is_executed(tmp_path):
  mark = tmp_path / "mark"
  (tmp_path / "a.pkl").write_bytes(pickle.dumps(Trap(str(mark))))
  refused(tmp_path / "a.pkl", "not an .npz file")
  np.savez(tmp_path / "b.npz", mu=np.array([Trap(str(mark))], object), sigma=COV)
  refused(tmp_path / "b.npz", "not an .npz file")
  assert not mark.exists()


def test_other_files(tmp_path):
  refused(tmp_path / "missing.npz", "no such file")
  refused(tmp_path, "no such file")
  (tmp_path / "empty.npz").write_bytes(b"")
  refused(tmp_path / "empty.npz", "not an .npz file")
  np.save(tmp_path / "array.npy", MEAN)
  refused(tmp_path / "array.npy", "not an .npz file")
  (tmp_path / "text.npz").write_text("mu = 1\n")
  refused(tmp_path / "text.npz", "not an .npz file")


def test_cut_anywhere(tmp_path):
  statistics.write(tmp_path / "a.npz", FULL)
  whole = (tmp_path / "a.npz").read_bytes()
  for length in range(0, len(whole), 37):
    (tmp_path / "cut.npz").write_bytes(whole[:length])
    refused(tmp_path / "cut.npz", "not an .npz file")


@pytest.mark.parametrize("mean, cov", [(MEAN[None], COV), (MEAN, COV[:3]), (MEAN * np.inf, COV), (MEAN, ASYMMETRIC)])
def test_statistics_are_checked_when_made(mean, cov):
  with pytest.raises(ValueError, match="must be"):
    Statistics(mean, cov)
