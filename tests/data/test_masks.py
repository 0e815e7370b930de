"""Holes for inpainting."""

import hashlib

import numpy as np
import pytest

from diffusion_jax.data import masks


@pytest.mark.parametrize("kind", masks.KINDS)
@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (4, 9)])
def test_some_pixels_are_holes_and_some_are_not(kind, shape):
  shares = [masks.holes(kind, i, shape).mean() for i in range(300)]
  assert 0 < min(shares) and max(shares) < 1


def test_holes_are_fixed():
  """Results refer to these holes: they may never change."""
  holes = {kind: np.stack([masks.holes(kind, i, (32, 32)) for i in range(50)]) for kind in masks.KINDS}
  digests = {kind: hashlib.sha256(np.packbits(x).tobytes()).hexdigest()[:16] for kind, x in holes.items()}
  assert digests == {"strokes": "414f1b297819cab0", "boxes": "6983bed60c993aa7", "mixed": "e662dae6cb997031"}


def test_boxes_are_unions_of_at_most_three_rectangles():
  """The number of convex corners of a union of k rectangles is at most 4k; one rectangle fills its bounding box."""
  single = 0
  for i in range(200):
    mask = masks.holes("boxes", i, (32, 32))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    single += box.all()
    assert len(rows) >= 8 and len(columns) >= 8
    padded = np.pad(mask, 1).astype(int)
    around = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]
    assert (around == 1).sum() <= 12  # convex corners
  assert 50 < single < 150  # about a third is one rectangle, or looks so


def test_a_stroke_is_all_that_is_near_its_segment():
  mask = np.zeros((40, 60), bool)
  start, stop, radius = np.array([10.0, 5.0]), np.array([30.0, 70.0]), 6.5
  masks._paint(mask, start, stop, radius)
  points = start + np.linspace(0, 1, 4001)[:, None] * (stop - start)
  centres = np.stack(np.mgrid[:40, :60], axis=-1) + 0.5
  distance = np.sqrt(((centres[:, :, None] - points[::10]) ** 2).sum(-1)).min(-1)
  clear = np.abs(distance - radius) > 0.05  # of the 401 points
  np.testing.assert_array_equal(mask[clear], distance[clear] < radius)
  assert clear.mean() > 0.95


def test_mixed_is_one_or_the_other():
  strokes = 0
  for i in range(200):
    mixed, one, other = (masks.holes(kind, i, (16, 16)) for kind in ("mixed", "strokes", "boxes"))
    assert (mixed == one).all() or (mixed == other).all()
    strokes += (mixed == one).all()
  assert 70 < strokes < 130


def test_holes_differ_from_example_to_example():
  for kind in masks.KINDS:
    assert len({masks.holes(kind, i, (32, 32)).tobytes() for i in range(300)}) == 300


@pytest.mark.parametrize("kind, shape, message", [("stroke", (8, 8), "kinds of"), ("boxes", (8, 3), "at least 4")])
def test_what_cannot_be_made(kind, shape, message):
  with pytest.raises(ValueError, match=message):
    masks.holes(kind, 0, shape)
