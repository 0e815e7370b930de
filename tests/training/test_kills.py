"""Twenty runs killed at random moments, each restarted until it ends: all bit for bit the uninterrupted one.

  python -m pytest -m slow tests/training/test_kills.py -s

KILL_SEED chooses the moments, KILL_REPORT names a file for the table.
"""

import json
import os
import random
import shutil
import time

import jax
import numpy as np
import pytest
from training import tiny, toy
from training.programs import STEPS, Runs

from diffusion_jax import methods
from diffusion_jax.methods import base
from diffusion_jax.training import checkpoint, parallel, start

COUNT = 20


def final_state(runs, name):
  """{path: bytes} of a run's last checkpoint."""
  config = tiny.get_config()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
    template = parallel.template(parallel.from_config("pmap"), start.shapes(methods.from_config(config), config))
  checkpoints = checkpoint.Checkpoints(runs.folder / name, config)
  assert checkpoints.latest_step() == STEPS
  state = checkpoints.restore(template)
  checkpoints.close()
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


@pytest.mark.slow
def test_twenty_of_twenty_killed_runs_end_as_the_uninterrupted(tmp_path):
  """Every second one is killed in the middle of a checkpoint's writing, the others at a random moment; one in three is
  killed again after it was restarted.
  """
  seed = int(os.environ.get("KILL_SEED", "0"))
  runs, rng, rows = Runs(tmp_path), random.Random(seed), []
  every = "--config.train.checkpoint_every=2"
  begin = time.monotonic()
  runs.finish("one", runs.start("one", 1, every))
  duration = time.monotonic() - begin
  wanted = final_state(runs, "one")
  for i in range(COUNT):
    name, kills = f"run{i}", []
    while len(kills) < 1 + (i % 3 == 0):
      process = runs.start(name, 1, every)
      if i % 2:
        after = rng.randrange(0, STEPS - 6)
        runs.wait_for_write(name, process, after)
        moment = f"writing a checkpoint after step {after}"
      else:
        seconds = rng.uniform(0.2, 1.0) * duration
        time.sleep(seconds)
        moment = f"{seconds:.2f} s after its start"
      if process.poll() is None:
        runs.kill(process)
        kills.append(f"{moment}, at step {runs.logged(name)}")
      else:  # too late: from the beginning
        shutil.rmtree(tmp_path / name)
        kills, duration = [], 0.9 * duration
    before = runs.steps(name) if (runs.folder / name / "checkpoints").exists() else []
    said = runs.finish(name, runs.start(name, 1, every))
    state = final_state(runs, name)
    different = runs.differences(name, "one") + [key for key in wanted if wanted[key] != state.get(key)]
    resumed = "resumed from" in said
    rows.append({"run": i, "killed": kills, "checkpoints": before, "resumed": resumed, "different": different})
    print(rows[-1], flush=True)
  equal = sum(not row["different"] for row in rows)
  if os.environ.get("KILL_REPORT"):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    with open(os.environ["KILL_REPORT"], "w") as file:
      file.write(lines)
  assert equal == COUNT, f"KILL_SEED={seed}"
