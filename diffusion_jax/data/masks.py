"""Holes for inpainting, a pure function of the example's number: brush strokes, rectangles, or either.

Raw Philox words decide, which numpy keeps the same from version to version, and only +, −, ·, / and comparisons are
done on them, which every machine rounds alike: an image has the same holes everywhere and always.
"""

import numpy as np

_SEED = 0x686F6C65  # apart from all other draws
_SEGMENTS = 64  # of strokes, at most
_BOXES = 3  # at most; a box covers at most one corner of the image, so that three never cover all of it


def holes(kind: str, index: int, shape: tuple[int, int]) -> np.ndarray:
  """The holes of one image.

  Args:
    kind: "strokes", paths of a round brush that cover at least some tenth to two fifths of the image; "boxes", one to
      three rectangles with sides of a quarter to five eighths of it; "mixed", one or the other.
    index: of the example.
    shape: (H, W), each at least 4.

  Returns:
    [H, W] bool, True in holes: some pixels are and some are not.

  Raises:
    ValueError: an unknown kind, or a shape too small.
  """
  if kind not in KINDS:
    raise ValueError(f"kinds of holes are {', '.join(KINDS)}, got {kind!r}")
  if min(shape) < 4:
    raise ValueError(f"holes are made in images of at least 4×4 pixels, got {shape[0]}×{shape[1]}")
  words = np.random.Philox(np.random.SeedSequence([_SEED, index])).random_raw(4 + 6 * _SEGMENTS)
  first, draws = words[0], (words[1:] >> np.uint64(11)) * 2.0**-53  # uniform in [0, 1)
  if kind == "mixed":
    kind = ("strokes", "boxes")[int(first >> np.uint64(63))]
  return {"strokes": _strokes, "boxes": _boxes}[kind](draws, np.array(shape))


KINDS = ("strokes", "boxes", "mixed")


def _boxes(u, shape) -> np.ndarray:
  mask = np.zeros(shape, bool)
  for k in range(1 + int(u[0] * _BOXES)):
    size, corner = u[1 + 4 * k : 3 + 4 * k], u[3 + 4 * k : 5 + 4 * k]
    least, most = shape // 4, shape * 5 // 8
    side = least + (size * (most - least + 1)).astype(int)
    top, left = (corner * (shape - side + 1)).astype(int)
    mask[top : top + side[0], left : left + side[1]] = True
  return mask


def _strokes(u, shape) -> np.ndarray:
  """Segment upon segment until enough is covered; one covers at most a fifth, so the whole never is."""
  mask, short = np.zeros(shape, bool), shape.min()
  wanted = (0.1 + 0.3 * u[0]) * mask.size
  at = u[1:3] * shape
  radius = _radius(u[3], short)
  for new, row, column, lifted_row, lifted_column, width in u[3:].reshape(-1, 6)[:_SEGMENTS]:
    if new < 0.25:  # the brush is lifted
      at, radius = np.array([lifted_row, lifted_column]) * shape, _radius(width, short)
    to = np.clip(at + (np.array([row, column]) - 0.5) * short, 0, shape)
    _paint(mask, at, to, radius)
    at = to
    if mask.sum() >= wanted:
      break
  return mask


def _radius(u: float, short: int) -> float:
  return max(0.75, (1 / 32 + u / 16) * short)  # .75: a pixel's centre is always within reach


def _paint(mask, start, stop, radius):
  """Sets the pixels of `mask` whose centres are within `radius` of the segment from `start` to `stop` [2]."""
  low = np.maximum(np.floor(np.minimum(start, stop) - radius), 0).astype(int)
  high = np.ceil(np.maximum(start, stop) + radius).astype(int)
  rows, columns = (np.arange(a, min(b, n)) + 0.5 for a, b, n in zip(low, high, mask.shape))
  along = stop - start
  length = max(float(along[0] * along[0] + along[1] * along[1]), 1e-12)
  dy, dx = rows[:, None] - start[0], columns - start[1]
  share = np.clip((dy * along[0] + dx * along[1]) / length, 0, 1)  # of the segment, at the point nearest to the pixel
  dy, dx = dy - share * along[0], dx - share * along[1]
  mask[low[0] : low[0] + len(rows), low[1] : low[1] + len(columns)] |= dy * dy + dx * dx <= radius * radius
