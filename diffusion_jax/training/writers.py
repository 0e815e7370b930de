"""What a run writes: metrics, throughput and scores as .jsonl, TensorBoard where it is installed, a progress bar."""

import importlib.util
import json
import time
from collections.abc import Callable
from typing import TypeVar

from etils import epath
from tqdm.auto import tqdm

from diffusion_jax import files

T = TypeVar("T")


class JsonLines:
  """An append-only file of one JSON object a line, cut back to a step on resume.

  On a disk every line is there once it is written. A bucket has no appending: there the lines are kept, and the file is
  written anew by `flush`. A run that flushes before it saves loses none, since it is cut back to its checkpoint anyway.
  """

  def __init__(self, path, step: int):
    """Keeps the lines of steps up to `step`: a killed run may have logged further than its last checkpoint."""
    self._path = epath.Path(path)
    kept = []
    if self._path.exists():
      for line in self._path.read_text().splitlines():
        try:
          if json.loads(line)["step"] > step:
            break
        except (KeyError, TypeError, ValueError):  # a line cut off by the kill
          break
        kept.append(line)
    temporary = self._path.parent / f"{self._path.name}.tmp"
    temporary.write_text("".join(line + "\n" for line in kept))
    temporary.replace(self._path)
    self._kept = [line + "\n" for line in kept] if files.is_remote(path) else None
    self._flushed = len(kept)

  def write(self, record: dict):
    line = json.dumps(record) + "\n"
    if self._kept is None:
      files.append(self._path, line)
    else:
      self._kept.append(line)

  def flush(self):
    """Has every line in the file."""
    if self._kept is not None and len(self._kept) > self._flushed:
      self._path.write_text("".join(self._kept))
      self._flushed = len(self._kept)


class Writer:
  """Writes a run's metrics; on hosts other than the first it does nothing.

  metrics.jsonl and scores.jsonl hold only what is a function of config and data, so two runs can be compared byte by
  byte; times are in throughput.jsonl. TensorBoard keeps what a killed run told it.
  """

  def __init__(self, workdir, step: int, config, first_host: bool = True):
    """Goes on from `step`: later lines of a run that was killed are cut off."""
    train = config.train
    batch_size, num_steps = train.batch_size, train.num_steps
    self._batch_size, self._first_host, self._board = batch_size, first_host, None
    self._clock, self._logged_step, self._waited = time.perf_counter(), step, 0.0
    if not first_host:
      return
    # The last line of a run that ended between two log lines and is now made longer is no line of the longer run.
    kept = step if step % train.log_every == 0 or step == num_steps else step - 1
    folder = epath.Path(workdir)
    self._metrics = JsonLines(folder / "metrics.jsonl", kept)
    self._throughput = JsonLines(folder / "throughput.jsonl", kept)
    self._scores = JsonLines(folder / "scores.jsonl", step)
    self._bar = tqdm(
      total=num_steps * batch_size, initial=step * batch_size, unit="img", unit_scale=True, desc="train", mininterval=1
    )
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
      import tensorflow as tf
      from clu import metric_writers

      tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's
      self._board = metric_writers.SummaryWriter(str(workdir))

  def advance(self, steps: int):
    """Moves the progress bar."""
    if self._first_host:
      self._bar.update(steps * self._batch_size)

  def timed(self, wait: Callable[[], T]) -> T:
    """wait(); the time it takes counts as waiting for data."""
    begin = time.perf_counter()
    out = wait()
    self._waited += time.perf_counter() - begin
    return out

  def log(self, step: int, metrics: dict):
    """Writes the metrics of the steps since the last line, and how long they took."""
    now = time.perf_counter()
    seconds, steps = now - self._clock, step - self._logged_step
    share, self._waited = self._waited / seconds, 0.0
    self._clock, self._logged_step = now, step
    if not self._first_host:
      return
    rate = steps * self._batch_size / seconds
    self._metrics.write({"step": step, **metrics})
    throughput = {"images_per_second": rate, "step_seconds": seconds / steps, "data_wait_share": round(share, 4)}
    self._throughput.write({"step": step, **throughput})
    loss = metrics["loss"]
    self._bar.set_postfix_str("all updates skipped" if loss is None else f"loss {loss:.4g}")
    if self._board:
      known = {name: value for name, value in metrics.items() if value is not None}
      self._board.write_scalars(step, {**known, **throughput})

  def score(self, step: int, value: float):
    """Writes the Fréchet distance of a step."""
    if self._first_host:
      self._scores.write({"step": step, "frechet": value})
      if self._board:
        self._board.write_scalars(step, {"frechet": value})

  def flush(self):
    """Has every line in the files: to be called before a checkpoint is saved, which a run is cut back to."""
    if self._first_host:
      for file in (self._metrics, self._throughput, self._scores):
        file.flush()

  def close(self):
    if self._first_host:
      self.flush()
      self._bar.close()
      if self._board:
        self._board.close()
