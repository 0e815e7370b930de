"""Images to look at: bytes, grids, PNG files."""

import io
import math
from collections.abc import Sequence

import numpy as np
from etils import epath

GAP = 255  # white, between tiles and in place of missing ones
DPI = 120  # of a figure
_MARGIN = 2  # white pixels around a figure's tile: strokes of neighbours do not run into each other


def to_uint8(images) -> np.ndarray:
  """Images in [−1, 1] as uint8 of the same shape: 127.5·x + 128, clipped to [0, 255] and truncated.

  Raises:
    ValueError: the images are not floating-point, or not all finite.
  """
  images = np.asarray(images)
  if np.issubdtype(images.dtype, np.integer) or images.dtype == bool:
    raise ValueError(f"images must be floating-point in [-1, 1], got {images.dtype}")
  images = images.astype(np.float32)
  if not np.isfinite(images).all():
    raise ValueError(f"images must be finite, got {np.count_nonzero(~np.isfinite(images))} values that are not")
  return np.clip(127.5 * images + 128, 0, 255).astype(np.uint8)


def compared(sets: Sequence, columns: int) -> np.ndarray:
  """Several sets of the same examples for a `grid`: a row of `columns` of each set, then the next examples.

  Args:
    sets: images [N, H, W, C], uint8 or in [−1, 1]; all of one size, N a multiple of columns; C is 1 or that of others.
    columns: examples a row.

  Returns:
    uint8 [len(sets)·N, H, W, C].

  Raises:
    ValueError: wrong shapes or kinds.
  """
  sets = [np.asarray(images) for images in sets]
  if any(images.ndim != 4 or images.shape[:3] != sets[0].shape[:3] for images in sets) or len(sets[0]) % columns:
    raise ValueError(f"sets must be [N, H, W, C], N of {columns}, got {[list(images.shape) for images in sets]}")
  channels = max(images.shape[-1] for images in sets)
  sets = [images if images.dtype == np.uint8 else to_uint8(images) for images in sets]
  sets = [np.broadcast_to(images, (*images.shape[:3], channels)) for images in sets]
  rows = [images.reshape(-1, 1, columns, *images.shape[1:]) for images in sets]
  return np.concatenate(rows, 1).reshape(-1, *rows[0].shape[3:])


def grid(images, columns: int | None = None, scale: int = 1) -> np.ndarray:
  """Tiles images row by row, one pixel apart.

  Args:
    images: [N, H, W, C], uint8 or floating-point in [−1, 1].
    columns: tiles in a row; ⌈√N⌉ by default.
    scale: every pixel becomes scale × scale pixels; the gap stays one pixel wide.

  Returns:
    uint8 [rows·(scale·H + 1) − 1, columns·(scale·W + 1) − 1, C]; gaps and missing tiles are white.

  Raises:
    ValueError: wrong shape or type, columns or scale below 1, or values that are not finite.
  """
  images = np.asarray(images)
  if images.ndim != 4 or not images.size:
    raise ValueError(f"images must be [N, H, W, C] with N >= 1, got shape {list(images.shape)}")
  columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
  for name, value in (("columns", columns), ("scale", scale)):
    if value < 1:
      raise ValueError(f"{name} must be >= 1, got {value}")
  images = images if images.dtype == np.uint8 else to_uint8(images)
  images = images.repeat(scale, axis=1).repeat(scale, axis=2)
  n, h, w, c = images.shape
  rows = -(-n // columns)
  tiles = np.full((rows * columns, h + 1, w + 1, c), GAP, np.uint8)
  tiles[:n, :h, :w] = images
  tiles = tiles.reshape(rows, columns, h + 1, w + 1, c).swapaxes(1, 2)
  return tiles.reshape(rows * (h + 1), columns * (w + 1), c)[:-1, :-1]


def save_png(path, images, columns: int | None = None, scale: int = 1, overwrite: bool = False):
  """Writes the grid of `images` [N, H, W, C], C = 1 or 3, to `path`, making its folder.

  Args:
    path: a string or path, local or of any file system that etils.epath knows.
    images: as in `grid`.
    columns: as in `grid`.
    scale: as in `grid`.
    overwrite: whether a file that exists may be replaced.

  Raises:
    ValueError: as `grid`, or C is neither 1 nor 3.
    FileExistsError: the file exists and overwrite is False.
  """
  from PIL import Image

  picture = grid(images, columns, scale)
  if picture.shape[-1] not in (1, 3):
    raise ValueError(f"images must have 1 or 3 channels to be saved, got {picture.shape[-1]}")
  path = epath.Path(path)
  if path.exists() and not overwrite:
    raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
  data = io.BytesIO()
  Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(data, format="PNG")
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data.getvalue())


def figure(rows: int, columns: int, tiles: tuple[int, int], resolution: int, above: float = 0.35):
  """A Matplotlib figure of rows × columns axes, each for `draw` of `tiles` (rows, columns).

  Args:
    rows: of axes.
    columns: of axes.
    tiles: rows and columns of tiles on each of them.
    resolution: of the images.
    above: inches between rows of axes.

  Returns:
    (figure, axes [rows, columns]); to be saved with DPI and bbox_inches="tight".
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  size = _enlarged(resolution) * resolution + 2 * _MARGIN + 1
  height, width = tiles[0] * size / DPI, tiles[1] * size / DPI
  shape = (columns * width + 0.15 * (columns - 1), rows * (height + above))
  figure, axes = plt.subplots(rows, columns, figsize=shape, squeeze=False)
  figure.subplots_adjust(0, 0, 1, 1, wspace=0.15 / width, hspace=above / height)
  return figure, axes


def draw(axes, rows: Sequence, title: str = "", left: Sequence[str] = (), below: Sequence[str] = ()):
  """Draws rows of tiles, each [n, H, W, C] in [−1, 1]; `left` labels the rows, `below` the columns."""
  tiles = to_uint8(np.concatenate([np.asarray(row) for row in rows]))
  tiles = tiles.repeat(_enlarged(tiles.shape[1]), axis=1).repeat(_enlarged(tiles.shape[2]), axis=2)
  tiles = np.pad(tiles, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)), constant_values=GAP)
  picture = grid(tiles, columns=len(rows[0]))
  axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
  centres = lambda count, size: (np.arange(count) + 0.5) * size / count - 0.5
  height, width = picture.shape[:2]
  axes.set_title(title, fontsize=9)
  axes.set_yticks(centres(len(rows), height) if len(left) else [], left, fontsize=8)
  axes.set_xticks(centres(len(rows[0]), width) if len(below) else [], below, fontsize=7)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)


def _enlarged(resolution: int) -> int:
  return max(1, 64 // resolution)
