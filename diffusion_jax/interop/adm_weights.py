"""OpenAI's guided-diffusion checkpoints, such as 128x128_diffusion.pt -> parameters of nets.unet in the style ADM.

    tensors = adm_weights.read("128x128_diffusion.pt")
    network = adm_weights.architecture(tensors).network(resolution=128, num_heads=4)
    params = adm_weights.from_state_dict(tensors, network)

Such a file is a plain state dict in PyTorch layout (OIHW and [out, in]) whose modules are numbered: input_blocks.N for
the first convolution, every block and every change of resolution of the encoder, middle_block.N, and output_blocks.N
for the decoder, a change of resolution lying in the last entry of the coarser level. Heads are channels of one output:
ε, then the variance if that was learned. Four facts are not in a file: the resolution, the chain, the number of heads,
and the order of the channels of queries, keys and values, (head, {q, k, v}, channel) or, in guided-diffusion's "new
attention order", ({q, k, v}, head, channel); nets.unet has (head, channel, {q, k, v}).

Names and shapes are facts of the published checkpoints. Source: Dhariwal and Nichol 2021, Appendix I (whose table of
hyper-parameters has 4 attention heads at 128×128, and heads of 64 channels elsewhere).
"""

import functools
import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffusion_jax import process
from diffusion_jax.interop import tensor_reader
from diffusion_jax.nets import blocks, layers, pretrained, unet
from diffusion_jax.types import Params

LICENCE = "{path}: OpenAI's guided-diffusion code and weights are published under the MIT licence."

Names = dict[str, tuple[str, ...]]  # module here -> prefix there; of a block those of its residual and attention parts

_GROUPS = 32  # of every GroupNorm there
_MAX_BLOCKS = 256
_RESIDUAL = {
  "norm0": "in_layers.0",
  "conv0": "in_layers.2",
  "affine": "emb_layers.1",
  "norm1": "out_layers.0",
  "conv1": "out_layers.3",
  "skip": "skip_connection",
}
_ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}


class Published(NamedTuple):
  """What the published file of an architecture does not say itself.

  Attributes:
    num_heads: of every attention; 0 for heads of 64 channels.
    new_order: channels of its qkv are ordered ({q, k, v}, head, channel).
    chain: that it was trained in; its noise embedding is of the index t − 1.
  """

  num_heads: int
  new_order: bool
  chain: process.Discrete


# By channels, channel_mult and num_blocks; all others have heads of 64 channels, the old order, and DDPM's chain.
_PUBLISHED = {
  (192, (1, 2, 3, 4), 3): Published(0, True, process.Cosine(1000)),  # 64x64_diffusion.pt
  (256, (1, 1, 2, 3, 4), 2): Published(4, False, process.DDPM()),  # 128x128_diffusion.pt
}


class Architecture(NamedTuple):
  """What a state dict says of its network.

  Attributes:
    image_channels: of the input.
    out_channels: of the output: of ε, and as many of a learned variance.
    channels: base width.
    channel_mult: widths of the levels by it.
    num_blocks: an encoder level.
    attention_levels: levels that attend, 0 the finest.
    num_classes: 0 for none.
  """

  image_channels: int
  out_channels: int
  channels: int
  channel_mult: tuple[int, ...]
  num_blocks: int
  attention_levels: tuple[int, ...]
  num_classes: int

  @property
  def published(self) -> Published | None:
    """The rest, where the architecture is that of a published file which differs from the others."""
    return _PUBLISHED.get((self.channels, self.channel_mult, self.num_blocks))

  @property
  def usual_resolution(self) -> int | None:
    """The resolution if its finest attention is at 32×32, as in all published files; None without attention."""
    return 32 << self.attention_levels[0] if self.attention_levels else None

  def network(self, resolution: int, num_heads: int = 0, **fields) -> unet.UNet:
    """The U-Net with heads "eps" and, of twice the images' channels, "variance"; ValueError if it is impossible."""
    images, out = self.image_channels, self.out_channels
    heads = (("eps", images), ("variance", images)) if out == 2 * images else (("eps", out),)
    return unet.adm(
      heads=heads,
      resolution=resolution,
      channels=self.channels,
      channel_mult=self.channel_mult,
      num_blocks=self.num_blocks,
      attention_resolutions=tuple(resolution >> level for level in self.attention_levels),
      num_classes=self.num_classes,
      num_heads=num_heads,
      **fields,
    )


def read(path) -> dict[str, np.ndarray]:
  """The tensors of a checkpoint file, without PyTorch; prints their licence.

  Raises:
    ValueError: there is no such file, or it is no state dict.
  """
  tensors = tensor_reader.read_state_dict(path)
  _print_licence(os.fspath(path))
  return tensors


def architecture(state_dict: Mapping[str, np.ndarray]) -> Architecture:
  """The architecture of a state dict, from its names and shapes; not that of a classifier, which has no decoder.

  Raises:
    ValueError: the tensors are not those of a guided-diffusion U-Net, or of one that nets.unet has no setting for.
  """
  channels = _shape(state_dict, "time_embed.0.weight", 2)[1]
  image_channels = _shape(state_dict, "input_blocks.0.0.weight", 4)[1]
  entries = _entries(state_dict, "output_blocks")
  if not entries or entries > _MAX_BLOCKS or entries != _entries(state_dict, "input_blocks"):
    raise ValueError(f"{entries} output_blocks, {_entries(state_dict, 'input_blocks')} input_blocks: expected as many")
  # The last entry of a level ends with a change of resolution, a residual block after the first.
  ups = [n for n in range(entries) if any(f"output_blocks.{n}.{i}.in_layers.0.weight" in state_dict for i in (1, 2))]
  num_blocks, levels = ups[0] if ups else entries - 1, len(ups) + 1
  others = [name for name in state_dict if name.endswith((".op.weight", ".conv.weight"))]
  if others:
    raise ValueError(f"tensor {min(others)!r}: expected residual blocks that change the resolution (resblock_updown)")
  if entries != levels * (num_blocks + 1):
    raise ValueError(f"{entries} output_blocks: expected {num_blocks + 1} for each of {levels} levels")
  mults, attending = [], []
  for level in range(levels):
    first = 1 + level * (num_blocks + 1)
    width = _shape(state_dict, f"input_blocks.{first}.0.out_layers.3.weight", 4)[0]
    if not channels or width % channels or not width:
      raise ValueError(f"level {level} has {width} channels: expected a multiple of the base width, {channels}")
    mults.append(width // channels)
    if f"input_blocks.{first}.1.qkv.weight" in state_dict:
      attending.append(level)
  num_classes = _shape(state_dict, "label_emb.weight", 2)[0] if "label_emb.weight" in state_dict else 0
  out_channels = _shape(state_dict, "out.2.weight", 4)[0]
  return Architecture(
    image_channels, out_channels, channels, tuple(mults), num_blocks, tuple(attending), num_classes
  )  # fmt: skip


def from_state_dict(state_dict: Mapping[str, np.ndarray], network: unet.UNet, new_order: bool | None = None) -> Params:
  """Parameters for network.apply({"params": ...}), float32 NumPy arrays.

  Args:
    state_dict: name -> array in PyTorch layout, of any floating type.
    network: a U-Net of the style ADM with one decoder; its heads are the output's channels in their order.
    new_order: whether qkv's channels have guided-diffusion's new attention order; None is what the published file of
      this architecture has.

  Raises:
    ValueError: a tensor is missing, unexpected or of another shape; the architecture is another one, or one whose
      normalisation has other groups than 32 here.
  """
  found = architecture(state_dict)
  _check(network, found)
  if new_order is None:
    new_order = found.published is not None and found.published.new_order
  image = jax.ShapeDtypeStruct((1, network.resolution, network.resolution, found.image_channels), jnp.float32)
  wanted = jax.eval_shape(network.init, jax.random.key(0), image, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]
  names = {**embedding_names(), **encoder_names(network), **middle_names(network), **decoder_names(network)}
  tensors = dict(state_dict)
  heads = lambda width: blocks.attention_heads(network.block, network.num_heads, width)
  params = take(tensors, wanted, names, heads, new_order)
  pretrained.refuse_others(tensors)
  return params


def take(tensors: dict[str, np.ndarray], wanted: Params, names: Names, heads, new_order: bool = False) -> Params:
  """Removes the tensors of modules from a state dict, and returns them as parameters.

  Args:
    tensors: name -> array; those that are taken are removed.
    wanted: {module: ...}: shapes of the parameters, such as those of a U-Net's init.
    names: of every module in `wanted`.
    heads: width -> number of heads of an attention of this width.
    new_order: as for `from_state_dict`.

  Raises:
    ValueError: a tensor is missing or of another shape.
  """
  params = {}
  for path, leaf in traverse_util.flatten_dict(wanted).items():
    name = _published_name(path, names)
    value = pretrained.take(tensors, name, _published_shape(path, leaf.shape))
    if path[-2:-1] == ("qkv",):
      count = heads(len(value) // 3)
      order, axis = ((3, count, -1), 0) if new_order else ((count, 3, -1), 1)
      value = np.moveaxis(value.reshape(*order, *value.shape[1:]), axis, 2).reshape(value.shape)
    if path[-1] == "kernel" and path[0] != "map_label":
      value = value.transpose(2, 3, 1, 0) if len(leaf.shape) == 4 else value.reshape(value.shape[:2]).T
    params[path] = np.ascontiguousarray(value)
  return traverse_util.unflatten_dict(params)


def embedding_names() -> Names:
  """Of the embedding of noise level and class."""
  return {"map_layer0": ("time_embed.0",), "map_layer1": ("time_embed.2",), "map_label": ("label_emb",)}


def encoder_names(network) -> Names:
  """Of the encoder of any network with a U-Net's resolution, channel_mult, num_blocks and attention_resolutions."""
  names, entry = {}, 0
  for level in range(len(network.channel_mult)):
    size = network.resolution >> level
    names[f"enc_{size}x{size}_{'down' if level else 'conv'}"] = (f"input_blocks.{entry}.0",)
    for i in range(network.num_blocks):
      entry += 1
      names[f"enc_{size}x{size}_block{i}"] = _parts(f"input_blocks.{entry}", size in network.attention_resolutions)
    entry += 1
  return names


def middle_names(network) -> Names:
  """Of the bottleneck, between encoder and decoder; `network` as for `encoder_names`."""
  size = network.resolution >> (len(network.channel_mult) - 1)
  return {
    f"dec_{size}x{size}_in0": ("middle_block.0", "middle_block.1"),
    f"dec_{size}x{size}_in1": ("middle_block.2",),
  }


def decoder_names(network: unet.UNet) -> Names:
  """Of the decoder without the bottleneck, and of the output layers."""
  names, entry = {"out_norm": ("out.0",), "out_conv": ("out.2",)}, 0
  for level in reversed(range(len(network.channel_mult))):
    size = network.resolution >> level
    for i in range(network.num_blocks + 1):
      parts = _parts(f"output_blocks.{entry}", size in network.attention_resolutions)
      names[f"dec_{size}x{size}_block{i}"] = parts
      entry += 1
    if level:  # the last entry holds the way up too, after its attention
      names[f"dec_{2 * size}x{2 * size}_up"] = (f"output_blocks.{entry - 1}.{len(parts)}",)
  return names


def _parts(entry: str, attend: bool) -> tuple[str, ...]:
  return (f"{entry}.0", f"{entry}.1") if attend else (f"{entry}.0",)


def _published_name(path: tuple[str, ...], names: Names) -> str:
  prefixes, last = names[path[0]], "bias" if path[-1] == "bias" else "weight"
  if len(path) == 2:
    return f"{prefixes[0]}.{last}"
  part = path[1]
  return f"{prefixes[1]}.{_ATTENTION[part]}.{last}" if part in _ATTENTION else f"{prefixes[0]}.{_RESIDUAL[part]}.{last}"


def _published_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
  """Of the tensor that becomes a parameter of this shape: maps within blocks are convolutions there."""
  if path[-1] != "kernel" or path[0] == "map_label":  # a table [classes, width]
    return shape
  ones = {"skip": (1, 1), "qkv": (1,), "proj": (1,)}.get(path[-2], ())
  return (shape[-1], shape[-2], *shape[:-2], *ones)


def _check(network: unet.UNet, found: Architecture):
  """Raises ValueError unless the network is of the architecture found; names the first difference."""
  attending = tuple(sorted(set(network.attention_resolutions), reverse=True))
  for field, mine, theirs in (
    ("block", network.block == blocks.ADM, True),
    ("embedding", network.embedding, "positional"),
    ("embedding_mult", network.embedding_mult, 1),
    ("encoder", network.encoder, "standard"),
    ("decoder", network.decoder, "standard"),
    ("decoders", network.decoders, 1),
    ("resample_filter", network.resample_filter, (1, 1)),
    ("augment_dim", network.augment_dim, 0),
    ("channels", network.channels, found.channels),
    ("channel_mult", network.channel_mult, found.channel_mult),
    ("num_blocks", network.num_blocks, found.num_blocks),
    ("attention_resolutions", attending, tuple(network.resolution >> level for level in found.attention_levels)),
    ("num_classes", network.num_classes, found.num_classes),
    ("heads", sum(width for _, width in network.heads), found.out_channels),
  ):  # fmt: skip
    if mine != theirs:
      raise ValueError(f"network.{field} = {mine!r}: the file's network has {theirs!r}")
  for mult in network.channel_mult:
    if layers.num_groups(network.channels * mult) != _GROUPS:
      raise ValueError(
        f"network.channels = {network.channels}: the file's network normalises {_GROUPS} groups of channels, this one "
        "as many from 128 channels on"
      )


def _shape(state_dict: Mapping[str, np.ndarray], name: str, rank: int) -> tuple[int, ...]:
  """Of a tensor that must be there and have this rank."""
  if name not in state_dict:
    raise ValueError(f"missing tensor {name!r}: no state dict of a guided-diffusion U-Net")
  shape = np.shape(state_dict[name])
  if len(shape) != rank:
    raise ValueError(f"tensor {name!r} has shape {list(shape)}: expected {rank} dimensions")
  return shape


def _entries(state_dict: Mapping[str, np.ndarray], name: str) -> int:
  """How many entries a numbered list of modules has."""
  return len({key.split(".")[1] for key in state_dict if key.startswith(f"{name}.")})


@functools.cache
def _print_licence(path: str):
  print(LICENCE.format(path=path))
