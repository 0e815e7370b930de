"""Writes PyTorch's file formats by hand: pickles by opcode, and the plain, legacy and zip containers around them."""

import io
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
  "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "float32": "FloatStorage", "float64": "DoubleStorage",
  "int64": "LongStorage", "int32": "IntStorage", "uint8": "ByteStorage", "bool": "BoolStorage",
  "complex64": "ComplexFloatStorage",
}  # fmt: skip


class Global(NamedTuple):
  module: str
  name: str


class Call(NamedTuple):
  function: Global
  args: tuple


class Built(NamedTuple):
  target: Any
  state: Any


class Persistent(NamedTuple):
  pid: tuple


def opcodes(value) -> bytes:
  """The opcodes that push a value, protocols 2 to 4."""
  match value:
    case Global(module, name):
      return f"c{module}\n{name}\n".encode()
    case Call(function, args):
      return opcodes(function) + opcodes(tuple(args)) + b"R"
    case Built(target, state):
      return opcodes(target) + opcodes(state) + b"b"
    case Persistent(pid):
      return opcodes(tuple(pid)) + b"Q"
    case None:
      return b"N"
    case bool():
      return b"\x88" if value else b"\x89"
    case int() if -(2**31) <= value < 2**31:
      return b"J" + struct.pack("<i", value)
    case int():
      data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
      return b"\x8a" + bytes([len(data)]) + data
    case float():
      return b"G" + struct.pack(">d", value)
    case str():
      return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    case bytes():
      return b"B" + struct.pack("<I", len(value)) + value
    case list():
      return b"](" + b"".join(map(opcodes, value)) + b"e"
    case tuple():
      return b"(" + b"".join(map(opcodes, value)) + b"t"
    case dict():
      return b"}(" + b"".join(opcodes(part) for item in value.items() for part in item) + b"u"
  raise TypeError(type(value))


def pickled(value, protocol=2) -> bytes:
  return b"\x80" + bytes([protocol]) + opcodes(value) + b"."


def storage(key: str, array: np.ndarray) -> Persistent:
  return Persistent(("storage", Global("torch", STORAGES[array.dtype.name]), key, "cpu", array.size))


def legacy_storage(key: str, array: np.ndarray) -> Persistent:
  return Persistent((*storage(key, array).pid, None))


def tensor(storage, shape, strides=None, offset=0) -> Call:
  if strides is None:
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
  hooks = Call(Global("collections", "OrderedDict"), ())
  return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, tuple(shape), strides, False, hooks))


def embedded(array: np.ndarray, make=None) -> Call:
  """A storage as it lies in a plain pickle."""
  data = (make or legacy_file)(legacy_storage("7", array) if make is None else storage("7", array), {"7": array})
  return Call(Global("torch.storage", "_load_from_bytes"), (data,))


def legacy_file(value, storages: dict[str, np.ndarray], system=None) -> bytes:
  system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}} if system is None else system
  head = b"".join(map(pickled, (MAGIC, PROTOCOL, system, value, list(storages))))
  return head + b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())


def zip_file(value, storages: dict[str, np.ndarray], root="archive", compression=zipfile.ZIP_STORED) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", compression) as archive:
    archive.writestr(f"{root}/data.pkl", pickled(value))
    archive.writestr(f"{root}/byteorder", "little")
    for key, array in storages.items():
      archive.writestr(f"{root}/data/{key}", array.tobytes())
    archive.writestr(f"{root}/version", "3\n")
  return file.getvalue()


def module(tensors=None, modules=None, class_name="Linear", **state) -> Call:
  """An object as NVIDIA's persistence pickles it, with its source text (which would leave a file if it were run)."""
  parameter = Global("torch._utils", "_rebuild_parameter")
  parameters = {name: Call(parameter, (tensor, False, {})) for name, tensor in (tensors or {}).items()}
  state = {"_parameters": parameters, "_buffers": {}, "_modules": modules or {}, **state}
  source = "open('canary', 'w').close()"
  meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
  return Call(Global("torch_utils.persistence", "_reconstruct_persistent_obj"), (meta,))


def state_dict_file(tensors: dict[str, np.ndarray]) -> bytes:
  """A state dict as torch.save writes it today."""
  storages = {str(i): np.ascontiguousarray(array) for i, array in enumerate(tensors.values())}
  value = {name: tensor(storage(key, array), array.shape) for name, (key, array) in zip(tensors, storages.items())}
  return zip_file(value, storages)
