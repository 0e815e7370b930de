"""The stack machine that reads a pickle of tensors, and runs nothing from it.

A pickle is a program for a small stack machine that may call any function by name. The machine here knows the opcodes
that build data; a name is data too, and the few that may be called (_FUNCTIONS) are functions of this file. Classes of
known packages become a `Record`, which has no behaviour. Any other name is an error.
"""

import dataclasses
import io
import math
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

MAX_OPCODES = 500_000  # a published network takes some 100,000
_MAX_BITS = 128  # of an integer; the longest in use is the magic number
_MAX_DIMS = 32

# Element types by the names of PyTorch's storages, and by its names of dtypes.
_STORAGES = {
  "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
  "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
  "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
  "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
_DTYPES = {
  **{name: name for name in _STORAGES.values()}, "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
  "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2",
}  # fmt: skip
_STORAGE_NAMES = {
  f"{module}.{name}": dtype for module in ("torch", "torch.cuda", "torch.storage") for name, dtype in _STORAGES.items()
}
_DTYPE_NAMES = {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
_NUMPY_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}

# Packages whose classes are read as inert records.
_RECORD_PREFIXES = ("torch.nn.modules.", "torch_utils.", "training.", "dnnlib.", "pytorch_lightning.callbacks.")


@dataclasses.dataclass(frozen=True)
class Name:
  """A function or class that a file refers to, by its dotted name; nothing can be called through it."""

  name: str


@dataclasses.dataclass(eq=False)
class Record:
  """What a file says of an object: the name of its class, the constructor's arguments and the state, if any."""

  name: str
  args: tuple = ()
  state: Any = None


@dataclasses.dataclass(eq=False)
class Storage:
  """A run of elements that tensors view; `array` [count] is None while only sizes are being gathered."""

  dtype: np.dtype
  count: int
  array: np.ndarray | None


def kind_of(value) -> str:
  """A short word for a value of a file: never its contents, which may be long."""
  return f"a {value.name[:80]}" if isinstance(value, Record | Name) else f"a {type(value).__name__}"


@dataclasses.dataclass
class Budget:
  """What is left to spend on one file."""

  opcodes: int
  nbytes: int

  def count(self, opcodes: int = 1):
    """Pays for opcodes, or for work worth as many."""
    self.opcodes -= opcodes
    if self.opcodes < 0:
      raise ValueError(f"more than {MAX_OPCODES} opcodes")

  def spend(self, nbytes: int):
    self.nbytes -= nbytes
    if self.nbytes < 0:
      raise ValueError("its arrays are many times larger than the file")


def frozen(array: np.ndarray) -> np.ndarray:
  array.flags.writeable = False
  return array


_MARK = object()
# Opcodes that push their own argument.
_LITERALS = {
  "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
  "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
  "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_KEY_TYPES = (str, int, float, bool, bytes, type(None), Name)


class Machine:
  """Builds one pickle's value."""

  def __init__(
    self,
    budget: Budget,
    storage: Callable[[str, np.dtype, int], Storage] | None,
    parse: Callable[[bytes], Any] | None,
  ):
    """What a pickle may refer to.

    Args:
      budget: what it may spend.
      storage: (key, dtype, count) -> what a persistent id refers to; None where there is none.
      parse: reads the bytes of a file within the pickle; None within such bytes.
    """
    self.budget, self.parse = budget, parse
    self._storage = storage
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}
    self._blank: dict[int, np.ndarray] = {}  # numpy arrays whose state is still to come

  def run(self, file: io.BytesIO) -> Any:
    stack, memo = self._stack, self._memo
    for opcode, arg, _ in _opcodes(file):
      self.budget.count()
      op = opcode.name
      if op in _LITERALS:
        if isinstance(arg, int) and arg.bit_length() > _MAX_BITS:
          raise ValueError(f"an integer of {arg.bit_length()} bits")
        stack.append(arg)
      elif op == "MEMOIZE":
        memo[len(memo)] = self._top()
      elif op in _PUTS:
        memo[arg] = self._top()
      elif op in _GETS:
        if arg not in memo:
          raise ValueError(f"{op} of an entry {arg} that the pickle never stored")
        stack.append(memo[arg])
      elif op in _CONSTANTS:
        stack.append(_CONSTANTS[op])
      elif op in _EMPTY:
        stack.append(_EMPTY[op]())
      elif op in _SHORT_TUPLES:
        stack.append(tuple(self._pop(_SHORT_TUPLES[op])))
      elif op == "MARK":
        stack.append(_MARK)
      elif op == "TUPLE":
        stack.append(tuple(self._pop_mark()))
      elif op == "LIST":
        stack.append(self._pop_mark())
      elif op == "DICT":
        stack.append(_set_items({}, self._pop_mark()))
      elif op == "FROZENSET":
        stack.append(frozenset(map(_key, self._pop_mark())))
      elif op in ("SETITEM", "SETITEMS"):
        items = self._pop(2) if op == "SETITEM" else self._pop_mark()
        _set_items(self._top(dict), items)
      elif op in ("APPEND", "APPENDS"):
        items = self._pop(1) if op == "APPEND" else self._pop_mark()
        self._top(list).extend(items)
      elif op == "ADDITEMS":
        items = [_key(item) for item in self._pop_mark()]
        self._top(set).update(items)
      elif op in ("GLOBAL", "STACK_GLOBAL"):
        stack.append(_name(self._pop(2) if op == "STACK_GLOBAL" else arg.split(" ", 1)))
      elif op in ("REDUCE", "NEWOBJ"):
        stack.append(self._call(*self._pop(2)))
      elif op == "BUILD":
        (state,) = self._pop(1)
        self._build(self._top(), state)
      elif op == "BINPERSID":
        stack.append(self._persistent(*self._pop(1)))
      elif op == "POP":
        stack.pop()
      elif op == "POP_MARK":
        self._pop_mark()
      elif op == "DUP":
        stack.append(self._top())
      elif op == "STOP":
        (value,) = self._pop(1)
        return value
      elif op not in ("PROTO", "FRAME"):
        raise ValueError(f"opcode {op} has no place in such a file")
    raise ValueError("a pickle that does not stop")

  def _top(self, kind: type | None = None) -> Any:
    if not self._stack or self._stack[-1] is _MARK:
      raise ValueError("a pickle that takes more from its stack than it put there")
    if kind is not None and type(self._stack[-1]) is not kind:
      raise ValueError(f"items for {kind_of(self._stack[-1])}: expected a {kind.__name__}")
    return self._stack[-1]

  def _pop(self, count: int) -> list[Any]:
    items = self._stack[-count:]
    if len(items) < count or any(item is _MARK for item in items):
      raise ValueError("a pickle that takes more from its stack than it put there")
    del self._stack[-count:]
    return items

  def _pop_mark(self) -> list[Any]:
    items = []
    while self._stack:
      item = self._stack.pop()
      if item is _MARK:
        return items[::-1]
      items.append(item)
    raise ValueError("a pickle that takes more from its stack than it put there")

  def _call(self, target, args) -> Any:
    if not isinstance(target, Name) or not isinstance(args, tuple):
      raise ValueError(f"a call of {kind_of(target)} with {kind_of(args)}")
    if target.name not in _FUNCTIONS:
      if not target.name.startswith(_RECORD_PREFIXES):
        raise ValueError(f"{target.name} cannot be called here")
      return Record(target.name, args)
    function, least, most = _FUNCTIONS[target.name]
    if not least <= len(args) <= most:
      raise ValueError(f"{target.name} with {len(args)} arguments: expected {least} to {most}")
    return function(self, *args)

  def _build(self, target, state):
    if isinstance(target, Record):
      target.state = state
    elif isinstance(target, np.ndarray):
      if self._blank.pop(id(target), None) is None:
        raise ValueError("an array whose state is set twice")
      _set_array(self, target, state)
    elif not isinstance(target, dict):  # a state dict's own attributes are its versions
      raise ValueError(f"state for {kind_of(target)}")

  def _persistent(self, pid) -> Any:
    if self._storage is None:
      raise ValueError("a reference to a storage that the file does not hold")
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
      raise ValueError(f"a persistent id {kind_of(pid)}: expected a storage")
    _, kind, key, _, count = pid[:5]
    if not isinstance(kind, Name) or kind.name not in _STORAGE_NAMES:
      raise ValueError(f"a storage of type {kind_of(kind)}")
    if not isinstance(key, str):
      raise ValueError(f"a storage with a key of type {type(key).__name__}")
    storage = self._storage(key, jnp.dtype(_STORAGE_NAMES[kind.name]), _size(count, "elements of a storage"))
    if len(pid) == 5 or pid[5] is None:
      return storage
    if not isinstance(pid[5], tuple) or len(pid[5]) != 3:
      raise ValueError(f"a storage's view: {kind_of(pid[5])}")
    offset, count = _size(pid[5][1], "a view's offset"), _size(pid[5][2], "a view's size")
    if offset + count > storage.count:
      raise ValueError(f"a view of elements {offset} to {offset + count} of a storage of {storage.count}")
    array = None if storage.array is None else storage.array[offset : offset + count]
    return Storage(storage.dtype, count, array)


def _opcodes(file: io.BytesIO):
  """(opcode, argument, position) of one pickle; the file is left after its end."""
  try:
    yield from pickletools.genops(file)
  except ValueError as error:
    raise ValueError(f"damaged pickle: {str(error)[:200]}") from None


def _name(parts) -> Name:
  if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
    raise ValueError("a name that is no text")
  name = ".".join(parts)
  known = name in _FUNCTIONS or name in _STORAGE_NAMES or name in _DTYPE_NAMES or name == "numpy.ndarray"
  if not known and not name.startswith(_RECORD_PREFIXES):
    raise ValueError(f"refers to {name[:120]}, which is not among the names that a file of tensors needs")
  return Name(name)


def _key(key) -> Any:
  """Checks a dict's key or a set's member: only what hashes at once and without collisions by design."""
  if type(key) not in _KEY_TYPES or (isinstance(key, int) and key.bit_length() > 60):
    raise ValueError(f"a key of type {type(key).__name__}")
  return key


def _set_items(target: dict, items: list[Any]) -> dict:
  if len(items) % 2:
    raise ValueError("a dict with a key that has no value")
  for key, value in zip(items[::2], items[1::2]):
    target[_key(key)] = value
  return target


def _size(value, what: str) -> int:
  if type(value) is not int or not 0 <= value < 1 << 48:
    shown = value if isinstance(value, int) else kind_of(value)
    raise ValueError(f"{what}: {shown}")
  return value


def _sizes(values, what: str) -> tuple[int, ...]:
  if not isinstance(values, tuple | list) or len(values) > _MAX_DIMS:
    raise ValueError(f"{what}: {kind_of(values)}, expected at most {_MAX_DIMS} numbers")
  return tuple(_size(value, what) for value in values)


# What the names of _FUNCTIONS do. Each takes the machine and the file's arguments, none of which can be trusted.


def _dict(machine, items=()):
  machine.budget.count(len(items) if isinstance(items, dict | list | tuple) else 1)
  if isinstance(items, dict):
    return dict(items)
  pairs = items if isinstance(items, list | tuple) else [None]
  if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
    raise ValueError(f"a dict of {kind_of(items)}")
  return _set_items({}, [part for pair in pairs for part in pair])


def _set(machine, items=()):
  if not isinstance(items, list | tuple):
    raise ValueError(f"a set of {kind_of(items)}")
  machine.budget.count(len(items))
  return {_key(item) for item in items}


def _encode(machine, text, encoding="latin1"):
  if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
    raise ValueError(f"bytes of {kind_of(text)}")
  machine.budget.spend(len(text))
  return text.encode("latin1")


def _persistent_object(machine, meta):
  """An object that NVIDIA's pickles carry with its source text, which stays text."""
  del machine
  if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
    raise ValueError("torch_utils.persistence: expected an object with its class_name and state")
  return Record(meta["class_name"], state=meta.get("state"))


def _load_from_bytes(machine, data):
  if machine.parse is None:
    raise ValueError("torch.storage._load_from_bytes within itself")
  if not isinstance(data, bytes):
    raise ValueError(f"torch.storage._load_from_bytes of {kind_of(data)}")
  machine.budget.count(20)
  machine.budget.spend(len(data))
  value = machine.parse(data)
  if not isinstance(value, Storage):
    raise ValueError(f"torch.storage._load_from_bytes gives {kind_of(value)}: expected a storage")
  return value


def _tensor(machine, storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
  del requires_grad, hooks, metadata
  if not isinstance(storage, Storage):
    raise ValueError(f"a tensor in {kind_of(storage)}: expected a storage")
  offset, shape, strides = _size(offset, "a tensor's offset"), _sizes(shape, "a shape"), _sizes(strides, "strides")
  if len(shape) != len(strides):
    raise ValueError(f"a tensor of shape {list(shape)} with strides {list(strides)}")
  count = math.prod(shape)
  if count and offset + sum((n - 1) * stride for n, stride in zip(shape, strides)) >= storage.count:
    raise ValueError(
      f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} lies outside its storage of "
      f"{storage.count} elements"
    )
  if storage.array is None or not count:
    return frozen(np.zeros(shape if not count else 0, storage.dtype))
  machine.budget.spend(count * storage.dtype.itemsize)
  itemsize = storage.dtype.itemsize
  strides = [stride * itemsize if n > 1 else itemsize for n, stride in zip(shape, strides)]
  array = np.lib.stride_tricks.as_strided(storage.array[offset:], shape, strides, writeable=False)
  return frozen(array.view(np.uint8) != 0) if array.dtype == bool else array


def _tensor_v3(machine, storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
  """A tensor of a dtype without a storage type of its own: its storage is bytes."""
  if not isinstance(storage, Storage) or not isinstance(dtype, Name) or dtype.name not in _DTYPE_NAMES:
    raise ValueError(f"a tensor of dtype {kind_of(dtype)} in {kind_of(storage)}")
  dtype = jnp.dtype(_DTYPE_NAMES[dtype.name])
  if storage.dtype != dtype:
    nbytes = storage.count * storage.dtype.itemsize
    if nbytes % dtype.itemsize:
      raise ValueError(f"a storage of {nbytes} bytes for elements of {dtype}")
    count = nbytes // dtype.itemsize
    storage = Storage(dtype, count, None if storage.array is None else storage.array.view(dtype))
  return _tensor(machine, storage, offset, shape, strides)


def _parameter(machine, data, requires_grad=True, hooks=None, state=None):
  del machine, requires_grad, hooks, state
  if not isinstance(data, np.ndarray):
    raise ValueError(f"a parameter of {kind_of(data)}: expected a tensor")
  return data


def _torch_size(machine, values=()):
  del machine
  return _sizes(values, "torch.Size")


def _device(machine, kind, index=None):
  del machine
  return Record("torch.device", (kind, index))


def _numpy_dtype(machine, code, align=False, copy=True):
  del machine, align, copy
  if not isinstance(code, str) or code.lstrip("<|=") not in _NUMPY_CODES:
    raise ValueError(f"a numpy dtype {code[:20] if isinstance(code, str) else kind_of(code)!r}")
  return Record("numpy.dtype", (code.lstrip("<|="),))


def _dtype_of(record) -> np.dtype:
  """The dtype of a record made by _numpy_dtype; its state holds the byte order."""
  if not isinstance(record, Record) or record.name != "numpy.dtype" or len(record.args) != 1:
    raise ValueError(f"a numpy array of {kind_of(record)}: expected a dtype")
  order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "="
  if order not in ("<", ">", "|", "="):
    raise ValueError("a numpy dtype of unknown byte order")
  return np.dtype(record.args[0]).newbyteorder(order)


def _numpy_values(machine, data, dtype, shape, fortran) -> np.ndarray:
  dtype, shape = _dtype_of(dtype), _sizes(shape, "a numpy array's shape")
  if isinstance(data, str):  # Python 2's bytes
    data = _encode(machine, data)
  if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * dtype.itemsize:
    length = len(data) if isinstance(data, bytes | bytearray) else kind_of(data)
    raise ValueError(f"a numpy array of shape {list(shape)} and type {dtype} with bytes: {length}")
  machine.budget.spend(len(data))
  return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran is True else "C")


def _numpy_scalar(machine, dtype, data):
  return _numpy_values(machine, data, dtype, (), False)[()]


def _numpy_array(machine, kind, shape, code):
  del shape, code
  if not isinstance(kind, Name) or kind.name != "numpy.ndarray":
    raise ValueError(f"a numpy array of class {kind_of(kind)}")
  array = np.zeros(0, np.uint8)
  machine._blank[id(array)] = array
  return array


def _set_array(machine, array, state):
  """Fills an array in place, since others may already refer to it."""
  if not isinstance(state, tuple) or len(state) not in (4, 5):
    raise ValueError(f"a numpy array's state: {kind_of(state)}")
  shape, dtype, fortran, data = state[-4:]
  values = _numpy_values(machine, data, dtype, shape, fortran)
  array.__setstate__((1, values.shape, values.dtype, fortran is True, values.tobytes(order="A")))


def _numpy_frombuffer(machine, data, dtype, shape, order):
  return _numpy_values(machine, data, dtype, shape, order == "F")


# Name -> (what it does, fewest arguments, most).
_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
  "collections.OrderedDict": (_dict, 0, 1),
  "dnnlib.util.EasyDict": (_dict, 0, 1),
  "builtins.set": (_set, 0, 1),
  "__builtin__.set": (_set, 0, 1),
  "__builtin__.bytes": (lambda machine: b"", 0, 0),  # protocol 2's b""
  "_codecs.encode": (_encode, 2, 2),
  "torch_utils.persistence._reconstruct_persistent_obj": (_persistent_object, 1, 1),
  "torch.storage._load_from_bytes": (_load_from_bytes, 1, 1),
  "torch._utils._rebuild_tensor": (_tensor, 4, 4),
  "torch._utils._rebuild_tensor_v2": (_tensor, 6, 7),
  "torch._utils._rebuild_tensor_v3": (_tensor_v3, 7, 8),
  "torch._utils._rebuild_parameter": (_parameter, 3, 3),
  "torch._utils._rebuild_parameter_with_state": (_parameter, 4, 4),
  "torch.Size": (_torch_size, 0, 1),
  "torch.device": (_device, 1, 2),
  "numpy.dtype": (_numpy_dtype, 1, 3),
  **{
    f"numpy.{core}.{name}": entry
    for core in ("core", "_core")
    for name, entry in {
      "multiarray._reconstruct": (_numpy_array, 3, 3),
      "multiarray.scalar": (_numpy_scalar, 2, 2),
      "numeric._frombuffer": (_numpy_frombuffer, 4, 4),
    }.items()
  },
}
