"""The distances d(a, b) by which a method says how far an image is from the one it should be.

    l1 = ‖a − b‖_1,  l2 = ‖a − b‖²,  pseudo_huber = √(‖a − b‖² + c²) − c, c = .00054·√D                             (1)
    lpips: of images below 256 pixels a side resized bilinearly to 224, grey ones in three channels                 (2)
    features: LPIPS's form on a classifier of 8×8 digits, nets/digits_metric.py                                     (3)
    pseudo_lpips, pseudo_features = √(d + c²) − c, c = 6.9·10⁻⁵                                                     (4)

Sums over the whole image in (1), as in the papers. Source: Zhang, Wang and Luo 2024, Section 3, which prints the last
c of (4) inside the root.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from diffusion_jax import config as config_lib
from diffusion_jax import losses
from diffusion_jax.interop import tensor_reader
from diffusion_jax.nets import digits_metric, vgg
from diffusion_jax.types import Array, Params

Distance = Callable[[Array, Array], Array]

PSEUDO_C = 6.9e-5  # c of (4)
LPIPS_SIZE, LPIPS_RESIZED_BELOW = 224, 256  # pixels a side
METRICS = ("l1", "l2", "pseudo_huber", "lpips", "pseudo_lpips", "features", "pseudo_features")
_OF_PIXELS = {"l1": losses.absolute_error, "l2": losses.squared_error}


def from_config(config, metric: str, c: float = 0.0, field: str = "dddm.metric") -> Distance:
  """The distance of a name, (a, b) -> [B] of images [B, H, W, C] in [−1, 1]; its gradients are finite everywhere.

  Where a = b it is 0, with gradient 0 to rounding but for l1, which has no derivative there.

  LPIPS's weights are read when the distance is first traced: of a run, before anything compiles; what only samples from
  it needs no files.

  Args:
    config: the run's config; reads `lpips` and `data`.
    metric: one of METRICS.
    c: of the pseudo metrics; 0 for their own.
    field: the field that says the metric, for errors; c's is field + "_c".

  Raises:
    ConfigError: an unknown metric, c of a metric without one, LPIPS without weights or of other images than grey or
      colour ones, features of other images than 8×8 grey digits. When traced: LPIPS's weights cannot be read.
  """
  config_lib.choose(field, metric, METRICS)
  is_pseudo = metric.startswith("pseudo_")
  if c and not is_pseudo:
    raise config_lib.wrong(f"{field}_c", c, f"must be 0 for {field} = {metric!r}, which has no c")
  if not 0 <= c < float("inf"):
    raise config_lib.wrong(f"{field}_c", c, "must be a number of at least 0")
  if metric == "pseudo_huber":
    return lambda a, b: losses.pseudo_huber(a, b, c or None)
  if metric in _OF_PIXELS:
    return _OF_PIXELS[metric]
  plain = _OF_NETWORKS[metric.removeprefix("pseudo_")](config, field)
  return (lambda a, b: losses.pseudo(plain(a, b), c or PSEUDO_C)) if is_pseudo else plain


def _lpips(config, field: str) -> Distance:
  weights = tuple(config.lpips.weights)
  if not weights:
    expected = (
      f"{field} needs LPIPS's files of PyTorch, those of VGG16 (vgg16-397923af.pth) and of its linear layers (vgg.pth);"
      " metrics without files are pseudo_huber and, for 8×8 digits, features"
    )
    raise config_lib.wrong("lpips.weights", weights, expected)
  if config.data.channels not in (1, 3):
    raise config_lib.wrong("data.channels", config.data.channels, f"must be 1 or 3 for LPIPS, by {field}")
  return lambda a, b: vgg.lpips(lpips_params(weights), _for_lpips(a), _for_lpips(b))


def _for_lpips(images: Array) -> Array:
  """Images of equation (2), [B, H, W, 3]."""
  batch, height, width, channels = images.shape
  if min(height, width) < LPIPS_RESIZED_BELOW:
    size = (batch, LPIPS_SIZE, LPIPS_SIZE, channels)
    images = jax.image.resize(images, size, "bilinear", antialias=False)  # PyTorch's, which averages nothing
  return jnp.broadcast_to(images, (*images.shape[:-1], 3))


@functools.lru_cache(maxsize=1)
def lpips_params(paths: tuple[str, ...]) -> Params:
  """LPIPS's parameters from the files of config.lpips.weights, as NumPy arrays; raises ConfigError."""
  tensors = {}
  try:
    for path in paths:
      tensors |= tensor_reader.read_state_dict(path)
    needed = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
    with jax.ensure_compile_time_eval():  # the first call may be within a trace
      params = jax.device_get(vgg.from_state_dict(needed))
    if "lin" not in params:
      raise ValueError("missing tensor 'lin0.model.1.weight', of LPIPS's linear layers (vgg.pth)")
  except ValueError as error:
    raise config_lib.wrong("lpips.weights", paths, str(error)) from None
  return params


def _features(config, field: str) -> Distance:
  data = config.data
  given = (data.name, data.resolution, data.channels)
  if given != ("digits", 8, 1):
    expected = "must be ('digits', 8, 1) for the metric features, whose network knows nothing else"
    raise config_lib.wrong("data.name, data.resolution, data.channels", given, f"{expected}; see {field}")

  def distance(a, b):
    warn_of_features()
    return digits_metric.distance(digits_metric.params(), a, b)

  return distance


@functools.lru_cache(maxsize=1)
def warn_of_features():
  """Says, once a process, that the metric features is not LPIPS."""
  logging.warning(
    "The metric 'features' is NOT LPIPS: it compares activations of a small classifier of 8×8 digits, trained on the"
    " 297 images of their test split. Its results say nothing of LPIPS's."
  )


_OF_NETWORKS = {"lpips": _lpips, "features": _features}
