"""Writes the statistics of real images that evaluate.py takes as --reference: an .npz with the arrays mu and sigma.

  python experiments/reference.py --data=zip:cifar10-train.zip --inception=weights-inception-2015-12-05-6726825d.pth \\
    --out=cifar10-32x32.npz

The form is that of EDM's published statistics; the file also says by which extractor, of which images and how many.
"""

from absl import flags
from etils import epath
from tqdm.auto import tqdm

from diffusion_jax import cli
from diffusion_jax import config as config_lib
from diffusion_jax.data import sources
from diffusion_jax.evaluation import bench, statistics

_DATA = flags.DEFINE_string("data", None, "The images: digits, photos, zip:FILE, folder:PATH, npz:FILE or tfds:NAME.")
_SPLIT = flags.DEFINE_string("split", "train", "Their split.")
_RESOLUTION = flags.DEFINE_integer("resolution", 32, "Of photos: 16 or 32.")
_EXTRACTOR = flags.DEFINE_string("extractor", None, "digits, inception or pixels; see evaluate.py.")
_INCEPTION = flags.DEFINE_string("inception", None, "Weights: weights-inception-2015-12-05-6726825d.pth.")
_OUT = flags.DEFINE_string("out", None, "The file, for instance cifar10-32x32.npz.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the file if it is there.")


def main():
  if not _DATA.value or not _OUT.value:
    raise cli.UsageError("--data and --out are needed: which images, and the file of their statistics")
  if epath.Path(_OUT.value).exists() and not _OVERWRITE.value:
    raise cli.UsageError(f"--out={_OUT.value}: is already there; pass --overwrite or another --out")
  try:
    epath.Path(_OUT.value).parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cli.UsageError(f"--out={_OUT.value}: {error}") from None
  name, _, path = _DATA.value.partition(":")
  options = {"photos": {"resolution": _RESOLUTION.value}}.get(name, {"path": path} if path else {})
  source = cli.checked(sources.load, name, _SPLIT.value, **options)
  config = config_lib.default()
  height, _, channels = source.image_shape
  config.data.update(name=name, path=path, split=_SPLIT.value, resolution=height, channels=channels, num_classes=0)
  files = {"inception": _INCEPTION.value}
  with tqdm(total=len(source), unit="img") as bar:
    (scorer,) = cli.checked(
      bench.scorers_for, config, ["frechet"], _EXTRACTOR.value, files, whole=False, progress=bar.update
    )
    stats = cli.checked(lambda: scorer.reference("frechet").statistics)
  cli.checked(statistics.write, _OUT.value, stats, _OVERWRITE.value)
  print(f"{stats.num_images} images of {stats.data} by {stats.extractor}: {_OUT.value}")


if __name__ == "__main__":
  cli.run(main)
