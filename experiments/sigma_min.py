"""Searches the smallest noise level of DPDM's grid for a run, by score, for each number of evaluations.

  python experiments/sigma_min.py --workdir=runs/mine --nfe=2,3,4,5,6,7,8

Prints the scores of all candidates, and keeps what it found in WORKDIR/sigma_min.json, where sample.py, evaluate.py and
studies find it; what is there already is not searched again. They search by themselves where it is missing: for 2 and 3
evaluations, which the paper's table does not list, and with --sigma_min_search for all; without learned features, by
pixels, only with that flag. The sampler is DPDM's unless --sampler names another.
"""

import jax
from absl import flags

from diffusion_jax import cli, times
from diffusion_jax import config as config_lib
from diffusion_jax.evaluation import report, sigma_min

_NFE = flags.DEFINE_list("nfe", ["2", "3", "4", "5", "6", "7", "8"], "Network evaluations.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", sigma_min.NUM_IMAGES, "Images of each candidate.", lower_bound=2)
_INCEPTION = flags.DEFINE_string("inception", None, "Weights: weights-inception-2015-12-05-6726825d.pth.")
model_flags = cli.ModelFlags(published=False)
flags.FLAGS.set_default("sampler", "dpdm")
start_hosts = cli.define_hosts()


def main():
  start_hosts()
  config, method, variables, step, name = model_flags.open(search=False)
  config.sampling.update(grid="dpdm", sigma_min=0.0)
  config_lib.check(config)
  config_lib.choose("sampling.sampler", config.sampling.sampler, method.samplers)
  settings = {}
  for nfe in _NFE.value:
    settings[nfe] = config.copy_and_resolve_references()
    settings[nfe].sampling.num_steps = cli.nfe_steps(nfe, config, method)
    if settings[nfe].sampling.num_steps == 1:
      raise cli.UsageError(f"--nfe={nfe}: one step is from σ_max, it has no σ_min")
  scorer = cli.checked(sigma_min.scorer_of, config, _INCEPTION.value)
  take, found = lambda: (method, variables), {}
  for nfe, setting in settings.items():
    found[nfe], _ = cli.checked(sigma_min.find, setting, model_flags.folder(), step, take, scorer, _NUM_IMAGES.value)
  if jax.process_index() == 0:
    print(table(found, settings))
    features = report.title("frechet", scorer.extractor.name)
    print(f"\n{features} of {name} by {config.sampling.sampler}, {_NUM_IMAGES.value} images a score, the best in bold.")


def table(found: dict[str, sigma_min.Found], settings: dict) -> str:
  """A row a candidate, a column a number of evaluations; the last rows are the best, and the published one."""
  levels = sorted({level for each in found.values() for level in each.scores})
  rows = []
  for level in levels:
    texts = [f"{each.scores[level]:.3f}" if level in each.scores else "" for each in found.values()]
    rows.append([f"{level:g}", *(f"**{t}**" if level == e.sigma_min else t for t, e in zip(texts, found.values()))])
  steps = [setting.sampling.num_steps for setting in settings.values()]
  rows.append(["best", *(f"{each.sigma_min:g}" for each in found.values())])
  rows.append(["published", *(f"{times.dpdm_sigma_min(n):g}" if times.dpdm_lists(n) else "" for n in steps)])
  return report.markdown(["σ_min", *(f"NFE {nfe}" for nfe in found)], rows)


if __name__ == "__main__":
  cli.run(main)
