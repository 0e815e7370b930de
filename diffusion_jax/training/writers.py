"""What a run writes: metrics.jsonl, throughput.jsonl, TensorBoard where it is installed, a progress bar."""

import importlib.util
import json

from etils import epath
from tqdm.auto import tqdm

from diffusion_jax import files


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

  metrics.jsonl holds only what is a function of config and data, so two runs can be compared byte by byte; times are
  in throughput.jsonl.
  """

  def __init__(self, workdir, step: int, num_steps: int, batch_size: int, first_host: bool = True):
    self._batch_size, self._first_host, self._board = batch_size, first_host, None
    if not first_host:
      return
    self._metrics = JsonLines(epath.Path(workdir) / "metrics.jsonl", step)
    self._throughput = JsonLines(epath.Path(workdir) / "throughput.jsonl", step)
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

  def log(self, step: int, metrics: dict, seconds: float, steps: int):
    """Writes the metrics of the last `steps` steps, which took `seconds`."""
    if not self._first_host:
      return
    rate = steps * self._batch_size / seconds
    self._metrics.write({"step": step, **metrics})
    self._throughput.write({"step": step, "images_per_second": rate, "step_seconds": seconds / steps})
    loss = metrics["loss"]
    self._bar.set_postfix_str("all updates skipped" if loss is None else f"loss {loss:.4g}")
    if self._board:
      known = {name: value for name, value in metrics.items() if value is not None}
      self._board.write_scalars(step, {**known, "images_per_second": rate})

  def flush(self):
    """Has every line in the files: to be called before a checkpoint is saved, which a run is cut back to."""
    if self._first_host:
      self._metrics.flush()
      self._throughput.flush()

  def close(self):
    if self._first_host:
      self.flush()
      self._bar.close()
      if self._board:
        self._board.close()
