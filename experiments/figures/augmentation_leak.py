"""Do images of digit runs show the augmentation that they were trained with?

  python experiments/figures/augmentation_leak.py --workdirs=RUN,RUN --out=experiments/results/edm_table2_digits/leak

For each run: the share of 500 images that the digit classifier gives the class asked for, and the share that lies
nearer to a training digit once it is mirrored. A mirrored digit is none, so the second is small for real digits.
"""

import numpy as np
from absl import flags
from etils import epath

from diffusion_jax import cli, sampling
from diffusion_jax.data import sources
from diffusion_jax.evaluation import digits, memorisation, report
from diffusion_jax.training import checkpoint

_WORKDIRS = flags.DEFINE_list("workdirs", [], "Runs on digits.")
_OUT = flags.DEFINE_string("out", None, "Where to write OUT.txt.")
NUM_IMAGES = 500


def row(name: str, images, labels, train) -> list:
  """Name, share of `images` [N, 8, 8, 1] classified as `labels` [N], share nearer to `train` when mirrored."""
  plain, mirrored = (memorisation.nearest(x, train)[0] for x in (images, images[:, :, ::-1]))
  return [name, float(np.mean(digits.logits(images).argmax(-1) == labels)), float(np.mean(mirrored < plain))]


def main():
  if not _OUT.value:
    raise cli.UsageError("--out is missing: where to write OUT.txt")
  train, test = (sources.load("digits", split) for split in ("train", "test"))
  train, test = (data.gather(np.arange(len(data))) for data in (train, test))
  rows = [row("held-out digits", test["image"], test["label"], train["image"])]
  for workdir in _WORKDIRS.value:
    config = checkpoint.read_config(workdir)
    method, variables = checkpoint.load_for_inference(workdir, config=config)
    seeds = np.arange(NUM_IMAGES)
    images = np.clip(sampling.generate(config, method, variables, seeds), -1, 1)
    rows.append(row(epath.Path(workdir).name, images, sampling.default_labels(config, seeds), train["image"]))
  text = report.markdown(["images", "class as asked", "nearer when mirrored"], rows)
  epath.Path(f"{_OUT.value}.txt").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  cli.run(main)
