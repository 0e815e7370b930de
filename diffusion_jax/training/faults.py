"""What goes wrong on a cluster: preemption, a host that hangs, updates that are not finite."""

import contextlib
import faulthandler
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from diffusion_jax import config as config_lib
from diffusion_jax import methods
from diffusion_jax.data import batching
from diffusion_jax.training import start
from diffusion_jax.training import state as state_lib

HANG_CODE = 3  # exit code of a process that the watchdog ends


class Diverged(RuntimeError):
  """Too many updates in a row were not finite."""


class Watchdog:
  """Ends the process when `beat` is not called for `timeout` seconds: all stacks to stderr, exit code HANG_CODE.

  A host that hangs holds all others in their next collective, for ever; ended processes can be started again.
  """

  def __init__(self, timeout: float):
    """timeout in seconds; 0 watches nothing."""
    self._timeout, self._closed = timeout, threading.Event()
    self.beat("the start")
    if timeout:
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

  def beat(self, after: str):
    """Says that the run is alive; `after` is what was done last, for the message."""
    self._last, self._after = time.monotonic(), after

  def close(self):
    self._closed.set()

  def _watch(self):
    while not self._closed.wait(min(1.0, self._timeout / 10)):
      if time.monotonic() - self._last > self._timeout:
        try:
          stderr = sys.__stderr__
          print(
            f"error: nothing ended in {self._timeout:g} seconds after {self._after} (config.hang_timeout) on host "
            f"{jax.process_index()}; the stacks of its threads follow",
            file=stderr,
            flush=True,
          )
          faulthandler.dump_traceback(file=stderr, all_threads=True)
          stderr.flush()
        finally:
          os._exit(HANG_CODE)


_asked = itertools.count()


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
  """Gives stop(call): whether to save and stop after this call, the same on all hosts.

  SIGTERM is the notice. On one host it counts at once; of several, JAX's preemption service agrees on a call that all
  have still to come to, so they must ask after every call. It knows calls by numbers that may not come twice: they are
  counted here, over all runs that a process trains. Inside another `preemption` the notice counts for both.
  """
  if jax.process_count() > 1:
    yield lambda call: multihost_utils.reached_preemption_sync_point(next(_asked))
    return
  notice = _Notice(signal.getsignal(signal.SIGTERM))
  try:
    old = signal.signal(signal.SIGTERM, notice)
  except ValueError:  # not in the main thread: the caller's business
    yield lambda call: False
    return
  try:
    yield lambda call: notice.given
  finally:
    signal.signal(signal.SIGTERM, old)


class _Notice:
  """A handler of SIGTERM that remembers it, and tells the one that it stands in for if that is of its kind."""

  def __init__(self, outer):
    self.given, self._outer = False, outer

  def __call__(self, *args):
    self.given = True
    if isinstance(self._outer, _Notice):
      self._outer(*args)


def diverged(
  workdir, config, method: methods.Method, num_examples: int, step: int, count: int, checkpoint: int | None
) -> Diverged:
  """The error of `count` updates before `step` that were skipped, having written workdir/repro_STEP.json.

  The file holds, for each of these updates, what it was made of: step, the examples' numbers in the data, their slots
  and noise levels; with the config and the newest checkpoint they can be made again.
  """
  path = epath.Path(workdir) / f"repro_{step:08d}.json"
  if jax.process_index() == 0:
    key, size = start.train_key(config), config.train.batch_size
    updates = []
    for k in range(max(step - count, step - config.train.max_skipped), step):
      slots = list(range(size))
      examples = batching.indices(config.seed, k, size, num_examples, config_lib.slices(config)).tolist()
      updates.append({"step": k, "examples": examples, "slots": slots})
      if method.times is not None:
        levels = method.times(state_lib.example_keys(key, k, jax.numpy.arange(size)))
        updates[-1]["times"] = np.asarray(levels, float).tolist()
    record = {"seed": config.seed, "checkpoint": checkpoint, "config": config_lib.flatten(config), "updates": updates}
    path.write_text(json.dumps(record) + "\n")
  return Diverged(
    f"the last {count} updates before step {step} (seed {config.seed}) had a non-finite loss or gradient; "
    f"config.train.max_skipped = {config.train.max_skipped}; {path} says of which examples and noise levels"
  )
