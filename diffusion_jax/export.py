"""A model's sampler as one file that runs without this library: a jax.export artifact, StableHLO for several platforms.

`sampler` makes it, `from_config` with all that a run's config says, `write` puts it into files. What loads them has
JAX, NumPy and flatbuffers (of which jax.export is made), and not this library:

    import jax, numpy as np
    from jax import export

    sampler = jax.jit(export.deserialize(bytearray(open("digits.jaxexport", "rb").read())).call)
    seeds = np.arange(64, dtype=np.uint32)
    images = sampler(seeds, (seeds % 10).astype(np.int32))      # [64, 8, 8, 1] float32 in about [-1, 1], not clipped

Its arguments, in this order: with the parameters beside, {name: array}, here dict(np.load("digits.npz")); seeds [B]
uint32; for a model with classes labels [B] int32, -1 for none; for a run with a task the condition [B, h, w, c] float32
in [-1, 1]. Keys are made inside: image i depends on seed i (and its label and condition) alone.

The images are those of `sampling.sample` for the same batch size on the same device: to the bit where the artifact was
made for that batch size, up to rounding where it is for any. There JAX merges equal expressions when it puts the size
in, before XLA simplifies; of x/√y + z/√y, which XLA computes with 1/√y otherwise, two divisions are left. Samplers and
networks that have no such pair give the same bits either way.
"""

import collections
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.traverse_util
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export as jax_export

from diffusion_jax import latent, sampling
from diffusion_jax.config import LATENTS, wrong
from diffusion_jax.evaluation import records
from diffusion_jax.methods import Method, conditions
from diffusion_jax.types import Params

PLATFORMS = ("cpu", "cuda", "tpu", "rocm")  # that an artifact can be for
DEFAULT_PLATFORMS = PLATFORMS[:3]
PARAMETERS = ("inside", "beside")
SUFFIX = ".jaxexport"

# Arguments of `sampling.sample` that an artifact cannot have.
_REFUSED = {
  "classifier": "its gradient is not exported: leave the classifier out",
  "trajectory": "an artifact gives images alone",
  "count": "an artifact gives images alone",
  "tile": "an artifact's images have the network's size",
}
_ADAPTIVE = "its number of steps is decided by the images while they are made"
_NEEDS = "jax.export needs the package flatbuffers: pip install 'diffusion-jax[export]'"


class Artifact(NamedTuple):
  """An exported sampler.

  Attributes:
    exported: what `jax.export.deserialize` gives back.
    parameters: {name: array}, the first argument of `exported.call`, or None where they are inside.
    about: what JSON says of it.
  """

  exported: jax_export.Exported
  parameters: dict[str, np.ndarray] | None
  about: dict


def sampler(
  method: Method,
  variables: Params,
  image_shape: tuple[int, int, int],
  grid,
  sampler: str = "heun",
  *,
  labels: bool = False,
  condition: tuple[int, int, int] | None = None,
  decoder: latent.Decoder | None = None,
  platforms: Sequence[str] = DEFAULT_PLATFORMS,
  parameters: str = "inside",
  batch_size: int | None = None,
  **options,
) -> tuple[jax_export.Exported, dict[str, np.ndarray] | None]:
  """Exports `sampling.sample`, from seeds to images.

  Args:
    method: the triple of `methods.from_config`.
    variables: its parameters.
    image_shape: (H, W, C) of what the network makes.
    grid: [n+1] times of the process, as for `sampling.sample`.
    sampler: one of method.samplers.
    labels: whether labels [B] are an argument.
    condition: (h, w, c) of the condition, of a run with a task; it is then the last argument.
    decoder: of a run in latent space.
    platforms: of PLATFORMS, for all of which the one artifact serves.
    parameters: "inside", as constants of the artifact, or "beside", as its first argument.
    batch_size: the one that it takes, or None for any, each of which compiles anew.
    **options: as for `sampling.sample`: guidance, process, ratio, clip and the sampler's own; constants all of them.

  Returns:
    (the artifact, {name: array} of the parameters beside or None).

  Raises:
    ValueError: a platform, parameters or an option is none that an artifact can have, a loop of the sampler goes on
      for as long as the images say, or as `sampling.sample`.
  """
  check(platforms, parameters, batch_size)
  for name, why in _REFUSED.items():
    if options.get(name):
      raise ValueError(f"{name} cannot be exported: {why}")
  trees = {"model": variables} | ({} if decoder is None else {"decoder": decoder.params})
  flat = {name: np.asarray(value) for name, value in flax.traverse_util.flatten_dict(trees, sep="/").items()}
  for name, value in flat.items():
    if value.dtype.kind not in "biuf":
      raise ValueError(f"the parameter {name} must be of a dtype that NumPy's files hold, got {value.dtype}")

  def images(flat, seeds, *more):
    trees = flax.traverse_util.unflatten_dict(flat, sep="/")
    more = collections.deque(more)
    given = {"labels": more.popleft()} if labels else {}
    if condition is not None:
      given["condition"] = more.popleft()
    keys = sampling.keys_of(seeds)
    x0 = sampling.sample(method, trees["model"], keys, image_shape, grid, sampler, **given, **options)
    return x0 if decoder is None else decoder._replace(params=trees["decoder"]).traced(x0)

  size = batch_size or jax_export.symbolic_shape("b")[0]
  inputs = [jax.ShapeDtypeStruct((size,), jnp.uint32)]
  inputs += [jax.ShapeDtypeStruct((size,), jnp.int32)] if labels else []
  inputs += [] if condition is None else [jax.ShapeDtypeStruct((size, *condition), jnp.float32)]
  if parameters == "inside":
    program = jax.jit(lambda *arguments: images(flat, *arguments))
  else:
    program = jax.jit(images)
    inputs.insert(0, {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in flat.items()})
  exported = _exported(program, inputs, platforms, sampler)
  return exported, flat if parameters == "beside" else None


def from_config(
  config,
  method: Method,
  variables: Params,
  decoder: latent.Decoder | None = None,
  platforms: Sequence[str] = DEFAULT_PLATFORMS,
  parameters: str = "inside",
  batch_size: int | None = None,
) -> Artifact:
  """Exports what `sampling.generate` does by a run's config.

  Args:
    config: the run's config.
    method: its method.
    variables: its parameters.
    decoder: `training.autoencoders.from_config(config)`, of a run in latent space.
    platforms: as for `sampler`.
    parameters: as for `sampler`.
    batch_size: as for `sampler`.

  Raises:
    ConfigError: config.sampling leaves something to a measurement, has a classifier or an adaptive solver, or as
      `sampling.arguments_of`.
    ValueError: as `sampler`, or the data are latents and there is no decoder.
  """
  check(platforms, parameters, batch_size)
  setting, data = config.sampling, config.data
  if setting.classifier_scale:
    raise wrong("sampling.classifier_scale", setting.classifier_scale, f"must be 0: {_REFUSED['classifier']}")
  if setting.sigma_min_search:
    expected = "has to be searched before: experiments/sigma_min.py prints a σ_min for sampling.sigma_min"
    raise wrong("sampling.sigma_min_search", True, expected)
  if data.name == LATENTS and decoder is None:
    raise ValueError("latents need a decoder: training.autoencoders.from_config(config)")
  arguments, evaluations = sampling.arguments_of(setting, method), sampling.evaluations(setting, method)
  if evaluations is None:
    raise wrong("sampling.sampler", setting.sampler, f"cannot be exported: {_ADAPTIVE}")
  condition = conditions.condition_shape(config) if config.task.name else None
  shape = (data.resolution, data.resolution, data.channels)
  exported, flat = sampler(
    method,
    variables,
    shape,
    labels=bool(data.num_classes),
    condition=condition,
    decoder=decoder,
    platforms=platforms,
    parameters=parameters,
    batch_size=batch_size,
    **arguments,
  )
  about = {
    "inputs": inputs_of(exported),
    "output": _say(exported.out_avals[0]) | {"range": "about [-1, 1], not clipped"},
    "num_classes": data.num_classes,
    "platforms": list(exported.platforms),
    "parameters": parameters,
    "method": config.method,
    "evaluations": evaluations,
    "sampling": setting.to_dict(),
    "calling_convention": exported.calling_convention_version,
    "versions": records.versions(),
  }
  return Artifact(exported, flat, about)


def check(platforms: Sequence[str], parameters: str, batch_size: int | None = None):
  """Raises ValueError where these are none that `sampler` takes."""
  unknown = [name for name in platforms if name not in PLATFORMS]
  if not platforms or unknown or len(set(platforms)) < len(platforms):
    given = ", ".join(platforms) or "none"
    raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}, each once, got {given}")
  if parameters not in PARAMETERS:
    raise ValueError(f"parameters must be one of {', '.join(PARAMETERS)}, got {parameters!r}")
  if batch_size is not None and batch_size < 1:
    raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _exported(program: Callable, inputs, platforms: Sequence[str], name: str) -> jax_export.Exported:
  """The jitted program exported; what JAX says against it in one line."""

  def refused(why) -> ValueError:
    return ValueError(f"sampler {name!r} of this model cannot be exported: {str(why).strip().splitlines()[0]}")

  try:
    adaptive = _is_adaptive(program.trace(*inputs).jaxpr.jaxpr)
  except (TypeError, NotImplementedError, jax.errors.InconclusiveDimensionOperation) as error:
    raise refused(error) from error
  if adaptive:
    raise refused(_ADAPTIVE)
  try:
    return jax_export.export(program, platforms=list(platforms))(*inputs)
  except (TypeError, NotImplementedError, ValueError) as error:  # a custom call that is not stable, a missing rule
    raise refused(error) from error


def _is_adaptive(jaxpr) -> bool:
  """Whether a loop asks an array, and not the number of its turns alone, whether to go on."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "while":
      condition = eqn.params["cond_jaxpr"].jaxpr
      if any(jnp.ndim(v.aval) for inner in condition.eqns for v in inner.invars):
        return True
    if any(map(_is_adaptive, jax.extend.core.jaxprs_in_params(eqn.params))):
      return True
  return False


def inputs_of(exported: jax_export.Exported) -> list[dict]:
  """The arguments of an artifact: name, shape ("b" is the batch) and dtype; of parameters beside their number."""
  (arguments, _), inputs = jax.tree.unflatten(exported.in_tree, exported.in_avals), []
  for argument in arguments:
    if isinstance(argument, dict):
      inputs.append({"name": "parameters", "arrays": len(argument)})
      continue
    names = {1: "seeds" if argument.dtype == np.uint32 else "labels", 4: "condition"}
    inputs.append({"name": names[len(argument.shape)], **_say(argument)})
  return inputs


def _say(aval) -> dict:
  return {"shape": [size if isinstance(size, int) else str(size) for size in aval.shape], "dtype": str(aval.dtype)}


def files_of(path) -> tuple[epath.Path, epath.Path, epath.Path]:
  """The artifact, what JSON says of it, and the parameters beside: NAME.jaxexport, NAME.json, NAME.npz."""
  path = epath.Path(path)
  stem = path.name.removesuffix(SUFFIX)
  return path.parent / f"{stem}{SUFFIX}", path.parent / f"{stem}.json", path.parent / f"{stem}.npz"


def check_free(path, parameters: str):
  """Raises ValueError where a file that `write` would write is there."""
  for file in files_of(path)[: 3 if parameters == "beside" else 2]:
    if file.exists():
      raise ValueError(f"{file} is already there")


def write(path, artifact: Artifact, overwrite: bool = False) -> list[epath.Path]:
  """Writes an artifact: NAME.jaxexport, `Exported.serialize()` as it is, with NAME.json and NAME.npz beside.

  Args:
    path: NAME or NAME.jaxexport.
    artifact: as `from_config` gives it; `about` may have been added to.
    overwrite: replace files that are there.

  Returns:
    The files, the artifact first.

  Raises:
    ValueError: there is such a file, or the package flatbuffers is missing.
  """
  if not overwrite:
    check_free(path, artifact.about["parameters"])
  try:
    serialized = bytes(artifact.exported.serialize())
  except ImportError:
    raise ValueError(_NEEDS) from None
  program, about, arrays = files_of(path)
  if artifact.parameters is not None:
    _put(arrays, lambda file: np.savez(file, **artifact.parameters))
  _put(about, lambda file: file.write((json.dumps(artifact.about, indent=1, ensure_ascii=False) + "\n").encode()))
  _put(program, lambda file: file.write(serialized))
  return [program, about] if artifact.parameters is None else [program, about, arrays]


def _put(path: epath.Path, write: Callable):
  """Writes a file whole: beside, and renamed."""
  temporary = path.parent / f".{path.name}.part"
  with temporary.open("wb") as file:
    write(file)
  temporary.replace(path)
