"""Exports a model's sampler, from seeds to images, as one file that JAX runs without this library.

  python experiments/export.py --workdir=runs/edm_digits --sampler=heun --num_steps=9 --out=digits
  python experiments/export.py --workdir=runs/edm_digits --num_steps=9 --parameters=beside --platforms=cuda --out=digits
  python experiments/export.py --workdir=runs/edm_digits --num_steps=9 --batch_size=64 --out=digits64
  python experiments/export.py --checkpoint=edm-cifar10-32x32-cond-vp.pkl --num_steps=18 --out=cifar10

The images are those of sample.py with the same flags. It prints the lines that load the file, whose whole needs are
jax, numpy and flatbuffers.
"""

from absl import flags

from diffusion_jax import cli, export
from diffusion_jax.interop import edm_checkpoint
from diffusion_jax.training import autoencoders

_OUT = flags.DEFINE_string("out", None, "Writes OUT.jaxexport and OUT.json; by default WORKDIR/sampler.")
_PARAMETERS = flags.DEFINE_string("parameters", "inside", "Inside the artifact, or beside it in OUT.npz.")
_PLATFORMS = flags.DEFINE_string("platforms", ",".join(export.DEFAULT_PLATFORMS), "What the artifact is to run on.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Of this size alone, and then to sample.py's bits.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the files if they are there.")
model_flags = cli.ModelFlags(task=None, latents=True)

LOADING = """\
import jax, numpy as np
from jax import export

sampler = jax.jit(export.deserialize(bytearray(open({path!r}, "rb").read())).call)
{before}images = sampler({arguments})"""


def main():
  platforms, parameters, batch_size = tuple(_PLATFORMS.value.split(",")), _PARAMETERS.value, _BATCH_SIZE.value
  out = export.files_of(_OUT.value or model_flags.folder() / "sampler")[0]
  try:
    export.check(platforms, parameters, batch_size)
  except ValueError as error:
    raise cli.UsageError(f"--{error}") from None
  if not _OVERWRITE.value:
    try:
      export.check_free(out, parameters)
    except ValueError as error:
      raise cli.UsageError(f"--out={out}: {error}; pass --overwrite or another --out") from None
  config, method, variables, step, name = model_flags.open()
  decoder = autoencoders.from_config(config)
  artifact = cli.checked(export.from_config, config, method, variables, decoder, platforms, parameters, batch_size)
  licence = edm_checkpoint.LICENCE.format(path=name) if model_flags.published else None
  artifact.about.update(checkpoint=model_flags.provenance(step), licence=licence)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    written = cli.checked(export.write, out, artifact, overwrite=True)
  except OSError as error:
    raise cli.UsageError(f"--out={out}: {error}") from None
  for file in written:
    print(f"{file}: {-(-file.stat().length // 1000):,} kB")
  setting, about = config.sampling, artifact.about
  height, width, channels = about["output"]["shape"][1:]
  print(
    f"{name} by {setting.sampler}, NFE {about['evaluations']}, images {height}×{width}×{channels}, parameters "
    f"{parameters}, for {', '.join(about['platforms'])}. Loading it takes jax, numpy and flatbuffers:\n"
  )
  print(loading(written, about))


def loading(files, about: dict) -> str:
  """The lines that load an artifact and draw a batch of images."""
  size = about["output"]["shape"][0]
  size = 64 if size == "b" else size
  lines, arguments = [f"seeds = np.arange({size}, dtype=np.uint32)"], []
  for given in about["inputs"]:
    arguments.append(given["name"])
    if given["name"] == "parameters":
      lines.append(f"parameters = dict(np.load({str(files[2])!r}))")
    if given["name"] == "labels":
      lines.append(f"labels = (seeds % {about['num_classes']}).astype(np.int32)  # -1 for none")
    if given["name"] == "condition":
      shape = ", ".join(map(str, given["shape"][1:]))
      lines.append(f"condition = np.zeros(({size}, {shape}), np.float32)  # in [-1, 1]: what the images are made from")
  before = "".join(f"{line}\n" for line in lines)
  return LOADING.format(path=str(files[0]), before=before, arguments=", ".join(arguments))


if __name__ == "__main__":
  cli.run(main)
