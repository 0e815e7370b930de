"""Training, read from top to bottom: config in, checkpoints, metrics and pictures out."""

import collections
import contextlib
import functools
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import guidance, latent, mesh, methods, sampling
from diffusion_jax.data import batching, latents, sources
from diffusion_jax.evaluation import images as images_lib
from diffusion_jax.methods import conditions
from diffusion_jax.training import (
  autoencoders,
  classifiers,
  faults,
  host_memory,
  memory,
  parallel,
  scores,
  start,
  update,
  warm,
  writers,
)
from diffusion_jax.training import checkpoint as checkpoint_lib
from diffusion_jax.training import state as state_lib

_GRID_SEEDS = 100  # images of a sample grid: seeds 0..99, ten a row
_GRID_EXAMPLES = 30  # with a task: each in three rows, the condition, the image, the truth
_SIGMA_IMAGES = 2_000  # images that σ_data is measured on
_CALLS_AHEAD = 4  # calls of the update that are queued on the devices before the loop waits for the oldest


def train(config, workdir, profile: range | None = None) -> state_lib.TrainState:
  """Trains a config, or goes on where its workdir stopped.

  Writes under workdir: config.json, checkpoints/, metrics.jsonl, throughput.jsonl, scores.jsonl, samples/step_N.png of
  a method that draws images, and init_from.json of a run with other weights. On SIGTERM or another notice of preemption
  it saves and returns.

  Args:
    config: see `diffusion_jax.config.default`.
    workdir: a local or remote folder, shared by all hosts; made if missing.
    profile: steps of which a profiler trace is written under workdir/profile.

  Returns:
    The last state, as NumPy arrays; of what it remembers of its examples this host's part.

  Raises:
    ConfigError, WorkdirError, DataError: before anything compiles.
    Diverged: config.train.max_skipped updates in a row had a non-finite loss or gradient; repro_STEP.json says which.
    SaveError: something cannot be written.
  """
  with contextlib.ExitStack() as stack:
    config_lib.check(config)
    watchdog = stack.enter_context(contextlib.closing(faults.Watchdog(config.hang_timeout)))
    stop = stack.enter_context(faults.preemption())  # outlives the last checkpoint's writing
    run = prepare(config, workdir)
    watchdog.beat("the preparation")
    config, method, layout, source = run.config, run.method, run.layout, run.source
    saving = functools.partial(checkpoint_lib.writing, workdir)  # around what writes
    with saving():
      if jax.process_index() == 0:  # two would take the temporary file from each other
        checkpoint_lib.write_config(workdir, config)
      checkpoints = stack.enter_context(contextlib.closing(checkpoint_lib.Checkpoints(workdir, config)))
    where = start.shardings(config, layout, run.shapes)
    if checkpoints.latest_step() is None:
      measure_data(config, source)
      state = start.make_state(method, config, where)
      if run.initial is not None:
        state = warm.take(state, run.initial)
        with saving():
          warm.report(run.initial, config, workdir)
    else:
      state = checkpoints.restore(parallel.placed(run.shapes, where))
      logging.warning("resumed from step %d", parallel.first(state.step)[0])
    run = run._replace(initial=None)
    first = step = int(parallel.first(state.step)[0])
    slots, slices = parallel.host_slots(config.train.batch_size), config_lib.slices(config)
    hosts = None  # what remembers the examples, where that is not the devices
    if config_lib.on_host(config):
      hosts = host_memory.OnHost(state.buffer["estimate"], slices, first)
      state = state.replace(buffer=start.nothing_written(config, layout))
    state = layout.lay(state)
    watchdog.beat("the first state")

    per_call, num_steps, size = config.train.updates_per_call, config.train.num_steps, config.train.batch_size
    if first > num_steps:
      logging.warning("the run is at step %d already, config.train.num_steps = %d", first, num_steps)
    update_call = layout.compile(update.windowed(method.update, config.train.log_every), per_call)
    data = None
    shown = shown_examples(config, source)
    if config.data.cache == "device":  # then the host keeps nothing, and sends numbers alone
      data = layout.everywhere(sources.everything(source))
      source = sources.Numbers(len(source))
      run = run._replace(source=source)
    read = lambda k: batching.batch(source, config.seed, k, size, *slots, slices)
    if hosts:
      examples, index = read, lambda k: batching.indices(config.seed, k, size, len(source), slices)[slice(*slots)]
      read = lambda k: {**examples(k), "stored": hosts.take(k, index(k))}
    make_batch = lambda k: layout.split([read(k + i) for i in range(per_call)])
    batches = stack.enter_context(contextlib.closing(batching.prefetch(make_batch, range(first, num_steps, per_call))))
    if hosts:  # closed before the batches, which may wait for it
      stack.enter_context(contextlib.closing(hosts))
    key = start.train_key(config)
    with saving():
      writer = stack.enter_context(contextlib.closing(writers.Writer(workdir, first, config, jax.process_index() == 0)))
    tracing = stack.enter_context(_trace(workdir, profile, per_call))
    pending = collections.deque()  # (step, skipped_in_row of each update) of the calls that may still run

    def settle(calls: int = 0):
      """Waits until at most so many calls run."""
      while len(pending) > calls:
        ended, skipped = pending.popleft()
        counts = parallel.first(skipped)
        watchdog.beat(f"step {ended}")
        if max(counts) >= config.train.max_skipped:
          last = int(np.argmax(counts >= config.train.max_skipped))
          bad = ended - per_call + 1 + last
          with saving():
            raise faults.diverged(
              workdir, config, method, len(source), bad, int(counts[last]), checkpoints.latest_step()
            )

    def gathered():
      """The state to be saved, with all that is remembered of the examples."""
      if not hosts:
        return layout.gather(state)
      return layout.gather(state.replace(buffer={})).replace(buffer={"estimate": hosts.whole(step - 1)})

    def look(step: int, done: str = ""):
      """Scores and draws the averaged network, where that is due and not done; all hosts take part."""
      if run.score and _due(config.train.score_every, step, num_steps) and "scored" not in done:
        variables = state_lib.inference_variables(layout.whole(state.ema))
        score = run.score(variables, lambda _: watchdog.beat(f"images for the score of step {step}"))
        checkpoints.scored({step: score})
        with saving():
          writer.score(step, score)
      draws = method.denoise is not None
      if draws and _due(config.train.sample_every, step, num_steps) and "drawn" not in done:
        images = draw_grid(config, method, layout.whole(state.ema), run.classifier, run.decoder, shown)
        with saving():
          save_grid(workdir, step, images, shown)
        watchdog.beat(f"the images of step {step}")

    if first:  # a run that was stopped or killed here may not have come to it
      scores_before = {k: v for k, v in checkpoint_lib.scores_of(workdir).items() if k <= first}
      checkpoints.scored(scores_before)
      done = lambda: "scored " * (first in scores_before) + "drawn" * _grid_path(workdir, first).exists()
      look(first, mesh.from_first_host(done))
    for call in range(-(-(num_steps - first) // per_call)):
      tracing(step, state)
      batch = writer.timed(lambda: next(batches))
      state, skipped = update_call(state, batch, key, data)
      if hosts:
        hosts.put(step, index(step), state.buffer["written"])
      step += per_call
      pending.append((step, skipped))
      settle(_CALLS_AHEAD)
      writer.advance(per_call)
      if _due(config.train.log_every, step, num_steps):
        settle()
        with saving():
          writer.log(step, update.window_means(layout.whole(state.window)))
      stopping = stop(call)
      if _due(config.train.checkpoint_every, step, num_steps) or stopping:
        settle()
        with saving():
          writer.flush()
        checkpoints.save(gathered(), step)
        watchdog.beat(f"the checkpoint of step {step}")
      if stopping:
        logging.warning("stopped by SIGTERM at step %d; saved", step)
        break
      look(step)
    settle()
  if hosts:  # what follows is nobody's loss: all is on disk
    return layout.whole(state.replace(buffer={})).replace(buffer={"estimate": hosts.held})
  return layout.whole(state)


def _due(every: int, step: int, num_steps: int) -> bool:
  return every > 0 and (step % every == 0 or step == num_steps)


class Prepared(NamedTuple):
  """A run before anything compiles."""

  config: ConfigDict
  method: methods.Method
  layout: parallel.Layout
  source: sources.Source
  shapes: state_lib.TrainState  # of jax.ShapeDtypeStruct
  initial: warm.Fit | None  # weights to start from
  score: scores.InTraining | None
  classifier: guidance.Classifier | None  # that guides the run's pictures and scores
  decoder: latent.Decoder | None  # that makes them of latents


def prepare(config, workdir, layout: parallel.Layout | None = None) -> Prepared:
  """Everything that can be wrong is looked at, and nothing is written.

  Args:
    config: the run's.
    workdir: None for a run that has none yet.
    layout: in place of config.train.parallel on this machine's devices.

  Raises:
    ConfigError, WorkdirError, DataError: something is.
  """
  config_lib.check(config)
  layout = layout or parallel.from_config(config.train.parallel)
  config_lib.check(config, layout.mesh.size)
  initial = warm.load(config, workdir)
  config = latents.resolve(warm.resolve(config, initial, workdir))
  source = sources.from_config(config)
  config = memory.resolve(config, source, layout.mesh)
  method = methods.from_config(config, layout.axis_name)
  if initial is not None:
    initial = warm.fit(initial, method, config)
  initial = warm.with_encoder(initial, method, config, workdir)
  classifier, decoder = None, None
  if method.denoise is not None:
    sampling.schedule_of(config.sampling, method)
    sampling.ratio_of(config.sampling, method)
    classifier, decoder = classifiers.from_config(config), autoencoders.from_config(config)
  conditions.check(config, source)
  checkpoint_lib.check_workdir(workdir, config, checkpoint_lib.has_checkpoint(workdir))
  score = scores.InTraining(config, method, classifier, decoder) if config.train.score_every else None
  shapes = start.shapes(method, config)
  warm.check_frozen(config, shapes.params)
  return Prepared(config, method, layout, source, shapes, initial, score, classifier, decoder)


def measure_data(config, source: sources.Source):
  """Says how widely the data are spread, with a warning where a preconditioner's sigma_data is more than 20 % off."""
  if jax.process_index() != 0:
    return
  sigma, assumed = sources.measure_sigma(source, _SIGMA_IMAGES), config.edm.sigma_data
  sigma *= config.latent.scale or 1
  used = config.method in ("edm", "dpdm") and config.edm.preconditioner == "edm"
  print(f"{config.data.name} {config.data.split}: {len(source):,} images {source.image_shape}, σ_data {sigma:.3f}")
  if used and not abs(sigma - assumed) <= 0.2 * assumed:
    logging.warning("config.edm.sigma_data = %g: the standard deviation of the data is %.3f", assumed, sigma)


def shown_examples(config, source: sources.Source) -> dict[str, np.ndarray] | None:
  """The examples of the data, evenly spread, whose images a run with a task draws in its pictures; None without."""
  if not config.task.name:
    return None
  return source.gather(np.arange(_GRID_EXAMPLES) * len(source) // _GRID_EXAMPLES)


def draw_grid(
  config,
  method: methods.Method,
  ema,
  classifier: guidance.Classifier | None = None,
  decoder: latent.Decoder | None = None,
  shown: dict | None = None,
) -> np.ndarray:
  """Seeds 0..99 through the config's sampler; with ten classes, one a column. All hosts draw, and get all images.

  With a task one image is made from the condition of each of the `shown` examples.
  """
  variables, labels, condition = state_lib.inference_variables(ema), None, None
  seeds = np.arange(len(shown["image"]) if shown else _GRID_SEEDS)
  if shown:
    condition, labels = shown["condition"], shown["label"] if config.data.num_classes else None
  more = {"classifier": classifier, "condition": condition, "decoder": decoder}
  return sampling.generate_together(config, method, variables, seeds, labels, **more)


def save_grid(workdir, step: int, images: np.ndarray, shown: dict | None = None):
  """Writes samples/step_N.png, ten images a row, on the first host; those `shown` under what they are made from."""
  if jax.process_index() == 0:
    path = _grid_path(workdir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    if shown:
      truth = [shown["image"]] if shown["image"].shape[:3] == images.shape[:3] else []  # a latent is no picture
      images = images_lib.compared([shown["condition"], images, *truth], columns=10)
    images_lib.save_png(path, images, columns=10, scale=4, overwrite=True)


def _grid_path(workdir, step: int) -> epath.Path:
  return epath.Path(workdir) / "samples" / f"step_{step:08d}.png"


@contextlib.contextmanager
def _trace(workdir, steps: range | None, per_call: int):
  """Gives f(step, state), to be called before each call, which starts and stops the profiler."""
  running, done = False, steps is None

  def at(step, state):
    nonlocal running, done
    if not running and not done and step < steps.stop and step + per_call > steps.start:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(epath.Path(workdir) / "profile"))
      running = True
    elif running and step >= steps.stop:
      stop(state)

  def stop(state=None):
    nonlocal running, done
    jax.block_until_ready(state)
    jax.profiler.stop_trace()
    running, done = False, True

  try:
    yield at
  finally:
    if running:
      stop()
    if not done:
      logging.warning("no trace was written: steps %d to %d did not come", steps.start, steps.stop - 1)
