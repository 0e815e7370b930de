"""Digests of a checkpoint's files, by which one that was altered since is told from one that was not."""

import hashlib
import json

from etils import epath

from diffusion_jax import files

FILE = "digests.json"
_LEFT_OUT = (FILE, "_CHECKPOINT_METADATA", "commit_success.txt")  # orbax writes these two later


def write(folder: epath.Path):
  """Writes the digests of a checkpoint whose files are all there."""
  (folder / FILE).write_text(json.dumps(of(folder), indent=1) + "\n")


def altered(folder: epath.Path) -> str | None:
  """The first file of a checkpoint that is missing or not as it was written, in words.

  Returns:
    "" if all are as they were written; None where nothing tells: in a bucket, which has checksums of its own, and for
    checkpoints of another program.

  Raises:
    OSError: a file is there and cannot be read now.
  """
  if files.is_remote(folder) or not (folder / FILE).exists():
    return None
  try:
    wanted = json.loads((folder / FILE).read_text())
  except ValueError as error:
    return f"{FILE} cannot be read: {error}"
  for name, digest in wanted.items():
    try:
      found = _digest(folder / name)
    except FileNotFoundError:
      return f"{name} is missing"
    if found != digest:
      return f"{name} is altered"
  return ""


def of(folder: epath.Path) -> dict[str, str]:
  """{relative path: SHA-256 in hexadecimal} of a checkpoint's files."""
  return {str(path.relative_to(folder)): _digest(path) for path in _files(folder) if path.name not in _LEFT_OUT}


def _digest(path: epath.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: epath.Path):
  """All files under a folder, in the order of their names."""
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _files(path)
    else:
      yield path
