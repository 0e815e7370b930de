"""Files written opcode by opcode are read as PyTorch would read them; hostile ones are refused and never run."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import torch_files as tf

from diffusion_jax.interop import tensor_reader

ARRAY = np.arange(24, dtype=np.float32)
CONTAINERS = {
  "zip": lambda array, make: tf.zip_file(make(tf.storage("0", array)), {"0": array}),
  "legacy": lambda array, make: tf.legacy_file(make(tf.legacy_storage("0", array)), {"0": array}),
  "plain, legacy within": lambda array, make: tf.pickled(make(tf.embedded(array))),
  "plain, zip within": lambda array, make: tf.pickled(make(tf.embedded(array, tf.zip_file))),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", tf.STORAGES)
def test_dtypes(container, dtype):
  array = (np.arange(-6, 6) / 4).astype(jnp.dtype(dtype))
  make = lambda storage: {"weight": tf.tensor(storage, (3, 4)), "bias": tf.tensor(storage, (4,), offset=8)}
  value = tensor_reader.parse(CONTAINERS[container](array, make))
  assert value["weight"].dtype == array.dtype
  np.testing.assert_array_equal(value["weight"], array.reshape(3, 4))
  np.testing.assert_array_equal(value["bias"], array[8:])


@pytest.mark.parametrize("container", CONTAINERS)
def test_strides(container):
  views = {
    "transposed": ((4, 6), (1, 4), 0),
    "channels last": ((1, 2, 3, 4), (24, 1, 8, 2), 0),
    "every other": ((5,), (2,), 3),
    "expanded": ((3, 4), (0, 1), 20),
    "scalar": ((), (), 23),
    "empty": ((0, 5), (5, 1), 0),
    "one row, odd stride": ((1, 4), (1000, 1), 20),
  }
  make = lambda storage: {name: tf.tensor(storage, *view) for name, view in views.items()}
  value = tensor_reader.parse(CONTAINERS[container](ARRAY, make))
  for name, (shape, strides, offset) in views.items():
    expected = np.array([ARRAY[offset + np.dot(index, strides).astype(int)] for index in np.ndindex(shape)])
    np.testing.assert_array_equal(value[name], expected.reshape(shape), name)
    with pytest.raises(ValueError):
      value[name][...] = 0


@pytest.mark.parametrize("shape, strides, offset", [
  ((25,), (1,), 0), ((24,), (1,), 1), ((4, 6), (7, 1), 0), ((2,), (-1,), 1), ((2,), (1,), -1), ((2**40,), (1,), 0),
  ((2**47, 2**47), (0, 0), 0), ((2**30, 2), (0, 1), 0), ((4, 6), (6,), 0), ((2.0,), (1,), 0), ((True,), (1,), 0),
  ((1,) * 40, (1,) * 40, 0), ((1,), (1,), 2**63), (None, (1,), 0),
])  # fmt: skip
@pytest.mark.parametrize("container", CONTAINERS)
def test_tensor_outside_its_storage(container, shape, strides, offset):
  name, args = tf.tensor(None, (1,))
  make = lambda storage: tf.Call(name, (storage, offset, shape, strides, *args[4:]))
  with pytest.raises(ValueError, match="tensor|shape|strides|larger"):
    tensor_reader.parse(CONTAINERS[container](ARRAY, make))


def test_state_dict_with_its_versions(tmp_path):
  ordered = tf.Call(tf.Global("collections", "OrderedDict"), ([["a", tf.tensor(tf.storage("0", ARRAY), (24,))]],))
  path = tmp_path / "model.pt"
  path.write_bytes(tf.zip_file(tf.Built(ordered, {"_metadata": {}}), {"0": ARRAY}))
  state_dict = tensor_reader.read_state_dict(path)
  assert list(state_dict) == ["a"]
  np.testing.assert_array_equal(state_dict["a"], ARRAY)
  path.write_bytes(tf.zip_file({"state_dict": ordered, "epoch": 3}, {"0": ARRAY}))
  np.testing.assert_array_equal(tensor_reader.read_state_dict(path, "state_dict")["a"], ARRAY)
  with pytest.raises(ValueError, match="model.pt: expected names and tensors, got the entry 'state_dict': a dict"):
    tensor_reader.read_state_dict(path)
  with pytest.raises(ValueError, match="no entry 'ema'"):
    tensor_reader.read_state_dict(path, "ema")


def test_numpy_values():
  numpy = lambda module, name: tf.Global(f"numpy.core.{module}", name)
  dtype = lambda code, order="<": tf.Built(
    tf.Call(tf.Global("numpy", "dtype"), (code, False, True)), (3, order, None, None, None, -1, -1, 0)
  )
  blank = tf.Call(numpy("multiarray", "_reconstruct"), (tf.Global("numpy", "ndarray"), (0,), b"b"))
  table = np.arange(6, dtype=np.int16).reshape(2, 3)
  value = tensor_reader.parse(
    tf.pickled(
      {
        "scalar": tf.Call(numpy("multiarray", "scalar"), (dtype("f8"), np.float64(0.25).tobytes())),
        "C": tf.Built(blank, (1, (2, 3), dtype("i2"), False, table.tobytes())),
        "F": tf.Built(blank, (1, (2, 3), dtype("i2", ">"), True, table.T.astype(">i2").tobytes())),
      }
    )
  )
  assert value["scalar"] == 0.25
  np.testing.assert_array_equal(value["C"], table)
  np.testing.assert_array_equal(value["F"], table)
  with pytest.raises(ValueError, match="dtype 'O'"):
    tensor_reader.parse(tf.pickled(dtype("O")))
  with pytest.raises(ValueError, match="shape \\[2, 4\\]"):
    tensor_reader.parse(tf.pickled(tf.Built(blank, (1, (2, 4), dtype("i2"), False, table.tobytes()))))


def test_classes_become_records():
  container = tf.Global("torch.nn.modules.container", "ModuleDict")
  value = tensor_reader.parse(tf.pickled([tf.Built(tf.Call(container, ()), {"_modules": {}}), container]))
  assert value[0].name == "torch.nn.modules.container.ModuleDict"
  assert value[0].state == {"_modules": {}}
  assert value[1] == tensor_reader.Name("torch.nn.modules.container.ModuleDict")


def refused(data):
  with pytest.raises(ValueError) as error:
    tensor_reader.parse(data)
  return str(error.value)


def test_errors_name_what_is_wrong(tmp_path):
  assert "refers to os.system" in refused(tf.pickled(tf.Call(tf.Global("os", "system"), ("touch canary",))))
  assert "refers to builtins.eval" in refused(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.")
  assert "damaged pickle" in refused(b"\x80\x04")
  assert "damaged pickle" in refused(b"")
  assert "NEXT_BUFFER" in refused(b"\x80\x05\x97.")
  assert "never stored" in refused(b"\x80\x02h\x05.")
  assert "nested more than" in refused(b"\x80\x02)" + b"\x85" * 200 + b".")
  assert "contains itself" in refused(b"\x80\x02]q\x00h\x00a.")
  assert "a key of type tuple" in refused(tf.pickled({(1,): 2}))
  assert "little-endian" in refused(tf.legacy_file({}, {}, {"little_endian": False}))
  assert "compressed" in refused(tf.zip_file({}, {"0": ARRAY}, compression=zipfile.ZIP_DEFLATED))
  assert "no entry 'archive/data/0'" in refused(tf.zip_file(tf.storage("0", ARRAY), {}))
  assert "expected 24 elements" in refused(tf.zip_file(tf.storage("0", ARRAY), {"0": ARRAY[1:]}))
  assert "has 23 elements: expected 24" in refused(tf.legacy_file(tf.legacy_storage("0", ARRAY), {"0": ARRAY[1:]}))
  assert "storage keys" in refused(tf.legacy_file(tf.legacy_storage("0", ARRAY), {"1": ARRAY}))
  assert "ends early" in refused(tf.legacy_file(tf.legacy_storage("0", ARRAY), {"0": ARRAY})[:-1])
  with pytest.raises(ValueError, match="absent.pt: no such file"):
    tensor_reader.read(tmp_path / "absent.pt")


def test_hostile_files(tmp_path):
  """2,000 mutated and hostile files in a process that may take 1 GiB: loaded or refused, never run."""
  script = pathlib.Path(__file__).with_name("hostile.py")
  env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "JAX_PLATFORMS": "cpu"}
  run = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
  assert run.returncode == 0, run.stderr[-2000:]
  report = json.loads(run.stdout)
  assert report["files"] >= 2000
  assert report["refused"] > 1000 and report["loaded"] > 50
  assert report["wrong"] == []
  assert report["slowest"] < 2.0, report
  assert report["grown_mib"] < 1024, report
  assert os.listdir(tmp_path) == []  # the canary
