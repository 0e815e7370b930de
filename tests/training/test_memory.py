"""What a run remembers of its examples: on eight devices, on one, on the host, resumed, moved to others, bad input."""

import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import tiny
from training.toy_dddm import Toy, config_of

from diffusion_jax import config as config_lib
from diffusion_jax import mesh, methods
from diffusion_jax.config import ConfigError
from diffusion_jax.data import batching, sources
from diffusion_jax.methods import dddm
from diffusion_jax.training import checkpoint, host_memory, loop, memory, parallel, start, update
from diffusion_jax.training.run_config import WorkdirError

STEPS, COUNT = 12, 297  # updates; examples of the split


@pytest.fixture(scope="module", autouse=True)
def toy():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(dddm, "network_from_config", lambda config: Toy())
    yield


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
  """The workdir and the last state of a run on eight devices, nearly three epochs."""
  workdir = tmp_path_factory.mktemp("eight")
  return workdir, loop.train(config_of(), workdir)


def assert_close(state, other, rtol=1e-4, atol=1e-5):
  parts = lambda s: (s.params, s.ema, s.buffer)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), parts(state), parts(other))


def assert_same(state, other):
  jax.tree.map(np.testing.assert_array_equal, state, other)


def test_every_example_has_moved_on_from_its_first_estimate(eight):
  config = memory.resolve(config_of(), sources.load("digits", "test"), parallel.Pmap().mesh)
  first = start.create_state(methods.from_config(config), config).buffer["estimate"]
  last = eight[1].buffer["estimate"]
  assert last.shape == first.shape == (8, 38, 8, 8, 1)
  index = np.arange(8 * 38).reshape(38, 8).T  # example of each place
  moved = (np.asarray(first) != last).all((2, 3, 4))
  np.testing.assert_array_equal(moved, index < COUNT)


@pytest.mark.parametrize("layout", ["jit", "fsdp"])
def test_every_layout_remembers_the_same(eight, tmp_path, layout):
  assert_close(loop.train(config_of(train__parallel=layout), tmp_path), eight[1])


def test_one_device_remembers_the_same(eight):
  """All slices on it, without any layout."""
  source = sources.load("digits", "test")
  config = memory.resolve(config_of(), source, parallel.Pmap().mesh)
  method = methods.from_config(config)
  now, step = start.create_state(method, config), jax.jit(update.windowed(method.update, 1))
  for k in range(STEPS):
    now = step(now, batching.batch(source, config.seed, k, 64, slices=8), start.train_key(config))
  assert_close(now, eight[1])


def test_a_run_goes_on_bit_for_bit(eight, tmp_path):
  loop.train(config_of(train__num_steps=6), tmp_path)
  assert_same(loop.train(config_of(), tmp_path), eight[1])
  assert (tmp_path / "metrics.jsonl").read_bytes() == (eight[0] / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_host_remembers_the_same(eight, tmp_path, dtype):
  """Also when it goes on, and when a run on the devices goes on there: where it lies may change."""
  fields = {"dddm__buffer_dtype": dtype}
  wanted = eight[1] if dtype == "float32" else loop.train(config_of(**fields), tmp_path / "device")
  on_host = config_of(dddm__buffer_memory="host", **fields)
  tolerance = {"float32": 1e-4, "bfloat16": 0.02}[dtype]
  found = loop.train(on_host, tmp_path / "host")
  assert found.buffer["estimate"].dtype == wanted.buffer["estimate"].dtype
  as_float = lambda s: s.replace(buffer={"estimate": np.asarray(s.buffer["estimate"], np.float32)})
  assert_close(as_float(found), as_float(wanted), tolerance, tolerance)
  if dtype == "float32":
    loop.train(config_of(train__num_steps=6), tmp_path / "moved")
    assert_close(loop.train(on_host, tmp_path / "moved"), wanted)
    half = on_host.copy_and_resolve_references()
    half.train.num_steps = 6
    loop.train(half, tmp_path / "again")
    assert_same(loop.train(on_host, tmp_path / "again"), found)


def test_two_devices_go_on_with_what_eight_remember(eight, tmp_path, monkeypatch):
  """Every example's estimate, bit for bit, from the checkpoint; and the run comes to the same."""
  loop.train(config_of(train__num_steps=6), tmp_path)
  monkeypatch.setattr(parallel, "_devices", lambda: np.array(jax.devices()[:2]))
  config = memory.resolve(config_of(train__parallel="jit"), sources.load("digits", "test"), parallel.Jit().mesh)
  layout = parallel.from_config("jit")
  shapes = start.shapes(methods.from_config(config), config)
  checkpoints = checkpoint.Checkpoints(tmp_path, config)
  restored = checkpoints.restore(parallel.template(layout, shapes))
  checkpoints.close()
  shards = {shard.device: shard.data for shard in restored.buffer["estimate"].addressable_shards}
  assert {device: data.shape for device, data in shards.items()} == {d: (4, 38, 8, 8, 1) for d in jax.devices()[:2]}
  monkeypatch.undo()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(dddm, "network_from_config", lambda config: Toy())
    checkpoints = checkpoint.Checkpoints(tmp_path, config)
    whole = checkpoints.restore(parallel.template(parallel.from_config("pmap"), shapes))
    checkpoints.close()
    np.testing.assert_array_equal(restored.buffer["estimate"], whole.buffer["estimate"])
    patch.setattr(parallel, "_devices", lambda: np.array(jax.devices()[:2]))
    assert_close(loop.train(config, tmp_path), eight[1])


def test_nothing_of_it_passes_between_devices():
  """One owner a slice, equal parameters, no collective of more than gradients; in place, without another copy."""
  source = sources.load("digits", "test")
  for name in ("pmap", "jit"):
    layout = parallel.from_config(name)
    config = memory.resolve(config_of(), source, layout.mesh)
    method = methods.from_config(config, layout.axis_name)
    shapes = start.shapes(method, config)
    run = layout.compile(update.windowed(method.update, 1))
    batch = batching.batch(source, 0, 0, 64, slices=8)
    key = start.train_key(config)
    state = layout.lay(start.make_state(method, config, layout.shardings(shapes)))
    program = run.lower(state, layout.split([batch]), key, None).compile()
    moved = re.findall(r"= (.*?) (all-gather|all-to-all|collective-permute|reduce-scatter)\(", program.as_text())
    assert not moved
    sizes = [re.findall(r"\[([\d,]*)\]", shape) for shape in re.findall(r"= (.*?) all-reduce\(", program.as_text())]
    assert sizes and not any("38" in dims.split(",") for group in sizes for dims in group)
    share = 38 * 8 * 8 * 4
    stats = program.memory_analysis()
    assert stats.alias_size_in_bytes >= share  # written where it is read
    state, _ = run(state, layout.split([batch]), key, None)
    shards = state.buffer["estimate"].addressable_shards
    assert len({shard.device for shard in shards}) == 8
    assert sum(shard.data.size for shard in shards) == 8 * 38 * 64
    for leaf in jax.tree.leaves(state.params):
      copies = [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
      assert len(copies) == 8 and len(set(copies)) == 1


def test_memory_on_the_host_waits_for_what_it_reads():
  """Step 2 wants an example of step 0, step 1 none: step 1's batch comes at once, step 2's when step 0 has written."""
  buffer = jax.device_put(np.zeros((2, 3, 1), np.float32), mesh.host_sharding())
  hosts, taken = host_memory.OnHost(buffer, 2, 0), []

  def make():
    for step, index in enumerate(([0, 1], [2, 3], [0, 5])):
      taken.append(hosts.take(step, np.array(index)))

  thread = threading.Thread(target=make)
  thread.start()
  thread.join(0.5)
  assert len(taken) == 2 and thread.is_alive()
  hosts.put(0, np.array([0, 1]), jnp.array([[7.0], [8.0]]))
  thread.join(30)
  assert len(taken) == 3 and taken[2].tolist() == [[7], [0]]
  hosts.put(1, np.array([2, 3]), jnp.array([[1.0], [2.0]]))
  hosts.put(2, np.array([5, 5]), jnp.array([[3.0], [4.0]]))  # of an example twice the last
  assert np.asarray(hosts.whole(2))[..., 0].tolist() == [[7, 1, 0], [8, 2, 4]]
  hosts.close()
  with pytest.raises(RuntimeError, match="ended"):
    hosts.take(3, np.array([0, 1]))


def test_data_that_have_changed_since_the_checkpoint(tmp_path):
  images = np.random.default_rng(0).integers(0, 255, (65, 8, 8, 1), np.uint8)
  path = tmp_path / "images.npz"
  config = config_of(data__name="npz", data__path=str(path), data__split="train", train__num_steps=2)
  np.savez(path, images=images[:64])
  loop.train(config, tmp_path / "run")
  np.savez(path, images=images)
  with pytest.raises(WorkdirError, match="holds estimates of other data.*of 64 examples .*, not 65 examples"):
    loop.train(config, tmp_path / "run")
  np.savez(path, images=images[1:])
  with pytest.raises(WorkdirError, match="holds estimates of other data.*of 64 examples .*, not 64 examples"):
    loop.train(config, tmp_path / "run")
  config.dddm.num_examples = 60
  with pytest.raises(ConfigError, match="config.dddm.num_examples = 60: the data have 64: they have changed"):
    loop.train(config, tmp_path / "other")


def test_a_buffer_larger_than_the_memory(monkeypatch):
  monkeypatch.setattr(memory.cache, "available_memory", lambda: 50_000)
  monkeypatch.setattr(start, "create_state", None)  # nothing is made
  for fields, size in (({}, "7.78e-05"), ({"dddm__buffer_memory": "host"}, "0.000233")):  # itself, and two while saved
    with pytest.raises(ConfigError) as error:
      loop.prepare(config_of(**fields), None)
    text = str(error.value)
    assert text.startswith(f"config.dddm.estimates = 'buffer': the estimates of 297 images take {size} GB on a host")
    assert "which has 5e-05 GB" in text and "float16" in text and "'host'" in text and "in_step" in text


def test_more_slices_than_examples():
  with pytest.raises(ConfigError, match="config.dddm.buffer_slices = 320: must be at most the number of examples, 297"):
    loop.prepare(config_of(dddm__buffer_slices=320, train__batch_size=320), None)


def test_hosts_without_jaxs_cpu_backend(monkeypatch):
  monkeypatch.setattr(mesh, "host_sharding", lambda: None)
  with pytest.raises(ConfigError, match="config.dddm.buffer_memory = 'host': needs JAX's CPU backend"):
    loop.prepare(config_of(dddm__buffer_memory="host"), None)


def test_a_run_starts_from_one_with_the_same_sight_of_its_estimates(eight, tmp_path):
  with pytest.raises(ConfigError, match="config.dddm.positions = False: init_from was trained with True"):
    loop.prepare(config_of(init_from=str(eight[0]), dddm__positions=False), None)


def test_other_methods_have_no_slices():
  assert config_lib.slices(tiny.get_config()) == 1
  assert config_lib.slices(config_of(dddm__estimates="noise", dddm__buffer_refresh=0.0)) == 1
  assert config_lib.slices(config_of()) == 8
