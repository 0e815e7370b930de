"""Turns a folder of images, an archive, an .npz or a TFDS set into a zip in the form of EDM's data sets.

  python experiments/prepare_data.py cifar-10-python.tar.gz --out=datasets/cifar10-32x32.zip
  python experiments/prepare_data.py ffhq --resolution=64 --transform=resize --out=datasets/ffhq-64x64.zip
  python experiments/prepare_data.py tfds:celeb_a --resolution=64 --transform=center-crop --out=celeba-64x64.zip
  python experiments/prepare_data.py tfds:cifar10

Archives are zips and tars, also compressed. Labels are those of dataset.json, of the first-level folders if there are
two or more and no image lies beside them, of the .npz or of TFDS. A TFDS set that is not there yet is first downloaded
and prepared as array_record, which needs TensorFlow (pip install "diffusion-jax[tfds]"); without --out that is all, and
the set is trained on as it is. At the end the flags for training are printed.
"""

import contextlib
import re
import shlex
import tempfile

import numpy as np
from absl import flags
from etils import epath
from tqdm.auto import tqdm

from diffusion_jax import cli, files
from diffusion_jax.data import archives, sources, tfds_sets
from diffusion_jax.data.decoded import Decoded
from diffusion_jax.data.folders import Folder
from diffusion_jax.data.npz import Transformed
from diffusion_jax.data.transforms import Transform
from diffusion_jax.data.writing import write_zip

_OUT = flags.DEFINE_string("out", None, "The zip.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the zip if it is there.")
_RESOLUTION = flags.DEFINE_string("resolution", None, "What --transform makes: N, or WxH.")
_TRANSFORM = flags.DEFINE_string("transform", "", "resize, center-crop, center-crop-wide or center-crop-dhariwal.")
_CHANNELS = flags.DEFINE_integer("channels", 3, "What --transform makes: 1 or 3.")
_MAX_IMAGES = flags.DEFINE_integer("max_images", None, "The first so many images alone.")
_SPLIT = flags.DEFINE_string("split", "train", "Of a TFDS set, or of CIFAR-10's archive: train or test.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Where TFDS keeps its sets; its own default if not given.")


def main():
  if len(cli.arguments()) != 1:
    raise cli.UsageError("one folder, archive, .npz or tfds:NAME is needed, such as cifar-10-python.tar.gz")
  (spec,) = cli.arguments()
  is_tfds, out = spec.startswith("tfds:"), _OUT.value
  if not out and not is_tfds:
    raise cli.UsageError("--out is needed: the zip that is written")
  if out and not out.endswith(".zip"):
    raise cli.UsageError(f"--out={out}: a name that ends in .zip")
  if out and epath.Path(out).exists() and not _OVERWRITE.value:
    raise cli.UsageError(f"--out={out}: is already there; pass --overwrite or another --out")
  if _MAX_IMAGES.value is not None and _MAX_IMAGES.value < 1:
    raise cli.UsageError(f"--max_images={_MAX_IMAGES.value}: at least 1")
  if _MAX_IMAGES.value is not None and not out:
    raise cli.UsageError(f"--max_images={_MAX_IMAGES.value}: goes with --out, of which images it leaves out the rest")
  if _DATA_DIR.value and not is_tfds:
    raise cli.UsageError(f"--data_dir={_DATA_DIR.value}: goes with tfds:NAME")
  how = transform()
  if out:
    cli.checked(make_folder, out)
  if is_tfds:
    cli.checked(prepare_tfds, spec.removeprefix("tfds:"))
  with contextlib.ExitStack() as stack:
    source, chosen = cli.checked(open_images, spec, how, stack)
    if out:
      with tqdm(total=len(chosen), unit="img") as bar:
        try:
          cli.checked(write_zip, out, source, chosen, bar.update)
        except OSError as error:  # a full disk, a folder that may not be written to
          raise cli.UsageError(f"--out={out}: {error}; nothing was written") from None
  if out:
    report(cli.checked(sources.load, "zip", "train", path=out), out, len(source))
  else:
    report(source, spec, len(source))


def transform() -> Transform | None:
  """What --transform, --resolution and --channels say."""
  if not _TRANSFORM.value and flags.FLAGS["channels"].present:
    raise cli.UsageError(f"--channels={_CHANNELS.value}: goes with --transform, such as center-crop or resize")
  if not _TRANSFORM.value and not _RESOLUTION.value:
    return None
  if not _TRANSFORM.value:
    raise cli.UsageError(f"--resolution={_RESOLUTION.value}: goes with --transform, such as center-crop or resize")
  size = re.fullmatch(r"(\d+)(?:x(\d+))?", _RESOLUTION.value or "")
  if not size or not int(size[1]) or not int(size[2] or 1):
    raise cli.UsageError(f"--resolution={_RESOLUTION.value}: expected N or WxH, such as 64 or 512x384")
  return cli.checked(Transform, _TRANSFORM.value, int(size[1]), int(size[2] or size[1]), _CHANNELS.value)


def make_folder(out: str):
  folder = epath.Path(out).parent
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not files.is_remote(folder):
      tempfile.TemporaryFile(dir=folder).close()  # may it be written to
  except OSError as error:
    raise cli.UsageError(f"--out={out}: {error}") from None


def prepare_tfds(name: str):
  """Downloads and prepares a TFDS set as array_record, if it is not there."""
  builder = tfds_sets.open_builder(name, _DATA_DIR.value)
  if tfds_sets.is_prepared(builder):
    return
  tfds_sets.check_split(builder, name, _SPLIT.value)
  from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
  from tensorflow_datasets.core.download.util import DownloadError

  try:
    builder.download_and_prepare(file_format="array_record")
  except ImportError as error:
    missing = str(error).splitlines()[-1]
    raise ValueError(f'{name} is prepared with TensorFlow: pip install "diffusion-jax[tfds]" ({missing})') from None
  except (AssertionError, OSError, DownloadError, NonMatchingChecksumError) as error:
    raise ValueError(f"{name} cannot be prepared: {error}") from None


def open_images(spec: str, how: Transform | None, stack: contextlib.ExitStack):
  """The source that is written, and the indices of its images; `stack` closes what is temporary."""
  source = find(spec, how, stack)
  kept = np.arange(len(source))
  if _OUT.value and isinstance(source, Decoded):
    kept = np.setdiff1d(kept, np.array(source.check(), int))
    if not len(kept):
      raise ValueError(f"{spec}: all {len(source)} images are too small for {how.name} to {how.width}×{how.height}")
  return source, kept[: _MAX_IMAGES.value]


def find(spec: str, how: Transform | None, stack: contextlib.ExitStack) -> sources.Source:
  """The source; where a zip is written its headers are yet to be checked."""
  if spec.startswith("tfds:"):
    options = dict(path=spec.removeprefix("tfds:"), data_dir=_DATA_DIR.value, transform=how)
    return sources.load("tfds", _SPLIT.value, check=not _OUT.value, **options)
  path, called = epath.Path(spec), spec
  if not path.exists():
    raise ValueError(f"{spec}: there is no such folder or file")
  if spec.endswith(".npz"):
    return sources.load("npz", _SPLIT.value, path=spec, transform=how, check=False)
  if not path.is_dir():
    beside = None if files.is_remote(_OUT.value) else epath.Path(_OUT.value).parent  # room for the zip is there too
    path, called = stack.enter_context(archives.unpacked(path, beside))
  batches = archives.find_cifar10(path)
  if batches is not None:
    source = archives.cifar10(batches, _SPLIT.value, f"{called}/{batches.relative_to(path)}".removesuffix("/."))
    if not how:
      return source
    arrays = source.images, source.labels, source.num_classes
    return Transformed(source.name, source.split, *arrays, how, spec, check=False)
  if _SPLIT.value != "train":
    raise ValueError(f"--split={_SPLIT.value}: a folder or archive is all one split, train")
  return Folder("train", path, how, check=False, called=called)


def report(source: sources.Source, place: str, available: int):
  """Prints what the images are, and the flags with which they are trained on."""
  height, width, channels = source.image_shape
  classes = f"{source.num_classes} classes" if source.num_classes else "no labels"
  count = f"{len(source)}" if len(source) == available else f"{len(source)} of {available}"
  sigma = cli.checked(sources.measure_sigma, source)
  print(f"{place}: {count} images, {width}×{height}×{channels}, {classes}, sigma_data {sigma:.3f}")
  fields = {"name": source.name, "path": place.removeprefix("tfds:")}
  if source.name == "tfds":
    fields |= {"data_dir": _DATA_DIR.value, "split": _SPLIT.value, "transform": _TRANSFORM.value}
  fields |= {"resolution": height, "channels": channels, "num_classes": source.num_classes}
  print("train with " + " ".join(shlex.quote(f"--config.data.{k}={v}") for k, v in fields.items() if v != ""))
  if width != height:
    print("training takes square images alone: these are not")


if __name__ == "__main__":
  cli.run(main)
