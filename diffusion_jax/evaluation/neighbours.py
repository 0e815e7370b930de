"""Nearest neighbours, and improved precision and recall (Kynkäänniemi et al. 2019).

    r(y) = distance of y to its k-th neighbour in its own set Y, itself not counted                      (1)
    x is covered by Y  ⇔  |x − y| <= r(y) for some y in Y                                                (2)

Precision is the share of generated points that the real ones cover, recall that of real ones that the generated cover.

Decisions are those of float64: the devices compare squared distances in float32 with a bound on their rounding and
leave out what cannot matter; the pairs that remain are computed from their differences, in float64. For points x and y
moved and scaled into [−1, 1]^d about their mean (u = 2⁻²⁴ is float32's rounding):

    |D̂(x, y) − |x − y|²| <= s(x) + s(y),   s(x) = 2u·(d + 32)·(|x|² + 10⁻²⁴)                              (3)

where (d + 6)·u·(|x|² + |y|²) bounds a sum of d products in any order and what surrounds it, 4u their own rounding, and
10⁻²⁴ what underflows. Held at a time are a block of distances and the features, as float32 on every device. All pairs
of equal points would remain, so that of a collapsed generator's images only as many are kept as can matter.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import mesh

NEIGHBOURS = 3  # k of the papers' precision and recall
BLOCK = 1 << 25  # distances held at a time, over all devices: 128 MiB
PAIRS = 1 << 22  # numbers of a block of pairs in float64: 32 MiB


class Balls(NamedTuple):
  """What covers by equation (2): centres [N, d], of equal ones only as many as matter, and squared radii [N]."""

  centres: np.ndarray
  squares: np.ndarray


def precision_recall(real, fake, k: int = 3, real_balls: Callable[[], Balls] | None = None) -> tuple[float, float]:
  """Improved precision and recall, each in [0, 1], by equations (1) and (2).

  Args:
    real: features [N, d].
    fake: features [M, d] of generated images.
    k: the neighbour that sets a ball's radius.
    real_balls: gives `balls(real, k)`, for those who keep them to compare many sets with the same real images.

  Returns:
    precision: share of `fake` covered by `real`.
    recall: share of `real` covered by `fake`.

  Raises:
    ValueError: wrong shapes, k below 1 or not below N and M, or values that are not finite.
  """
  real, fake = np.asarray(real), np.asarray(fake)
  if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or not real.shape[1]:
    raise ValueError(f"real and fake must be [N, d] and [M, d], got {list(real.shape)} and {list(fake.shape)}")
  if not 1 <= k < min(len(real), len(fake)):
    raise ValueError(f"k must be >= 1 and below the {min(len(real), len(fake))} points of the smaller set, got {k}")
  for name, x in (("real", real), ("fake", fake)):
    bad = len(x) - np.count_nonzero(np.isfinite(x).all(axis=1))
    if bad:
      raise ValueError(f"{name} must be finite, got {bad} of {len(x)} rows that are not")
  cover = real_balls() if real_balls else balls(real, k)
  return float(np.mean(_covered(fake, cover))), float(np.mean(_covered(real, balls(fake, k))))


def balls(points, k: int) -> Balls:
  """The balls of finite points [N, d], by equation (1); N > k."""
  _, _, copy = _distinct(points)
  centres = points[copy <= k]  # k + 1 equal ones have the radius 0, and give no other point a further neighbour
  return Balls(centres, kth_nearest(centres, centres, k, skip=np.arange(len(centres)))[0])


def kth_nearest(a, b, k: int = 1, skip=None) -> tuple[np.ndarray, np.ndarray]:
  """The k-th nearest row of `b` to each row of `a`, the first of equal ones first.

  Args:
    a: [N, d], finite.
    b: [M, d], finite, on the same scale.
    k: 1 for the nearest.
    skip: [N]; row i may not choose b[skip[i]], so that M > k is needed.

  Returns:
    squares: [N] float64 squared Euclidean distances, exactly 0 for equal rows.
    indices: [N] int64 in [0, M).
  """
  skip = np.full(len(a), -1) if skip is None else np.asarray(skip)
  squares, indices = np.empty(len(a)), np.empty(len(a), np.int64)
  (a32, b32), _ = _prepare(a, b)
  near = functools.partial(_near, k)
  for start, stop, (candidates,) in _blocks(near, (*a32, skip.astype(np.int32)), b32):
    rows, columns = np.nonzero(candidates)
    found = _exact(a, start + rows, b, columns)
    order = np.lexsort((columns, found, rows))
    kth = order[np.searchsorted(rows, np.arange(stop - start)) + k - 1]
    squares[start:stop], indices[start:stop] = found[kth], columns[kth]
  return squares, indices


def _covered(points, by: Balls) -> np.ndarray:
  """Equation (2) for each of `points`: [N] bool."""
  (centres, radii), (points, which, _) = by, _distinct(points)
  covered = np.empty(len(points), bool)
  (points32, centres32), scale = _prepare(points, centres)
  radii32 = (radii / scale / scale).astype(np.float32)
  for start, stop, (sure, candidates) in _blocks(_inside, points32, (*centres32, radii32)):
    rows, columns = np.nonzero(candidates)
    inside = _exact(points, start + rows, centres, columns) <= radii[columns]
    covered[start:stop] = sure
    covered[start + rows[inside]] = True
  return covered[which]


def _distinct(x):
  """The distinct rows, which of them each row is, and how many of its equals come before it."""
  rows = np.ascontiguousarray(x).view(np.dtype((np.void, x.dtype.itemsize * x.shape[1]))).reshape(-1)
  _, first, which, counts = np.unique(rows, return_index=True, return_inverse=True, return_counts=True)
  order = np.argsort(which, kind="stable")
  copy = np.empty(len(x), np.int64)
  copy[order] = np.arange(len(x)) - np.repeat(np.cumsum(counts) - counts, counts)
  return x[first], which, copy


def _prepare(a, b):
  """Each set as float32 (x [n, d], |x|² [n], s(x) [n]) of equation (3); and the scale that x was divided by."""
  mean = b.mean(axis=0, dtype=np.float64)
  parts = [[x[i : i + 1024] for i in range(0, len(x), 1024)] for x in (a, b)]  # float64 in small portions
  scale = max(np.abs(part - mean).max() for x in parts for part in x) or 1.0
  out = []
  for x in parts:
    rows, squares = [], []
    for part in x:
      centred = (part - mean) / scale
      rows.append(centred.astype(np.float32))
      squares.append(np.sum(np.square(centred), axis=1))
    squares = np.concatenate(squares)
    slack = 2.0**-23 * (len(mean) + 32) * (squares + 1e-24)
    out.append((np.concatenate(rows), squares.astype(np.float32), slack.astype(np.float32)))
  return out, scale


def _blocks(function, a, b):
  """Yields (start, stop, arrays of function(rows of a, b)); rows lie over the local devices, b on each of them."""
  n, m, devices = len(a[0]), len(b[0]), jax.local_device_count()
  size = devices * min(max(1, BLOCK // (m * devices)), -(-n // devices))
  b = mesh.everywhere(b)
  for start in range(0, n, size):
    rows = np.arange(start, start + size) % n  # whole blocks: one compilation
    out = function(tuple(mesh.spread(x[rows]) for x in a), b)
    stop = min(start + size, n)
    yield start, stop, [np.asarray(x)[: stop - start] for x in out]


def _squares(x, xx, x_slack, y, yy, y_slack):
  """D̂ of equation (3) and its bound, [n, m]."""
  products = jnp.dot(x, y.T, precision=jax.lax.Precision.HIGHEST)
  return xx[:, None] + yy - 2 * products, x_slack[:, None] + y_slack


@functools.partial(jax.jit, static_argnums=0)
def _near(k, a, b):
  """Which pairs [n, m] may be among the k nearest: nothing closer than they can be is surely passed over."""
  *a, skip = a
  squares, slack = _squares(*a, *b)
  skipped = skip[:, None] == jnp.arange(squares.shape[1])
  farthest = jnp.where(skipped, jnp.inf, squares + slack)
  kth = jnp.full_like(farthest[:, :1], -jnp.inf)
  for _ in range(k):  # the k-th of distinct values is no nearer than the k-th; top_k takes 30 times as long on CPU
    kth = jnp.where(farthest > kth, farthest, jnp.inf).min(axis=1, keepdims=True)
  return ((squares - slack <= kth) & ~skipped,)


@jax.jit
def _inside(a, b):
  """Which rows are surely covered, [n], and for the others which pairs [n, m] may cover them."""
  *b, radii = b
  squares, slack = _squares(*a, *b)
  sure = (squares + slack <= radii).any(axis=1)
  return sure, (squares - slack <= radii) & ~sure[:, None]


def _exact(a, rows, b, columns) -> np.ndarray:
  """|a[rows] − b[columns]|² in float64; the same whichever set comes first."""
  out = np.empty(len(rows))
  size = max(1, PAIRS // a.shape[1])
  for i in range(0, len(rows), size):
    part = slice(i, i + size)
    out[part] = np.sum(np.square(a[rows[part]].astype(np.float64) - b[columns[part]]), axis=1)
  return out
