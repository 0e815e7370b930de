"""Training, read from top to bottom: config in, checkpoints, metrics and pictures out."""

import contextlib
import signal
import time

import jax
import numpy as np
from absl import logging
from etils import epath

from diffusion_jax import config as config_lib
from diffusion_jax import methods, sampling
from diffusion_jax.data import batching, sources
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.training import checkpoint as checkpoint_lib
from diffusion_jax.training import parallel, start, update, warm, writers
from diffusion_jax.training import state as state_lib

_GRID_SEEDS = 100  # images of a sample grid: seeds 0..99, ten a row


class Diverged(RuntimeError):
  """Too many updates in a row were not finite."""


def train(config, workdir) -> state_lib.TrainState:
  """Trains a config, or goes on where its workdir stopped.

  Writes under workdir: config.json, checkpoints/, metrics.jsonl, throughput.jsonl, samples/step_N.png. On SIGTERM it
  saves and returns.

  Args:
    config: see `diffusion_jax.config.default`.
    workdir: a local or remote folder; made if missing.

  Returns:
    The last state, unreplicated.

  Raises:
    ConfigError, WorkdirError: before anything compiles.
    Diverged: config.train.max_skipped updates in a row had a non-finite loss or gradient.
  """
  config_lib.check(config, jax.device_count())
  initial = warm.load(config, workdir)
  config = warm.resolve(config, initial, workdir)
  method = methods.from_config(config, parallel.AXIS)
  if initial is not None:
    initial = warm.fit(initial, method, config)
  sampling.schedule_of(config.sampling, method)
  source = sources.from_config(config)
  checkpoint_lib.check_workdir(workdir, config)
  if jax.process_index() == 0:  # two would take the temporary file from each other
    checkpoint_lib.write_config(workdir, config)
  checkpoints = checkpoint_lib.Checkpoints(workdir, config.train.keep_checkpoints)

  if checkpoints.latest_step() is None:
    fast = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None  # it runs once
    state = jax.jit(lambda: start.create_state(method, config), compiler_options=fast)()
    state = state if initial is None else warm.take(state, initial)
    del initial
  else:
    state = checkpoints.restore(start.template(method, config))
    logging.warning("resumed from step %d", state.step)
  first = step = int(state.step)
  state = parallel.replicate(state)

  per_call, num_steps = config.train.updates_per_call, config.train.num_steps
  run = parallel.pmap_update(update.windowed(method.update, config.train.log_every), per_call)
  slots = parallel.host_slots(config.train.batch_size)
  read = lambda k: batching.batch(source, config.seed, k, config.train.batch_size, *slots)
  make_batch = lambda k: parallel.shard([read(k + i) for i in range(per_call)])
  key = start.train_key(config)
  writer = writers.Writer(workdir, first, num_steps, config.train.batch_size, jax.process_index() == 0)
  batches = batching.prefetch(make_batch, range(first, num_steps, per_call))
  clock, clock_step = time.perf_counter(), first

  with contextlib.closing(checkpoints), contextlib.closing(writer), contextlib.closing(batches), _sigterm() as stop:
    for batch in batches:
      state = run(state, batch, key)
      step += per_call
      writer.advance(per_call)
      if step % config.train.log_every == 0 or step == num_steps:
        window = jax.device_get(parallel.unreplicate(state.window))
        now = time.perf_counter()
        writer.log(step, update.window_means(window), now - clock, step - clock_step)
        _check_finite(parallel.unreplicate(state.skipped_in_row), step, config)
        clock, clock_step = now, step
      if step % config.train.checkpoint_every == 0 or step == num_steps or stop:
        writer.flush()
        checkpoints.save(parallel.unreplicate(state))
      if step % config.train.sample_every == 0 or step == num_steps:
        save_grid(config, method, parallel.unreplicate(state), workdir, step)
      if stop:
        logging.warning("stopped by SIGTERM at step %d; saved", step)
        break
  return parallel.unreplicate(state)


def save_grid(config, method: methods.Method, state: state_lib.TrainState, workdir, step: int):
  """Writes samples/step_N.png: seeds 0..99 through the config's sampler; with ten classes, one a column."""
  if jax.process_index() != 0:
    return
  images = sampling.generate(config, method, state_lib.inference_variables(state), np.arange(_GRID_SEEDS))
  folder = epath.Path(workdir) / "samples"
  folder.mkdir(parents=True, exist_ok=True)
  images_lib.save_png(folder / f"step_{step:08d}.png", images, columns=10, scale=4, overwrite=True)


def _check_finite(skipped_in_row, step: int, config):
  if skipped_in_row >= config.train.max_skipped:
    raise Diverged(
      f"the last {skipped_in_row} updates before step {step} (seed {config.seed}) had a non-finite loss or gradient; "
      f"config.train.max_skipped = {config.train.max_skipped}"
    )


@contextlib.contextmanager
def _sigterm():
  """A list that is empty until SIGTERM arrives."""
  stop = []
  try:
    old = signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
  except ValueError:  # not in the main thread: the caller's business
    yield stop
    return
  try:
    yield stop
  finally:
    signal.signal(signal.SIGTERM, old)
