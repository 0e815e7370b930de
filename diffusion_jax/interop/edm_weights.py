"""State dicts of the published EDM networks -> parameters of nets.unet: renaming and transposing, checked.

Names and shapes are facts of NVIDIA's published checkpoints (PyTorch layout: OIHW and [out, in]). A tensor
"model.enc.16x16_block0.conv0.weight" becomes params["enc_16x16_block0"]["conv0"]["kernel"].
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffusion_jax.nets import unet
from diffusion_jax.types import Params

# Constructor arguments by their published names, and the fields of unet.UNet.
_FIELDS = {
  "img_resolution": "resolution",
  "label_dim": "num_classes",
  "augment_dim": "augment_dim",
  "model_channels": "channels",
  "channel_mult": "channel_mult",
  "num_blocks": "num_blocks",
  "attn_resolutions": "attention_resolutions",
  "dropout": "dropout",
  "embedding_type": "embedding",
  "channel_mult_noise": "embedding_mult",
  "encoder_type": "encoder",
  "decoder_type": "decoder",
  "resample_filter": "resample_filter",
}
# Arguments of the preconditioner and of training, which do not shape the network.
_ELSEWHERE = {
  "model_type", "img_channels", "use_fp16", "label_dropout", "sigma_min", "sigma_max", "sigma_data", "beta_d",
  "beta_min", "M", "epsilon_t", "C_1", "C_2",
}  # fmt: skip
_ONE_BY_ONE = re.compile(r"(^|_|/)(skip|qkv|proj)$")  # convolutions that nets.unet holds as linear maps


def network_from_kwargs(init_kwargs: Mapping[str, Any], precond: str = "EDMPrecond") -> unet.UNet:
  """The U-Net that a published checkpoint's constructor arguments describe.

  Args:
    init_kwargs: the preconditioner's keyword arguments (img_resolution, img_channels, model_type, ...).
    precond: class name of the preconditioner; iDDPMPrecond's network has a second head "variance".

  Raises:
    ValueError: an argument is unknown or missing, or model_type is neither SongUNet nor DhariwalUNet.
  """
  for name in ("img_resolution", "img_channels"):
    if name not in init_kwargs:
      raise ValueError(f"missing argument {name!r} of a published network")
  # The published default is a DhariwalUNet, except for VP and VE.
  model_type = init_kwargs.get("model_type", "SongUNet" if precond in ("VPPrecond", "VEPrecond") else "DhariwalUNet")
  presets = {"SongUNet": unet.ddpmpp, "DhariwalUNet": unet.adm}
  if model_type not in presets:
    raise ValueError(f"model_type = {model_type!r}: expected one of {', '.join(presets)}")
  fields = dict(dropout=0.1)
  if model_type == "SongUNet":
    fields.update(channel_mult=(1, 2, 2, 2))
  for name, value in init_kwargs.items():
    if name in _FIELDS:
      fields[_FIELDS[name]] = tuple(value) if isinstance(value, (list, tuple)) else value
    elif name == "channel_mult_emb":
      if value != 4:
        raise ValueError(f"channel_mult_emb = {value!r}: expected 4")
    elif name not in _ELSEWHERE:
      raise ValueError(f"unknown argument {name!r} of a published network")
  image_channels = init_kwargs["img_channels"]
  heads = [("out", image_channels)] + [("variance", image_channels)] * (precond == "iDDPMPrecond")
  sizes = [fields["resolution"] >> level for level in range(len(fields.get("channel_mult", (1, 2, 3, 4))))]
  wanted = fields.get("attention_resolutions", (16,) if model_type == "SongUNet" else (32, 16, 8))
  fields["attention_resolutions"] = tuple(size for size in wanted if size in sizes)  # there, others are no error
  return presets[model_type](heads=tuple(heads), **fields)


def with_constants(state_dict: Mapping[str, np.ndarray], network: unet.UNet) -> unet.UNet:
  """`network` with the state dict's Fourier frequencies, which are constants and not parameters."""
  freqs = _strip(state_dict).get("map_noise.freqs")
  return network if freqs is None else network.clone(freqs=tuple(float(f) for f in np.asarray(freqs, np.float32)))


def unet_params(state_dict: Mapping[str, np.ndarray], network: unet.UNet) -> Params:
  """Parameters for network.apply({"params": ...}) from a state dict of arrays, with or without the prefix "model.".

  Args:
    state_dict: name -> array in PyTorch layout. Buffers may be absent.
    network: the U-Net the weights are for; a Fourier one from `with_constants`, so that its frequencies are theirs.

  Raises:
    ValueError: a tensor is missing, unexpected or of another shape, or a buffer differs from the network's constant.
  """
  tensors = _strip(state_dict)
  _check_buffers(tensors, network)
  entry = f"enc.{network.resolution}x{network.resolution}_conv.weight"
  if entry not in tensors:
    raise ValueError(f"missing tensor {entry!r}: the network's first layer")
  if np.ndim(tensors[entry]) != 4:
    raise ValueError(f"tensor {entry!r} has shape {list(np.shape(tensors[entry]))}: expected four dimensions")
  image = jax.ShapeDtypeStruct((1, network.resolution, network.resolution, np.shape(tensors[entry])[1]), jnp.float32)
  wanted = jax.eval_shape(network.init, jax.random.key(0), image, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]

  params = {}
  for path, leaf in traverse_util.flatten_dict(wanted).items():
    name = _published_name(path)
    one_by_one = path[-1] == "kernel" and len(leaf.shape) == 2 and _ONE_BY_ONE.search(path[-2])
    shape = leaf.shape if leaf.ndim < 2 else (leaf.shape[-1], leaf.shape[-2], *leaf.shape[:-2])
    shape += (1, 1) if one_by_one else ()
    if name not in tensors:
      raise ValueError(f"missing tensor {name!r}: expected shape {list(shape)}")
    value = np.asarray(tensors.pop(name), np.float32)
    if value.shape != shape:
      raise ValueError(f"tensor {name!r} has shape {list(value.shape)}: expected {list(shape)}")
    if one_by_one:
      value = value[:, :, 0, 0]
    params[path] = jnp.asarray(value.T if value.ndim < 4 else value.transpose(2, 3, 1, 0))
  if tensors:
    name = min(tensors)
    raise ValueError(f"unexpected tensor {name!r} of shape {list(np.shape(tensors[name]))}: the network has no such")
  return traverse_util.unflatten_dict(params)


def _strip(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The network's own entries without the prefix; `u` is a table of iDDPM's preconditioner."""
  return {name.removeprefix("model."): value for name, value in state_dict.items() if name != "u"}


def _published_name(path: tuple[str, ...]) -> str:
  names = [re.sub(r"^(enc|dec)_", r"\1.", name) for name in path[:-1]]
  return ".".join([*names, "bias" if path[-1] == "bias" else "weight"])


def _check_buffers(tensors: dict[str, np.ndarray], network: unet.UNet):
  """Takes the buffers out of `tensors`; raises ValueError where one contradicts the network."""
  taps = np.asarray(network.resample_filter, np.float32)
  square = np.outer(taps, taps)[None, None] / taps.sum() ** 2
  for name in [name for name in tensors if name.endswith("resample_filter")]:
    value = np.asarray(tensors.pop(name))
    if value.shape != square.shape or not np.allclose(value, square, atol=1e-6):
      raise ValueError(f"tensor {name!r} of shape {list(value.shape)}: expected the filter {list(taps)} squared")
  freqs = tensors.pop("map_noise.freqs", None)
  if network.embedding == "fourier":
    if freqs is None:
      raise ValueError("missing tensor 'map_noise.freqs': the frequencies of a Fourier embedding")
    if network.freqs is None or not np.array_equal(np.asarray(network.freqs, np.float32), np.asarray(freqs)):
      raise ValueError("tensor 'map_noise.freqs' differs from the network's freqs: take the network of with_constants")
  elif freqs is not None:
    raise ValueError(f"unexpected tensor 'map_noise.freqs' of shape {list(np.shape(freqs))}: embedding is positional")
