"""RePaint: holes in real images, filled by a run that was trained without any.

  python experiments/uses/inpaint.py --workdir=runs/edm_digits --out=results/inpaint --num_steps=50
  python experiments/uses/inpaint.py --workdir=RUN --out=OUT --resample=1,5,20 --jump=5 --hole=half --unlabelled

The hole is the middle square of half the side, or the right half. OUT.png has ten images, the holes, and what fills
them for each number of passes (1 is the replacement method). OUT.csv has, over --num_images, the root mean square of
the difference to the truth in the hole, mean and spread of the fill beside those of the truth, and evaluations.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from common import draw, model_flags, numbers, opened, real, table  # noqa: F401  the flags

from diffusion_jax import cli, editing, sampling

_RESAMPLE = flags.DEFINE_list("resample", ["1", "2", "10"], "Passes over each stretch of the grid.")
_JUMP = flags.DEFINE_integer("jump", 5, "Steps of a stretch.", lower_bound=1)
_HOLE = flags.DEFINE_enum("hole", "middle", ["middle", "half"], "Where.")
_UNLABELLED = flags.DEFINE_bool("unlabelled", False, "Do not tell a class-conditional run the class.")
_SPLIT = flags.DEFINE_string("split", "test", "Of the run's data.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 100, "The first images of the split.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Image i has the noise of seed SEED + i.")
SHOWN = 10


def main():
  passes = numbers(_RESAMPLE, int, 1, 1000)
  run = opened()
  images, labels = real(run.config, _SPLIT.value, _NUM_IMAGES.value)
  if _UNLABELLED.value:
    labels = None if labels is None else np.full_like(labels, -1)
  hole = hole_of(run.shape, _HOLE.value)
  inside = np.broadcast_to(hole, images.shape[1:])
  keys = sampling.keys_of(np.arange(len(images)) + _SEED.value)
  pictures, left = [images[:SHOWN], np.where(hole, 0.0, images[:SHOWN])], ["images", "holes"]
  truth = images[:, inside]
  rows = [["truth", 0, len(images), 0.0, np.mean(truth), np.std(truth)]]
  for count in passes:
    fill = jax.jit(
      lambda variables, x, labels, keys, count=count: editing.inpaint(
        run.bind(variables, labels), run.process, x, hole, run.grid, keys, resample=count, jump=_JUMP.value
      )
    )
    made = np.asarray(cli.checked(fill, run.variables, jnp.asarray(images), labels, keys))
    moves = editing.repaint_moves(len(run.grid) - 1, count, _JUMP.value)
    found = made[:, inside]
    error = np.sqrt(np.mean((found - truth) ** 2))
    rows.append([count, int(np.sum(moves[:, 1] > moves[:, 0])), len(images), error, np.mean(found), np.std(found)])
    pictures.append(made[:SHOWN])
    left.append(f"resample {count}")
  draw(pictures, left)
  table(["resample", "NFE", "images", "rms_in_hole", "mean_in_hole", "std_in_hole"], rows)


def hole_of(shape: tuple[int, int, int], where: str) -> np.ndarray:
  """Booleans [H, W, 1], True in the hole."""
  height, width, _ = shape
  hole = np.zeros((height, width, 1), bool)
  if where == "half":
    hole[:, width // 2 :] = True
  else:
    hole[height // 4 : -(height // 4), width // 4 : -(width // 4)] = True
  return hole


if __name__ == "__main__":
  cli.run(main)
