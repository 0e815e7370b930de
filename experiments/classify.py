"""How often a classifier of noisy images is right, and its mean cross-entropy, by noise level.

  python experiments/classify.py --workdir=runs/classifier_digits
  python experiments/classify.py --workdir=runs/classifier_imagenet128 --data=zip:datasets/imagenet-val-128x128.zip

Measured on the run's own images and, of digits and photos, on the test split; with --data on those images alone. Each
image is seen once in each of ten bins of t. Writes WORKDIR/classify.json.
"""

import json

import jax
from absl import flags
from tqdm.auto import tqdm

from diffusion_jax import cli
from diffusion_jax.data import sources
from diffusion_jax.evaluation import classification, report

_DATA = flags.DEFINE_string("data", None, "Other images: zip:FILE, folder:PATH, npz:FILE or tfds:NAME.")
_SPLIT = flags.DEFINE_string("split", None, "Their split, or one of the run's own data.")
model_flags = cli.ModelFlags(published=False, sampling=False, classifier=True)
start_hosts = cli.define_hosts()


def main():
  start_hosts()
  config, _, variables, step, name = model_flags.open(search=False)
  found, columns = {}, {}
  images = sources_of(config)
  with tqdm(total=sum(map(len, images)), unit="img", disable=jax.process_index() != 0, leave=False) as bar:
    for source in images:
      rows = cli.checked(classification.measure, config, variables, source, progress=bar.update)
      found[f"{source.name} {source.split}"] = {"num_images": len(source), "bins": rows}
  if jax.process_index() != 0:
    return
  path = model_flags.folder() / "classify.json"
  record = {"checkpoint": model_flags.provenance(step), "data": found}
  path.write_text(json.dumps(record, indent=1) + "\n")
  for data, each in found.items():
    for quantity in ("accuracy", "cross_entropy"):
      columns[f"{data} ({each['num_images']:,}): {quantity.replace('_', '-')}"] = [b[quantity] for b in each["bins"]]
  bins = next(iter(found.values()))["bins"]
  rows = [
    ["{}-{}".format(*b["t"]), "{:.3g}-{:.3g}".format(*b["noise_level"]), *(f"{c[i]:.3f}" for c in columns.values())]
    for i, b in enumerate(bins)
  ]
  rows.append(["all", "", *(f"{sum(column) / len(bins):.3f}" for column in columns.values())])
  print(report.markdown(["t", "noise level σ/α", *columns], rows))
  print(f"\n{name}; in {path}")


def sources_of(config) -> list[sources.Source]:
  """The run's own images, and what it has not seen; or those of the flags alone."""
  config = config.copy_and_resolve_references()
  if _DATA.value:
    name, _, path = _DATA.value.partition(":")
    config.data.update(name=name, path=path, transform="", data_dir="", split="train")
  if _DATA.value or _SPLIT.value:
    config.data.split = _SPLIT.value or config.data.split
    return [sources.from_config(config)]
  unseen, out = ["test"] * (config.data.name in ("digits", "photos")), []
  for split in dict.fromkeys([config.data.split, *unseen]):
    config.data.split = split
    out.append(sources.from_config(config))
  return out


if __name__ == "__main__":
  cli.run(main)
