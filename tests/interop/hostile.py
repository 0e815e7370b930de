"""Reads hostile files one after another and prints a report; tests/interop/test_tensor_reader.py runs it."""

import json
import os
import pathlib
import random
import resource
import struct
import sys
import time
import zipfile

import numpy as np
import torch_files as tf

from diffusion_jax.interop import tensor_reader

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "edm_tiny.pkl"
COMMAND = "touch canary"
ARRAY = np.arange(24, dtype=np.float32)
weights = lambda storage: {"weight": tf.tensor(storage, (4, 6)), "bias": tf.tensor(storage, (6,), (2,), 3)}


def seeds():
  """Small files in order, one of a kind."""
  yield tf.zip_file(weights(tf.storage("0", ARRAY)), {"0": ARRAY})
  yield tf.legacy_file(weights(tf.legacy_storage("0", ARRAY)), {"0": ARRAY})
  inner = tf.module(weights(tf.embedded(ARRAY)))
  yield tf.pickled({"ema": tf.module({}, {"model": inner}, "EDMPrecond", _init_kwargs={}), "dataset_kwargs": {}}, 4)
  yield tf.pickled(tf.module(weights(tf.embedded(ARRAY, tf.zip_file))))
  dtype = tf.Built(tf.Call(tf.Global("numpy", "dtype"), ("f8", False, True)), (3, "<", None, None, None, -1, -1, 0))
  blank = tf.Call(tf.Global("numpy.core.multiarray", "_reconstruct"), (tf.Global("numpy", "ndarray"), (0,), b"b"))
  yield tf.pickled(
    [
      tf.Built(blank, (1, (2,), dtype, False, bytes(16))),
      tf.Call(tf.Global("numpy.core.multiarray", "scalar"), (dtype, b"8" * 8)),
    ]
  )


def mutated(rng, data):
  """Flips, cuts, repeats and foreign opcodes."""
  data = bytearray(data)
  for _ in range(rng.choice([1, 1, 2, 8])):
    at = rng.randrange(len(data))
    match rng.randrange(6):
      case 0:
        data[at] ^= 1 << rng.randrange(8)
      case 1:
        data[at] = rng.randrange(256)
      case 2:
        del data[at:]
      case 3:
        del data[at : at + rng.randrange(1, 9)]
      case 4:
        data[at:at] = data[at : at + rng.randrange(1, 64)]
      case 5:
        data[at:at] = rng.choice([b"2", b"0", b"(", b"R", b"\x81", b"b", b"]", b"a", b"s", b"Q", b"\xff\xff\xff\x7f"])
    if not data:
      break
  return bytes(data)


def executions():
  """Every way a pickle may ask for a call, of every function one would ask for."""
  targets = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "call"), ("builtins", "eval"),
    ("builtins", "exec"), ("builtins", "getattr"), ("builtins", "__import__"), ("builtins", "open"),
    ("__builtin__", "eval"), ("runpy", "run_path"), ("shutil", "rmtree"), ("pickle", "loads"), ("torch", "load"),
    ("torch.hub", "load"), ("numpy", "load"), ("numpy.testing._private.utils", "runstring"), ("sys", "exit"),
    ("collections", "OrderedDict.__init__"), ("collections", "abc.sys.exit"), ("io", "open"),
    ("copyreg", "_reconstructor"),
    ("torch_utils.persistence", "_src_to_module"), ("training.x", "os.system"), ("torch.nn.modules.x", "__import__"),
    ("functools", "partial"), ("operator", "attrgetter"), ("types", "CodeType"), ("ctypes", "CDLL"),
  ]  # fmt: skip
  for module, name in targets:
    get, text = f"c{module}\n{name}\n".encode(), tf.opcodes(COMMAND)
    stack_global = tf.opcodes(module) + tf.opcodes(name) + b"\x93"
    yield b"\x80\x02" + get + b"(" + text + b"tR."
    yield b"\x80\x04" + stack_global + text + b"\x85R."
    yield b"\x80\x04" + stack_global + text + b"\x85\x81."
    yield b"\x80\x04" + stack_global + text + b"\x85}\x92."
    yield f"(S'{COMMAND}'\ni{module}\n{name}\n.".encode()
    yield b"(" + get + text + b"o."
    yield b"\x80\x02" + tf.opcodes(tf.Call(tf.Global("collections", "OrderedDict"), ())) + get + b"}" + text + b"sb."
    yield b"\x80\x02}X\x0c\x00\x00\x00__setstate__" + get + b"s}b."
    yield tf.pickled(tf.Call(tf.Global("torch.storage", "_load_from_bytes"), (b"\x80\x02" + get + text + b"\x85R.",)))
    yield tf.zip_file(tf.Call(tf.Global(module, name), (COMMAND,)), {})
    yield tf.legacy_file(tf.Call(tf.Global(module, name), (COMMAND,)), {})
    yield tf.pickled(tf.Persistent(("storage", tf.Global(module, name), "0", "cpu", 1)))


def sizes():
  """Arguments that claim more than there is."""
  for size in (100, 2**20, 2**31 - 1, 2**32 - 1):
    for opcode in (b"B", b"X", b"T", b"\x8b", b"j", b"r"):
      yield b"\x80\x04N" + opcode + struct.pack("<I", size) + b"abc."
  for size in (2**20, 2**40, 2**63 - 1, 2**64 - 1):
    for opcode in (b"\x8e", b"\x8d", b"\x96", b"\x95"):
      yield b"\x80\x05N" + opcode + struct.pack("<Q", size) + b"abc."
  yield b"\x80\x02\x8b" + struct.pack("<I", 2**20) + b"\x7f" * 2**20 + b"."
  yield b"L" + b"9" * 2**20 + b"L\n."
  yield b"I" + b"9" * 4000 + b"\n."
  for count in (2**31, 2**47, 2**62, 10**30, -1):
    pid = ("storage", tf.Global("torch", "FloatStorage"), "0", "cpu", count)
    make = lambda pid: tf.tensor(tf.Persistent(pid), (2**20, 2**20), (0, 0))
    yield tf.zip_file(make(pid), {"0": ARRAY})
    yield tf.legacy_file(make((*pid, None)), {"0": ARRAY})
    yield tf.legacy_file(tf.tensor(tf.legacy_storage("0", ARRAY), (count,)), {"0": ARRAY})


def bombs():
  """Small files that would take long or grow large."""
  yield b"\x80\x02)" + b"\x85" * 400_000 + b"."
  yield b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
  yield b"\x80\x02" + b"(" * 400_000 + b"t" * 400_000 + b"."
  yield b"\x80\x02" + b"(" * 200_000 + b"d" * 200_000 + b"."
  yield b"\x80\x02}" + b"()" + b"\x85" * 200_000 + b"Nu."
  doubled = (b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(90))
  doubling = b"\x80\x02)q\x00" + b"".join(doubled)
  yield doubling + b"."
  yield doubling + b"}h\x5aNs."  # its hash would take 2^90 steps
  yield doubling + b"\x8f(h\x5a\x90."
  yield doubling + b"ccollections\nOrderedDict\nh\x5ah\x5a\x86\x85\x85R."
  yield b"\x80\x02X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x00" + b"h\x00h\x00\x86" * 150_000 + b"."
  yield b"\x80\x04" + b"\x8f" * 600_000 + b"."
  yield b"\x80\x04(" + b"\x8f" * 450_000 + b"l."
  yield b"\x80\x02(" + b"N2" * 2**20 + b"l."
  collide = b"".join(tf.opcodes((2**61 - 1) * i) + b"N" for i in range(1, 100_000))
  yield b"\x80\x02}(" + collide + b"u."
  yield b"\x80\x02}(" + b"".join(tf.opcodes(float(2.0 ** (i % 1000))) + b"N" for i in range(100_000)) + b"u."
  call = b"ccollections\nOrderedDict\nq\x01"
  table = tf.opcodes({f"{i}": None for i in range(50_000)})
  yield b"\x80\x02" + call + table + b"\x85q\x02" + b"h\x01h\x02R0" * 100_000 + b"N."
  load = b"ctorch.storage\n_load_from_bytes\nq\x01"
  legacy = tf.legacy_file(tf.legacy_storage("0", ARRAY), {"0": ARRAY})
  zipped = tf.zip_file(tf.storage("0", ARRAY), {"0": ARRAY})
  for data in (legacy, zipped, tf.zip_file({}, {str(i): ARRAY[:0] for i in range(3000)})):
    yield b"\x80\x02" + load + tf.opcodes(data) + b"\x85q\x02" + b"h\x01h\x02R0" * 100_000 + b"N."
  large = np.zeros(2**20, np.float32)
  once = tf.opcodes(tf.tensor(tf.embedded(large), (2**20,)))
  yield b"\x80\x02(" + b"".join(once for _ in range(3)) + b"l."
  encode = b"c_codecs\nencode\nq\x01" + tf.opcodes("a" * 2**20) + tf.opcodes("latin1") + b"\x86q\x02"
  yield b"\x80\x02(" + encode + b"h\x01h\x02R" * 10_000 + b"l."
  linked = tf.opcodes(tf.module({}, {}))
  pair = lambda i: tf.opcodes(tf.module({}, {"a": 0, "b": 0})).replace(tf.opcodes(0), b"h" + bytes([i]))
  linked += b"q\x000" + b"".join(pair(i) + b"q" + bytes([i + 1]) + b"0" for i in range(30))
  yield b"\x80\x02" + linked + b"}" + tf.opcodes("ema") + b"h\x1es."  # modules within modules, by 2^30 ways
  views = {str(i): tf.tensor(tf.storage("0", ARRAY), (2**19, 24), (0, 1)) for i in range(60)}
  yield tf.zip_file(views, {"0": ARRAY})  # each legal, together 3 GB
  yield tf.zip_file(tf.storage("0", ARRAY), {"0": large}, compression=zipfile.ZIP_DEFLATED)
  yield tf.zip_file({}, {str(i): ARRAY[:0] for i in range(20_000)})
  for size in (2**20, 2**31, 2**32 - 1):  # sizes in the zip's directory, all entries
    data = bytearray(tf.zip_file(tf.storage("0", ARRAY), {"0": ARRAY}))
    at = data.find(b"PK\1\2")
    while at >= 0:
      data[at + 20 : at + 28] = struct.pack("<II", size, size)
      at = data.find(b"PK\1\2", at + 1)
    yield bytes(data)
  data = bytearray(tf.zip_file(tf.storage("0", ARRAY), {"0": ARRAY}))
  data[data.rfind(b"PK\5\6") + 12 :][:8] = b"\xff" * 8
  yield bytes(data)
  yield b"PK\x03\x04" + b"PK\1\2" * 200_000


def files(rng):
  ordered = list(seeds())
  yield from ordered
  yield from executions()
  yield from sizes()
  yield from bombs()
  golden = GOLDEN.read_bytes()
  for _ in range(15):
    yield mutated(rng, golden)
  for at in range(0, len(golden), len(golden) // 10):
    yield golden[:at]
  for _ in range(1700):
    yield mutated(rng, rng.choice(ordered))


def virtual_bytes():
  return int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main():
  rng = random.Random(0)
  if sys.platform == "linux":
    resource.setrlimit(resource.RLIMIT_AS, (virtual_bytes() + (1 << 30),) * 2)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  report = dict(files=0, loaded=0, refused=0, wrong=[], slowest=0.0, which=0)
  for index, data in enumerate(files(rng)):
    report["files"] += 1
    start = time.process_time()
    try:
      value = tensor_reader.parse(data)
      if isinstance(value, dict) and isinstance(value.get("ema"), tensor_reader.Record):
        tensor_reader.module_tensors(value["ema"])
      report["loaded"] += 1
    except ValueError as error:
      report["refused"] += 1
      if "MemoryError" in str(error) or "RecursionError" in str(error) or len(str(error)) > 1000:
        report["wrong"].append(f"file {index}: {str(error)[:300]}")
    except BaseException as error:
      report["wrong"].append(f"file {index}: {type(error).__name__}: {str(error)[:300]}")
    value = None
    taken = time.process_time() - start
    if taken > report["slowest"]:
      report.update(slowest=taken, which=index)
    if "-v" in sys.argv:
      print(index, round(taken, 3), file=sys.stderr)
  report["grown_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
  assert "torch" not in sys.modules
  print(json.dumps(report))


if __name__ == "__main__":
  main()
