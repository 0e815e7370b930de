"""Inception-2015-12-05, the network of FID and of the Inception Score: bytes in, features of five depths out.

    u = pretrained.resize(images, 299)/128 − 1                                                             (1)
    y = relu(γ·(w * x − μ)/√(v + 10⁻³) + β) = relu(w' * x + b')       w' = γw/√(v + 10⁻³)       (2)

Batch normalisation is folded into w' and b' when weights are loaded. Submodules have the names of the published state
dict ("Mixed_5b.branch1x1" is Mixed_5b/branch1x1). Products are in full float32 on every device: FID is compared to the
third digit. Source: Szegedy et al. 2016; where this network differs from it (pooling, 1008 logits) the published
TensorFlow graph's way is kept.
"""

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffusion_jax.nets import pretrained
from diffusion_jax.nets.pretrained import take
from diffusion_jax.types import Array, Params

SIZE = 299  # pixels a side, of the network's input
RESIZE = f"TensorFlow 1's bilinear to {SIZE}×{SIZE}"
_EPS = 1e-3  # of every batch normalisation
_BN = ("weight", "bias", "running_mean", "running_var")


def features(params: Params, images) -> dict[str, Array]:
  """Features of images at five depths.

  Args:
    params: from `from_state_dict`.
    images: [B, H, W, 3] uint8, of any size.

  Returns:
    {"64", "192", "768", "2048", "logits", "logits_unbiased"}, each [B, d] float32: spatial means of four layers ("2048"
    is FID's pool3), the 1008 logits, and the same without the bias (the Inception Score's).

  Raises:
    ValueError: images of another type or shape.
  """
  pretrained.check_bytes("images", images)
  return _features(params, images)


@jax.jit
def _features(params, images):
  x = pretrained.resize(images, SIZE)
  return Inception().apply({"params": params}, (x - 128) / 128)


def from_state_dict(state_dict: Mapping[str, np.ndarray]) -> Params:
  """Parameters for `features` from a state dict of torch-fidelity's or pytorch-fid's weights.

  Args:
    state_dict: name -> array in PyTorch layout, 472 of them; num_batches_tracked may be there and does not count.

  Raises:
    ValueError: a tensor is missing, unexpected or of another shape.
  """
  tensors = {name: value for name, value in state_dict.items() if not name.endswith(".num_batches_tracked")}
  wanted, params = traverse_util.flatten_dict(_shapes()), {}
  for path in sorted({path[:-1] for path in wanted}):
    name, shape = ".".join(path), wanted[*path, "kernel"].shape
    if name == "fc":
      kernel, bias = take(tensors, "fc.weight", shape[::-1]).T, take(tensors, "fc.bias", shape[-1:])
    else:
      kernel = take(tensors, f"{name}.conv.weight", (shape[3], shape[2], *shape[:2])).transpose(2, 3, 1, 0)
      gamma, beta, mean, var = (take(tensors, f"{name}.bn.{leaf}", shape[-1:]).astype(np.float64) for leaf in _BN)
      scale = gamma / np.sqrt(var + _EPS)
      kernel, bias = kernel * scale, beta - mean * scale  # equation (2)
    params[*path, "kernel"], params[*path, "bias"] = np.float32(kernel), np.float32(bias)
  pretrained.refuse_others(tensors)
  return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(params))


@functools.cache
def _shapes():
  image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  return jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]



class Conv(nn.Module):
  """Convolution, folded batch normalisation and ReLU: equation (2); padded with zeros where the stride is 1."""

  features: int
  window: tuple[int, int] = (1, 1)
  stride: int = 1

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (*self.window, x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return nn.relu(pretrained.conv(x, kernel, self.stride) + bias)



class Inception(nn.Module):
  """The network after resizing and scaling: [B, 299, 299, 3] -> the dictionary of `features`."""

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    out = {}
    x = Conv(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
    x = _inner(Conv(32, (3, 3), name="Conv2d_2a_3x3")(x))
    x = Conv(64, (3, 3), name="Conv2d_2b_3x3")(x)
    x = _halved(x)
    out["64"] = x.mean((1, 2))
    x = Conv(80, name="Conv2d_3b_1x1")(x)
    x = _inner(Conv(192, (3, 3), name="Conv2d_4a_3x3")(x))
    x = _halved(x)
    out["192"] = x.mean((1, 2))
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
      x = BlockA(pooled, name=name)(x)
    x = BlockB(name="Mixed_6a")(x)
    for name, narrow in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
      x = BlockC(narrow, name=name)(x)
    out["768"] = x.mean((1, 2))
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(_averaged, name="Mixed_7b")(x)
    x = BlockE(_peaks, name="Mixed_7c")(x)  # a maximum: the published graph's, not the paper's
    out["2048"] = x.mean((1, 2))
    return {**out, **Logits(name="fc")(out["2048"])}


class Logits(nn.Module):
  """The linear classifier of 1008 classes, with and without its bias."""

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 1008))
    bias = self.param("bias", nn.initializers.zeros, (1008,))
    logits = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    return {"logits": logits + bias, "logits_unbiased": logits}


class BlockA(nn.Module):
  """35×35: windows of 1, 5 and twice 3, and an average; `pooled` channels of the last."""

  pooled: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return _joined(
      Conv(64, name="branch1x1")(x),
      _branch(x, "branch5x5", (48, (1, 1)), (64, (5, 5))),
      _branch(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
      Conv(self.pooled, name="branch_pool")(_averaged(x)),
    )


class BlockB(nn.Module):
  """35×35 -> 17×17."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    double = _branch(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)))
    return _joined(
      Conv(384, (3, 3), 2, name="branch3x3")(x),
      Conv(96, (3, 3), 2, name="branch3x3dbl_3")(double),
      _halved(x),
    )


class BlockC(nn.Module):
  """17×17: windows of 7 as products of rows and columns, through `narrow` channels."""

  narrow: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    n, row, column = self.narrow, (1, 7), (7, 1)
    return _joined(
      Conv(192, name="branch1x1")(x),
      _branch(x, "branch7x7", (n, (1, 1)), (n, row), (192, column)),
      _branch(x, "branch7x7dbl", (n, (1, 1)), (n, column), (n, row), (n, column), (192, row)),
      Conv(192, name="branch_pool")(_averaged(x)),
    )


class BlockD(nn.Module):
  """17×17 -> 8×8."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    seven = _branch(x, "branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
    return _joined(
      Conv(320, (3, 3), 2, name="branch3x3_2")(_branch(x, "branch3x3", (192, (1, 1)))),
      Conv(192, (3, 3), 2, name="branch7x7x3_4")(seven),
      _halved(x),
    )


class BlockE(nn.Module):
  """8×8: rows and columns of 3 side by side; `pool` keeps the size."""

  pool: Callable[[Array], Array]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    three = _branch(x, "branch3x3", (384, (1, 1)))
    double = _branch(x, "branch3x3dbl", (448, (1, 1)), (384, (3, 3)))
    return _joined(
      Conv(320, name="branch1x1")(x),
      Conv(384, (1, 3), name="branch3x3_2a")(three),
      Conv(384, (3, 1), name="branch3x3_2b")(three),
      Conv(384, (1, 3), name="branch3x3dbl_3a")(double),
      Conv(384, (3, 1), name="branch3x3dbl_3b")(double),
      Conv(192, name="branch_pool")(self.pool(x)),
    )


def _branch(x: Array, name: str, *layers: tuple[int, tuple[int, int]]) -> Array:
  """A chain of convolutions (features, window) named `name`_1, `name`_2, ..."""
  for i, (width, window) in enumerate(layers, 1):
    x = Conv(width, window, name=f"{name}_{i}")(x)
  return x


def _joined(*branches: Array) -> Array:
  return jnp.concatenate(branches, -1)


def _inner(x: Array) -> Array:
  """Without its border, where a 3×3 window met zeros. An unpadded convolution takes 2-3 times as long in XLA on CPU."""
  return x[:, 1:-1, 1:-1]


def _halved(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), (2, 2))


def _peaks(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _averaged(x: Array) -> Array:
  """Means of 3×3 neighbours, of those inside the image alone."""
  return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
