"""Inception Score against torch-fidelity's numbers, closed forms and the formula written out."""

from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import evaluation
from diffusion_jax.evaluation.entropy import inception_score

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"


def golden(*names):
  with np.load(GOLDEN) as file:
    return [file[name] for name in names]


def test_golden():
  logits, mean, std = golden("logits", "isc_mean", "isc_std")
  got = inception_score(logits, 10)
  assert all(isinstance(x, float) for x in got)
  assert got == pytest.approx((float(mean), float(std)), rel=1e-9)
  assert evaluation.inception_score is inception_score


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_formula_written_out(splits):
  """103 images: the splits differ by one, and all images are used."""
  logits = np.random.default_rng(0).standard_normal((103, 5))
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  edges = [i * 103 // splits for i in range(splits + 1)]
  parts = [p[i:j] for i, j in zip(edges, edges[1:])]
  assert sum(map(len, parts)) == 103
  scores = [np.exp(np.mean(np.sum(q * np.log(q / q.mean(0)), 1))) for q in parts]
  assert inception_score(logits, splits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


@pytest.mark.parametrize("size", [50.0, 1e5])
def test_sure_of_every_class_alike(size):
  """One-hot p: the number of classes; at 1e5 every other p underflows."""
  logits = size * np.eye(6)[np.tile(np.arange(6), 20)]
  assert inception_score(logits, 10) == pytest.approx((6, 0), abs=1e-9)
  assert inception_score(logits, 1)[0] == pytest.approx(6, rel=1e-12)


def test_nothing_told_apart():
  row = np.random.default_rng(1).standard_normal(9)
  assert inception_score(np.tile(row, (50, 1)), 5) == pytest.approx((1, 0), abs=1e-12)


def test_spread_of_the_splits():
  """Half of the splits see one class, half see two: scores 1 and 2, of standard deviation ½ (divisor `splits`)."""
  classes = np.concatenate([np.zeros(20, int), np.tile([0, 1], 10)])
  assert inception_score(1e3 * np.eye(2)[classes], 4) == pytest.approx((1.5, 0.5), rel=1e-12)


def test_a_shift_of_the_logits_says_nothing():
  logits = np.random.default_rng(2).standard_normal((40, 3))
  shift = 1e6 * np.arange(40)[:, None]
  assert inception_score(logits + shift, 2) == pytest.approx(inception_score(logits, 2), rel=1e-8)


@pytest.mark.parametrize(
  "logits, splits, message",
  [
    (np.zeros(10), 1, r"\[N, classes\]"),
    (np.zeros((10, 0)), 1, r"\[N, classes\]"),
    (np.zeros((0, 10)), 1, r"\[N, classes\]"),
    (np.zeros((9, 10)), 10, r"splits must be in \[1, 9\]"),
    (np.zeros((9, 10)), 0, "splits must be"),
    (np.array([[0.0, np.nan], [1.0, 1.0], [np.inf, np.inf]]), 1, "finite, got 2 of 3 rows"),
  ],
)
def test_bad_input(logits, splits, message):
  with pytest.raises(ValueError, match=message):
    inception_score(logits, splits)
