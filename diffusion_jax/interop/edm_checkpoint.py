"""NVIDIA's published EDM networks as denoisers.

    D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise),  x = y + σ·n                         (Karras et al. 2022, eq. 7)

    denoise, params = edm_checkpoint.load("edm-cifar10-32x32-cond-vp.pkl")
    x0 = samplers.heun(edm_checkpoint.as_denoise(denoise, params, labels), process.EDM(), x, times.edm_grid(18))

The pickle's `ema` entry names its preconditioner and records the arguments that both it and its network were made with.
Networks run in float32 here, those published for float16 too.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import methods, process, times
from diffusion_jax import parameterization as par
from diffusion_jax.interop import edm_weights, tensor_reader
from diffusion_jax.methods import edm
from diffusion_jax.nets import blocks, unet
from diffusion_jax.types import Array, Denoise, Params, Prediction, check_images

LICENCE = (
  "{path}: NVIDIA's EDM weights are licensed under CC BY-NC-SA 4.0 (Creative Commons Attribution-NonCommercial-"
  "ShareAlike 4.0 International): non-commercial use only."
)

# Preconditioners by their published class names: the class here, and its fields by the published arguments' names.
_RANGE = {"sigma_min": "sigma_min", "sigma_max": "sigma_max"}
_PRECONDITIONERS = {
  "EDMPrecond": (par.EDMPreconditioner, {"sigma_data": "sigma_data", **_RANGE}),
  "VPPrecond": (
    par.VPPreconditioner,
    {"beta_d": "beta_d", "beta_min": "beta_min", "M": "num_levels", "epsilon_t": "epsilon_t"},
  ),
  "VEPrecond": (par.VEPreconditioner, _RANGE),
  "iDDPMPrecond": (par.IDDPMPreconditioner, {"M": "num_levels", "C_1": "c1", "C_2": "c2"}),
}
_NETWORKS = ("SongUNet", "DhariwalUNet")

# Recorded arguments by kind, with what a file may plausibly say; the rest are names, checked by the network.
_COUNTS = {
  "img_resolution", "img_channels", "label_dim", "augment_dim", "model_channels", "num_blocks", "channel_mult_noise",
  "channel_mult_emb", "M",
}  # fmt: skip
_COUNT_LISTS = {"channel_mult", "attn_resolutions"}
_NUMBERS = {
  "dropout", "label_dropout", "sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "epsilon_t", "C_1", "C_2",
}  # fmt: skip
_MAX_COUNT = 100_000
_MAX_LIST = 16


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """A published network with its preconditioner: a pure function of the parameters and the noisy images.

  Attributes:
    network: the U-Net; its head "out" is F.
    preconditioner: the scalings around it.
    channels: of the images.
    label_dropout: share of examples that were trained without their label.
  """

  network: unet.UNet
  preconditioner: par.Preconditioner
  channels: int
  label_dropout: float = 0.0

  def __call__(self, params: Params, x: Array, noise_level, labels=None, augment=None) -> Array:
    """The denoised images D(x; σ).

    Args:
      params: what `load` or `from_state_dict` returned beside this denoiser.
      x: [B, H, W, C] clean images in [−1, 1] plus noise_level times unit noise.
      noise_level: EDM's σ > 0, a scalar or [B].
      labels: classes [B], integers with −1 for none, or one-hot [B, num_classes]; None is no label.
      augment: [B, augment_dim] augmentation labels; None is no augmentation.

    Returns:
      [B, H, W, C] float32.

    Raises:
      ValueError: x, noise_level, labels or augment has a shape that this network cannot take, or a class is out of
        range.
    """
    return self.predict(params, x, noise_level, labels, augment).clean

  def predict(self, params: Params, x: Array, noise_level, labels=None, augment=None) -> Prediction:
    """(D, ε̂) at x, each [B, H, W, C]; arguments as for the call. ε̂ = (x − D)/σ without its cancellation."""
    x, noise_level, labels, augment = map(_as_array, (x, noise_level, labels, augment))
    check_images("x", x, self.channels)
    batch, size = x.shape[0], self.network.resolution
    if x.shape[1:3] != (size, size):
      raise ValueError(f"x must be [B, {size}, {size}, {self.channels}], got shape {list(x.shape)}")
    if jnp.shape(noise_level) not in ((), (batch,)):
      raise ValueError(f"noise_level must be a scalar or [{batch}], got shape {list(jnp.shape(noise_level))}")
    labels = self._one_hot(labels, batch)
    apply = lambda x, c_noise: self.network.apply({"params": params}, x, c_noise, labels, augment)["out"]
    return par.precondition(apply, self.preconditioner)(x, noise_level)

  def _one_hot(self, labels, batch: int) -> Array | None:
    if labels is None:
      return None
    classes = self.network.num_classes
    if not classes:
      raise ValueError("labels must be None: the network is unconditional")
    if jnp.shape(labels) == (batch, classes):
      return jnp.asarray(labels, jnp.float32)
    if jnp.shape(labels) != (batch,) or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
      raise ValueError(
        f"labels must be integers [{batch}] or one-hot [{batch}, {classes}], got shape {list(jnp.shape(labels))} of "
        f"{jnp.result_type(labels)}"
      )
    if not isinstance(labels, jax.core.Tracer):
      wrong = [int(label) for label in np.asarray(labels) if not -1 <= label < classes]
      if wrong:
        raise ValueError(f"labels must be in 0..{classes - 1}, or -1 for none, got {wrong[0]}")
    return jax.nn.one_hot(labels, classes)  # zeros for −1


def load(path) -> tuple[Denoiser, Params]:
  """Opens a published EDM checkpoint (.pkl) without PyTorch; nothing in the file is run.

  Args:
    path: a string or path, local or remote as etils' epath knows them.

  Returns:
    (denoise, params): a Denoiser, denoise(params, x, noise_level, labels=None, augment=None) -> D, and a pytree of
    float32 arrays.

  Raises:
    ValueError: there is no such file, it is no such checkpoint, or its tensors do not fit the network it records.
  """
  checkpoint = tensor_reader.read(path)
  try:
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("ema"), tensor_reader.Record):
      raise ValueError("no EDM checkpoint: expected a dict whose entry 'ema' is a network")
    ema = checkpoint["ema"]
    _check_preconditioner(ema.name)
    tensors = tensor_reader.module_tensors(ema)
    if ema.state.get("_init_args"):
      raise ValueError(f"{ema.name} was made with positional arguments: expected named ones")
    kwargs = ema.state.get("_init_kwargs")
    model = ema.state["_modules"].get("model")
    name = model.name if isinstance(model, tensor_reader.Record) else None
    if name not in _NETWORKS:
      raise ValueError(f"network class {str(name)[:80]!r}: expected one of {', '.join(_NETWORKS)}")
    denoise, params = from_state_dict(tensors, ema.name, kwargs)
    if (name == "SongUNet") != (denoise.network.block == blocks.SONG):
      raise ValueError(f"the recorded arguments are not those of the network, a {name}")
  except ValueError as error:
    raise ValueError(f"{os.fspath(path)}: {error}") from None
  _print_licence(os.fspath(path))
  return denoise, params


def from_state_dict(
  state_dict: Mapping[str, np.ndarray], precond: str, init_kwargs: Mapping[str, Any]
) -> tuple[Denoiser, Params]:
  """The denoiser of a published network from its tensors.

  Args:
    state_dict: name -> array in PyTorch layout, with or without the prefix "model."; buffers may be absent.
    precond: class name of the preconditioner: EDMPrecond, VPPrecond, VEPrecond or iDDPMPrecond.
    init_kwargs: its constructor's arguments by name, which include the network's.

  Returns:
    (denoise, params) as `load` does.

  Raises:
    ValueError: a class is unknown, an argument is unknown, missing or impossible, or a tensor is missing, unexpected
      or of another shape.
  """
  _check_preconditioner(precond)
  _check_arguments(init_kwargs)
  preconditioner = _preconditioner(precond, init_kwargs)
  network = edm_weights.network_from_kwargs(init_kwargs, precond)
  if network.num_blocks * len(network.channel_mult) > min(len(state_dict), 256):  # a false count would take hours
    raise ValueError(f"num_blocks = {network.num_blocks}: the {len(state_dict)} tensors cannot be those of so many")
  _check_levels(state_dict, preconditioner)
  network = edm_weights.with_constants(state_dict, network)
  params = edm_weights.unet_params(state_dict, network)
  return Denoiser(network, preconditioner, init_kwargs["img_channels"], init_kwargs.get("label_dropout", 0.0)), params


def as_denoise(denoise: Denoiser, params: Params, labels=None) -> Denoise:
  """The Denoise of `process.EDM` that samplers take: (x [B, H, W, C], noise level) -> Prediction.

  Args:
    denoise: from `load` or `from_state_dict`.
    params: what came with it.
    labels: classes of the batch's images, as the denoiser takes them.
  """
  return lambda x, t: denoise.predict(params, x, t, labels)


def column(denoise: Denoiser) -> str:
  """The column of Table 1 that a published network's preconditioner is: edm, vp, ve or iddpm."""
  names = {par.EDMPreconditioner: "edm", par.VPPreconditioner: "vp", par.VEPreconditioner: "ve"}
  return names.get(type(denoise.preconditioner), "iddpm")


def as_run(denoise: Denoiser) -> tuple[ConfigDict, methods.Method]:
  """A config and a method by which scripts sample from a published network as from a run of their own.

  The method cannot train: `init` and `update` are None. Its denoise takes {"params": params}; the config's sampling is
  the paper's deterministic sampler with 18 steps, 40 from 64×64 on.
  """
  network = denoise.network
  config = config_lib.default()
  config.data.update(
    name="none", resolution=network.resolution, channels=denoise.channels, num_classes=network.num_classes
  )
  config.edm.preconditioner = column(denoise)
  config.edm.sigma_data = getattr(denoise.preconditioner, "sigma_data", config.edm.sigma_data)
  config.label_dropout = denoise.label_dropout
  config.sampling.num_steps = 18 if network.resolution < 64 else 40

  def predict(variables, x, t, cond=None):
    return denoise.predict(variables["params"], x, t, (cond or {}).get("label") if network.num_classes else None)

  return config, methods.Method(None, None, predict, process.EDM(), edm.SAMPLERS, denoise.preconditioner)


def load_run(path: str) -> tuple[ConfigDict, methods.Method, Params]:
  """A published pickle by `load`, as a run: config and method of `as_run`, and the variables; ValueError as `load`."""
  denoise, params = load(path)
  return *as_run(denoise), {"params": params}


def _as_array(value):
  """Lists and numbers as arrays; what is traced stays so."""
  return value if value is None or isinstance(value, jax.Array) else np.asarray(value)


@functools.cache
def _print_licence(path: str):
  print(LICENCE.format(path=path))


def _check_preconditioner(name: str):
  if name not in _PRECONDITIONERS:
    raise ValueError(f"preconditioner class {str(name)[:80]!r}: expected one of {', '.join(_PRECONDITIONERS)}")


def _check_arguments(init_kwargs: Mapping[str, Any]):
  """Raises ValueError unless every recorded argument is of the kind that its name implies."""
  if not isinstance(init_kwargs, Mapping):
    raise ValueError(f"the recorded arguments must be a dict, got a {type(init_kwargs).__name__}")
  count = lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= _MAX_COUNT
  number = lambda v: isinstance(v, int | float | np.floating) and not isinstance(v, bool) and not math.isnan(v)
  items = lambda v, kind: isinstance(v, list | tuple) and len(v) <= _MAX_LIST and all(map(kind, v))
  for name, value in init_kwargs.items():
    if name in _COUNTS:
      valid, expected = count(value), f"an integer in 0..{_MAX_COUNT}"
    elif name in _COUNT_LISTS:
      valid, expected = items(value, count), f"at most {_MAX_LIST} integers in 0..{_MAX_COUNT}"
    elif name == "resample_filter":
      valid, expected = items(value, number), f"at most {_MAX_LIST} numbers"
    elif name in _NUMBERS:
      valid, expected = number(value), "a number"
    elif name == "use_fp16":
      valid, expected = isinstance(value, bool), "True or False"
    else:
      valid, expected = isinstance(value, str), "a name"  # an unknown argument is refused by network_from_kwargs
    if not valid and name in _KNOWN:
      shown = repr(value)[:80] if isinstance(value, int | float | str) else f"a {type(value).__name__}"
      raise ValueError(f"{name} = {shown}: expected {expected}")


_KNOWN = {
  *_COUNTS, *_COUNT_LISTS, *_NUMBERS, "resample_filter", "use_fp16", "model_type", "embedding_type", "encoder_type",
  "decoder_type",
}  # fmt: skip


def _preconditioner(name: str, init_kwargs: Mapping[str, Any]) -> par.Preconditioner:
  make, fields = _PRECONDITIONERS[name]
  preconditioner = make(**{field: init_kwargs[arg] for arg, field in fields.items() if arg in init_kwargs})
  for arg, field in fields.items():
    value = getattr(preconditioner, field)
    if arg == "beta_min":  # slightly negative in the paper's own refitted VP
      valid, expected = math.isfinite(value), "a finite number"
    elif arg == "sigma_min":
      valid, expected = 0 <= value < preconditioner.sigma_max, "a number of at least 0, below sigma_max"
    else:
      valid, expected = 0 < value and (value < math.inf or arg == "sigma_max"), "a positive number"
    if not valid:
      raise ValueError(f"{arg} = {value}: expected {expected}")
  return preconditioner


def _check_levels(state_dict: Mapping[str, np.ndarray], preconditioner: par.Preconditioner):
  """Raises ValueError if iDDPM's arguments give no table of noise levels, or another than the state dict has."""
  if not isinstance(preconditioner, par.IDDPMPreconditioner):
    if "u" in state_dict:
      raise ValueError("unexpected tensor 'u': only iDDPMPrecond has a table of noise levels")
    return
  with np.errstate(all="ignore"):
    levels = times.iddpm_levels(preconditioner.num_levels, preconditioner.c1, preconditioner.c2)
  if not np.all(np.isfinite(levels)):
    raise ValueError(f"no noise levels for {preconditioner}")
  if "u" in state_dict:
    u = np.asarray(state_dict["u"])
    if u.shape != levels.shape or not np.allclose(u, levels, rtol=1e-2):
      raise ValueError(f"tensor 'u' of shape {list(u.shape)}: expected the noise levels of {preconditioner}")
