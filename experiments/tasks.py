"""Makes images from a user's own: enlarges photographs, fills holes, finds what is salient, by a trained run.

  python experiments/tasks.py --workdir=runs/ddm_superres --images=small --out=large
  python experiments/tasks.py --workdir=runs/ddm_inpaint --images=photos --masks=holes --out=filled
  python experiments/tasks.py --workdir=runs/ddm_saliency --images=photos --out=masks

--images is a folder, of images of any size. Super-resolution makes them task.scale times as large; a hole is where its
mask, of the same name, is at least half white. What is larger than the network's images is made in windows that overlap
and are blended at every step (see tiling.py), what is smaller is continued at its borders and cut again. Writes
OUT/NAME.png for every image, and OUT/beside/NAME.png: condition and result side by side. Scores on images whose truth
is known are evaluate.py's.
"""

import jax
import numpy as np
from absl import flags
from etils import epath
from tqdm.auto import tqdm

from diffusion_jax import cli, sampling
from diffusion_jax.data import folders, pairs, sources, tasks, transforms
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.evaluation import tasks as tasks_lib

_IMAGES = flags.DEFINE_string("images", None, "Folder of images, those in folders in it too.")
_MASKS = flags.DEFINE_string("masks", None, "Folder with a mask for every image, for a run of task inpaint.")
_OUT = flags.DEFINE_string("out", None, "Folder of the results.")
_SEED = flags.DEFINE_integer("seed", 0, "Image i, by name, has the noise of seed SEED + i.")
_OVERLAP = flags.DEFINE_integer("overlap", None, "Pixels that windows share; a quarter of a window by default.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results that are there.")
model_flags = cli.ModelFlags(published=False, task=True)
start_hosts = cli.define_hosts()


def main():
  start_hosts()
  if not _IMAGES.value or not _OUT.value:
    raise cli.UsageError(f"--{'out' if _IMAGES.value else 'images'} is missing: a folder")
  out = epath.Path(_OUT.value)
  model = model_flags.open()
  config, method, variables, _, subject = model
  task, window = config.task.name, config.data.resolution
  overlap = window // 4 if _OVERLAP.value is None else _OVERLAP.value
  if not 1 <= overlap < window:
    raise cli.UsageError(f"--overlap={overlap}: expected 1 to {window - 1}, less than a window")
  if bool(_MASKS.value) != (task == "inpaint"):
    expected = "a folder of masks is needed for task inpaint" if task == "inpaint" else f"goes without for task {task}"
    raise cli.UsageError(f"--masks={_MASKS.value or ''}: {expected}")
  channels = config.data.channels if task != "saliency" else 3
  found = cli.checked(open_images, _IMAGES.value, _MASKS.value)
  names = [f"{name.rpartition('.')[0]}.png" for name in found[0].names]
  for path in [out / name for name in names]:
    if path.exists() and not _OVERWRITE.value:
      raise cli.UsageError(f"--out={out}: {path} is already there; pass --overwrite or another --out")
  for i, name in enumerate(tqdm(names, unit="img", disable=jax.process_index() != 0)):
    condition, mask = cli.checked(read, found, i, channels, config.task)
    made = sampling.generate_large(config, method, variables, _SEED.value + i, condition, overlap)
    made = images_lib.to_uint8(made)
    if mask is not None:
      made = tasks_lib.composite(made, condition, mask)
    if jax.process_index() == 0:
      for path, image in ((out / name, made), (out / "beside" / name, beside(condition, made))):
        path.parent.mkdir(parents=True, exist_ok=True)
        images_lib.save_png(path, image[None], overwrite=True)
  nfe = sampling.evaluations(config.sampling, method) or "by tolerance"
  print(f"{len(names)} images by {subject}, {config.sampling.sampler}, NFE {nfe} a window: {out}")


def open_images(images: str, masks: str | None) -> tuple[folders.Folder, folders.Folder | None]:
  """The folders of images and of their masks; raises ValueError where an image has none, or another size."""
  found = folders.Folder("train", images, pairs.Whole())
  if not masks:
    return found, None
  partners = folders.Folder("train", masks, pairs.Whole(), names=pairs.matched(found.names, masks, r"_mask\d*"))
  for k, (image, mask) in enumerate(zip(found.sizes, partners.sizes)):
    if (image != mask).any():
      raise sources.DataError(f"{partners.place(k)} has {mask[0]}×{mask[1]} pixels, its image {image[0]}×{image[1]}")
  return found, partners


def read(found, i: int, channels: int, task) -> tuple[np.ndarray, np.ndarray | None]:
  """(condition [H, W, channels], mask [H, W, 1] or None), in bytes, of image i.

  Raises:
    DataError: a mask has no hole, or nothing else.
  """
  pixels = []
  for files, count in zip(found, (channels, 1)):
    if files is not None:
      files.each(np.array([i]), lambda _, image, count=count: pixels.append(pixels_of(image, count)))
  if task.name == "superres":
    height, width = (task.scale * side for side in pixels[0].shape[:2])
    return tasks.resized(pixels[0][None], (height, width))[0], None
  if task.name == "saliency":
    return pixels[0], None
  mask = pairs.holes_of(pixels[1])
  if mask.all() or not mask.any():
    raise sources.DataError(f"{found[1].place(i)} has {'nothing but holes' if mask.any() else 'no hole'}")
  return tasks.with_holes(pixels[0], mask), mask


def pixels_of(image, channels: int) -> np.ndarray:
  """A PIL image as [H, W, channels] uint8."""
  return np.asarray(transforms.converted(image, channels)).reshape(*image.size[::-1], channels)


def beside(condition: np.ndarray, made: np.ndarray) -> np.ndarray:
  """Both [H, W, C] side by side, [H, 2W + 1, 3]."""
  height, _, _ = made.shape
  line = np.full((height, 1, 3), images_lib.GAP, np.uint8)
  both = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in (condition, made)]
  return np.concatenate([both[0], line, both[1]], 1)


if __name__ == "__main__":
  cli.run(main)
