"""Reads PyTorch's files without PyTorch, and runs nothing from them.

Pickles are read by pickle_machine.py, which calls no function that a file names. Three containers are known:

    plain   one pickle; tensors lie in it as torch.storage._load_from_bytes(bytes of a legacy or zip file)
    legacy  five pickles (magic number, protocol, system, value, storage keys), then per key: count int64, elements
    zip     NAME/data.pkl with the value and NAME/data/KEY with elements, stored without compression

Work and memory are bounded by the file's size: opcodes are counted, and what a file could multiply is paid for.
"""

import io
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from diffusion_jax.interop.pickle_machine import MAX_OPCODES, Budget, Machine, Record, Storage, frozen, kind_of
from diffusion_jax.interop.pickle_machine import Name as Name

MAX_FILE_BYTES = 16 << 30
MAX_DEPTH = 100  # of containers within containers
MAX_ENTRIES = 50_000  # of a zip
FREE_BYTES = 64 << 20  # what a file may expand to beyond six times its size

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ZIP_MAGIC = b"PK\x03\x04"


def read(path) -> Any:
  """Reads a file of any of the three containers.

  Args:
    path: a string or path, local or remote as etils' epath knows them.

  Returns:
    The value: dicts, lists, tuples, sets, numbers, strings, bytes, Record and Name, without cycles and at most
    MAX_DEPTH deep; tensors are read-only numpy arrays with the file's dtype, shape and strides.

  Raises:
    ValueError: there is no such file, it is damaged, too large, or refers to a name that is not known here.
  """
  path = epath.Path(path)
  try:
    if not path.is_file():
      raise ValueError("no such file")
    if path.stat().length > MAX_FILE_BYTES:
      raise ValueError(f"{path.stat().length} bytes: expected at most {MAX_FILE_BYTES}")
    return parse(path.read_bytes())
  except (ValueError, OSError) as error:
    raise ValueError(f"{path}: {error}") from None


def parse(data: bytes) -> Any:
  """The value of a file's bytes, as `read` returns it; raises ValueError."""
  try:
    value = _parse(data, Budget(MAX_OPCODES, 6 * len(data) + FREE_BYTES))
    _check_nesting(value)
  except ValueError:
    raise
  except Exception as error:  # whatever damaged bytes raise in pickletools, zipfile or numpy
    raise ValueError(f"damaged: {type(error).__name__}: {error}") from error
  return value


def read_state_dict(path, key: str | None = None) -> dict[str, np.ndarray]:
  """Name -> array of a saved state dict; of its entry `key` if that is given.

  Raises:
    ValueError: as `read` does, or the file holds something else than named tensors.
  """
  value = read(path)
  if key is not None:
    if not isinstance(value, dict) or key not in value:
      raise ValueError(f"{path}: has no entry {key!r}")
    value = value[key]
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected a state dict, got {kind_of(value)}")
  for name, tensor in value.items():
    if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
      raise ValueError(f"{path}: expected names and tensors, got the entry {str(name)[:80]!r}: {kind_of(tensor)}")
  return dict(value)


def module_tensors(module: Record) -> dict[str, np.ndarray]:
  """The state dict of a pickled torch.nn.Module: its parameters and persistent buffers by dotted name.

  Raises:
    ValueError: the record's state is not that of a module.
  """
  tensors = {}
  entries = 0
  pending = [("", module)]
  while pending:
    prefix, record = pending.pop()
    state = record.state if isinstance(record, Record) and isinstance(record.state, dict) else {}
    tables = {key: state.get(key) for key in ("_parameters", "_buffers", "_modules")}
    if not all(isinstance(table, dict) for table in tables.values()):
      raise ValueError(f"{prefix or 'the network'} is no module: {kind_of(record)}")
    entries += 1 + sum(len(table) for table in tables.values())
    if entries > 100_000:  # a module may be part of another by so many ways that the walk would not end
      raise ValueError("a network of more than 100000 modules and tensors")
    transient = state.get("_non_persistent_buffers_set", ())
    for table in ("_parameters", "_buffers"):
      for name, tensor in tables[table].items():
        if tensor is None or (table == "_buffers" and isinstance(transient, set | tuple) and name in transient):
          continue
        if not isinstance(tensor, np.ndarray):
          raise ValueError(f"{prefix}{name} is no tensor: {kind_of(tensor)}")
        tensors[f"{prefix}{name}"] = tensor
    for name, child in tables["_modules"].items():
      if child is not None:
        pending.append((f"{prefix}{name}.", child))
  return tensors


def _is_dict(value) -> bool:
  return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _parse(data: bytes, budget: Budget, nested: bool = False) -> Any:
  """The value of a file, or of one within its pickle; there are none within those."""
  inner = None if nested else lambda data: _parse(data, budget, nested=True)
  if data.startswith(_ZIP_MAGIC):
    return _parse_zip(data, budget, inner)
  file = io.BytesIO(data)  # reads beyond the end are cut short, whatever size they ask for
  value = Machine(budget, None, inner).run(file)
  if isinstance(value, int) and value == _LEGACY_MAGIC:
    return _parse_legacy(data, file, budget, inner)
  return value


def _parse_legacy(data: bytes, file: io.BytesIO, budget: Budget, inner: Callable[[bytes], Any] | None) -> Any:
  run = lambda storage: Machine(budget, storage, inner).run(file)
  protocol = run(None)
  if protocol != _LEGACY_PROTOCOL or not isinstance(protocol, int):
    raise ValueError(f"legacy file: expected protocol {_LEGACY_PROTOCOL}")
  system = run(None)
  if not _is_dict(system) or system.get("little_endian") is not True:
    raise ValueError("legacy file: expected little-endian numbers")

  # The elements come after the value that views them, so the value is read twice: for their sizes, then in earnest.
  start = file.tell()
  storages: dict[str, Storage] = {}

  def declare(key, dtype, count):
    storage = storages.setdefault(key, Storage(dtype, count, None))
    if (storage.dtype, storage.count) != (dtype, count):
      raise ValueError(f"storage {key[:80]!r} is declared twice, with different sizes")
    return storage

  run(declare)
  keys = run(None)
  if not isinstance(keys, list) or set(map(type, keys)) - {str} or sorted(keys) != sorted(storages):
    raise ValueError("legacy file: the storage keys are not those that the value refers to")
  position = file.tell()
  for key in keys:
    storage = storages[key]
    count = int.from_bytes(data[position : position + 8], "little")
    if count != storage.count:
      raise ValueError(f"storage {key[:80]!r} has {count} elements: expected {storage.count}")
    storage.array = _elements(data, position + 8, storage.dtype, count, f"storage {key[:80]!r}", budget)
    position += 8 + count * storage.dtype.itemsize
  file.seek(start)
  return run(lambda key, dtype, count: storages[key])


def _parse_zip(data: bytes, budget: Budget, inner: Callable[[bytes], Any] | None) -> Any:
  headers = data.count(b"PK\1\2")  # one an entry; zipfile would make an object of each
  if headers > MAX_ENTRIES:
    raise ValueError(f"a zip of {headers} entries: expected at most {MAX_ENTRIES}")
  budget.count(400 + 10 * headers)
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    entries = {info.filename: info for info in archive.infolist()}
    for name, info in entries.items():
      if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"zip entry {name[:80]!r} is compressed: expected stored entries")
    if sum(info.file_size for info in archive.infolist()) > len(data):
      raise ValueError("the zip's entries are larger than the file")
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
      raise ValueError(f"a zip with {len(pickles)} entries NAME/data.pkl: expected one")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
      raise ValueError("zip file: expected little-endian numbers")
    storages: dict[str, Storage] = {}

    def storage(key, dtype, count):
      name = f"{root}data/{key}"
      if key not in storages:
        if name not in entries:
          raise ValueError(f"the zip has no entry {name[:80]!r}")
        if entries[name].file_size != count * dtype.itemsize:
          size = entries[name].file_size
          raise ValueError(f"zip entry {name[:80]!r} has {size} bytes: expected {count} elements of {dtype}")
        array = _elements(archive.read(entries[name]), 0, dtype, count, name[:80], budget)
        storages[key] = Storage(dtype, count, array)
      if (storages[key].dtype, storages[key].count) != (dtype, count):
        raise ValueError(f"storage {key[:80]!r} is declared twice, with different sizes")
      return storages[key]

    return Machine(budget, storage, inner).run(io.BytesIO(archive.read(pickles[0])))


def _elements(data: bytes, offset: int, dtype: np.dtype, count: int, what: str, budget: Budget) -> np.ndarray:
  """`count` elements of `data` from a byte offset on, [count], aligned and read-only."""
  if count * dtype.itemsize > len(data) - offset:
    raise ValueError(f"{what} ends early: expected {count} elements of {dtype}")
  budget.spend(count * dtype.itemsize)
  array = np.frombuffer(data, dtype, count, offset) if count else np.zeros(0, dtype)
  if not array.flags.aligned:
    array = array.copy()
  return frozen(array)


def _check_nesting(value):
  """Raises ValueError if a value contains itself or is more than MAX_DEPTH deep; visits every container once."""
  heights: dict[int, int] = {}  # of finished containers, by id
  path, above, tallest = [iter([value])], [0], [0]
  open_ids = {0}
  while path:
    for child in path[-1]:
      if not isinstance(child, dict | list | tuple | Record):
        continue
      if id(child) in open_ids:
        raise ValueError(f"{kind_of(child)} contains itself")
      height = heights.get(id(child), 0)
      if len(path) + height > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
      if id(child) in heights:
        tallest[-1] = max(tallest[-1], 1 + height)
        continue
      if isinstance(child, Record):
        inner = (child.args, child.state)
      else:
        inner = child.values() if isinstance(child, dict) else child
      path.append(iter(inner))
      above.append(id(child))
      tallest.append(0)
      open_ids.add(id(child))
      break
    else:
      path.pop()
      done, height = above.pop(), tallest.pop()
      heights[done] = height
      open_ids.discard(done)
      if tallest:
        tallest[-1] = max(tallest[-1], 1 + height)


assert sys.byteorder == "little", "PyTorch's files are read where numbers are little-endian"
