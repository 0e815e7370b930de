"""Files on disks and in buckets: every path may be a local one, or gs://BUCKET/NAME.

Paths are etils' epath.Path throughout, which speaks to buckets through fsspec and gcsfs (the extra `gcs`). A bucket is
no disk in four ways: it has no appending (gcsfs would put the new line in place of the file), no random access worth
its time, no paths from a working directory, and listings that others change.
"""

import io
import os
import shutil
import tempfile
from typing import BinaryIO

import fsspec
from etils import epath

# One way to a bucket, whether or not TensorFlow, which epath would else use, is installed.
os.environ.setdefault("EPATH_USE_TF", "false")
# gcsfs keeps every listing for good, but checkpoints are written and removed by TensorStore, and by other hosts.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def is_remote(path) -> bool:
  """Whether a path is in a bucket."""
  return "://" in os.fspath(path)


def absolute(path) -> epath.Path:
  """The path from the root of its file system."""
  path = epath.Path(path)
  return path if is_remote(path) else path.resolve()  # which would put gs:// under the working directory


def append(path, text: str):
  """Adds text to a file, making the file.

  In a bucket the file is written anew with the text at its end: readers see it with all of the text or none, but of two
  who append at once only one is heard.
  """
  path = epath.Path(path)
  if is_remote(path):
    path.write_text((path.read_text() if path.exists() else "") + text)
  else:
    with path.open("a") as file:
      file.write(text)


def open_for_seeking(path) -> BinaryIO:
  """Opens a file that is read here and there: one from a bucket is first copied whole to this machine's disk.

  The copy has no name, and goes when the file is closed or the process ends. It is in $TMPDIR, /tmp by default.
  """
  path = epath.Path(path)
  if not is_remote(path):
    return path.open("rb")
  copy = tempfile.TemporaryFile()
  with path.open("rb") as file:
    shutil.copyfileobj(file, copy, 16 * 2**20)
  copy.seek(0, io.SEEK_SET)
  return copy


def unreachable(error: Exception) -> bool:
  """Whether an error is of the way to a bucket (rights, network, the service), and says nothing about what is there."""
  status = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED")  # TensorStore's
  theirs = type(error).__module__.partition(".")[0] in ("gcsfs", "google", "aiohttp")
  return theirs or str(error).startswith((*status, "Forbidden"))


def why_not(error: Exception) -> str | None:
  """One line for a bucket that cannot be used, as by a missing package or missing rights; None for other errors."""
  if isinstance(error, ImportError):
    missing = getattr(error.__cause__ or error, "name", None) or ""
    if missing == "gcsfs" or missing.startswith("google"):
      return f"gs:// needs the package {missing}: pip install 'diffusion-jax[gcs]'"
  theirs = type(error).__module__.partition(".")[0] in ("gcsfs", "google")
  if theirs and not str(getattr(error, "code", None)).startswith("5"):  # 5xx: the service's own trouble
    return " ".join(f"Google Cloud Storage: {error}".split())
  return None
