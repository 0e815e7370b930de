"""Exported samplers: the library's images to the bit, in a process without it; what cannot be exported; the program."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import FORKS
from training import test_classifiers, tiny, toy, toy_dddm, toy_task

from diffusion_jax import config as config_lib
from diffusion_jax import export, latent, methods, samplers, sampling
from diffusion_jax.methods import base, dddm
from diffusion_jax.nets import autoencoder
from diffusion_jax.training import checkpoint, start, state

ROOT = Path(__file__).parents[1]
BATCHES = (1, 64)
ONLY = [("heun", 64), ("latents", 1)]  # made for one batch size
KL = autoencoder.Autoencoder(channels=4, channel_mult=(1, 1), num_blocks=1)

# Runs every artifact of a folder at every batch size; argv: folder, {name: inputs} and batch sizes in JSON.
ALONE = """
import json, sys
import jax, numpy as np
from jax import export
folder, inputs, batches = sys.argv[1], *map(json.loads, sys.argv[2:])
for name in inputs:
  sizes = [int(name.split("_only_")[1])] if "_only_" in name else batches
  sampler = jax.jit(export.deserialize(bytearray(open(f"{folder}/{name}.jaxexport", "rb").read())).call)
  given = dict(np.load(f"{folder}/{name.partition('_only_')[0]}_given.npz"))
  for size in sizes:
    arguments = [dict(np.load(f"{folder}/{name}.npz")) if key == "parameters" else given[key][:size]
                 for key in inputs[name]]
    np.save(f"{folder}/{name}_{size}.npy", np.asarray(sampler(*arguments)))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def alone(code, *argv, cwd):
  """Standard output of code run from another folder by a Python that sees neither PYTHONPATH nor that folder."""
  done = subprocess.run([sys.executable, "-I", "-c", code, *argv], cwd=cwd, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout


def on_one_device(tree):
  return jax.device_put(tree, jax.devices()[0])


def model_of(config, **patches):
  """(method, variables) of a config, its parameters larger than fresh ones."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in patches.items():
      patch.setattr({"dddm": dddm}.get(name, base), "network_from_config", value)
    method = methods.from_config(config)
  made = jax.jit(lambda key: method.init(key, start.example_batch(config)))(jax.random.key(0))
  noise = np.random.default_rng(0)
  larger = lambda a: np.float32(a + 0.1 * noise.standard_normal(a.shape))
  return method, jax.tree.map(larger, state.inference_variables(made.ema))


def edm_model(**sampling_fields):
  config = tiny.get_config()
  config.sampling.update(num_steps=4, **sampling_fields)
  return config, *model_of(config, base=lambda config, heads: toy.Toy())


def latent_config(name=""):
  config = toy_task.get_config() if name else tiny.get_config()
  config.method, config.data.num_classes, config.label_dropout = "decoupled", 0, 0.0
  config.data.update(name="latents", path="z", resolution=4, channels=3, flip=False)
  config.task.name = name
  config.latent.update(scale=0.7, autoencoder="ae")
  config.sampling.update(sampler="decoupled", grid="decoupled", num_steps=3)
  return config


def cases():
  """{name: (config, method, variables, decoder, parameters)}."""
  out = {
    "heun": (*edm_model(guidance=1.5, clip=1.5, churn=2.0, grid="vp", process="vp"), None, "inside"),
    "ddpm": (*edm_model(sampler="ddpm", sigma_max=300.0), None, "beside"),
  }
  config = toy_dddm.config_of()
  config.data.name = "npz"  # of the shape alone
  config.data.update(resolution=8, channels=1)
  out["dddm"] = (config, *model_of(config, dddm=lambda config: toy_dddm.Toy()), None, "inside")
  image = jnp.zeros((1, 8, 8, 3))
  decoder = latent.Decoder(KL, jax.jit(KL.init)(jax.random.key(1), image)["params"], 0.7, grey=True)
  config = latent_config("inpaint")
  model = model_of(config, base=toy_task.network_from_config)
  out["latents"] = (config, *model, decoder, "beside")
  return out


def reference(case, given, size):
  """The images of `sampling.sample` on one device, decoded as `latent.Decoder` does."""
  config, method, variables, decoder, _ = case
  shape = (config.data.resolution, config.data.resolution, config.data.channels)
  more = {name: on_one_device(given[name][:size]) for name in ("labels", "condition") if name in given}
  keys = on_one_device(sampling.keys_of(given["seeds"][:size]))
  arguments = sampling.arguments_of(config.sampling, method)
  images = np.asarray(sampling.sample(method, on_one_device(variables), keys, shape, **arguments, **more))
  if decoder is None:
    return images
  images = np.asarray(latent._decode(KL, on_one_device(decoder.params), images / np.float32(decoder.scale)))
  return images.mean(-1, keepdims=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """({name: case}, {name: artifact}, {name: arguments}, folder with the images of each from a process of its own)."""
  folder, made, artifacts, given = tmp_path_factory.mktemp("export"), cases(), {}, {}
  seeds = np.random.default_rng(1).integers(0, 2**32, 64, dtype=np.uint32)
  for name, (config, method, variables, decoder, parameters) in made.items():
    artifacts[name] = export.from_config(config, method, variables, decoder, parameters=parameters)
    export.write(folder / name, artifacts[name])
    given[name] = {"seeds": seeds}
    if config.data.num_classes:
      given[name]["labels"] = (np.arange(64) % 11 - 1).astype(np.int32)
    if config.task.name:
      shape = artifacts[name].about["inputs"][-1]["shape"][1:]
      given[name]["condition"] = np.random.default_rng(2).uniform(-1, 1, (64, *shape)).astype(np.float32)
    np.savez(folder / f"{name}_given.npz", **given[name])
  for name, size in ONLY:
    config, method, variables, decoder, _ = made[name]
    key = f"{name}_only_{size}"
    artifacts[key] = export.from_config(config, method, variables, decoder, ("cpu",), batch_size=size)
    export.write(folder / key, artifacts[key])
  inputs = {name: [each["name"] for each in artifacts[name].about["inputs"]] for name in artifacts}
  (folder / "elsewhere").mkdir()
  modules = alone(ALONE, str(folder), json.dumps(inputs), json.dumps(BATCHES), cwd=folder / "elsewhere")
  assert not {"diffusion_jax", "flax", "ml_collections"} & set(json.loads(modules.splitlines()[-1]))
  return made, artifacts, given, folder


@pytest.mark.parametrize("size", BATCHES)
@pytest.mark.parametrize("name", ["heun", "ddpm", "dddm", "latents"])
def test_an_artifact_gives_the_librarys_images(exported, name, size):
  """To the bit where it is for this batch size; for any, up to rounding where x/√y + z/√y stands somewhere."""
  made, _, given, folder = exported
  wanted, images = reference(made[name], given[name], size), np.load(folder / f"{name}_{size}.npy")
  assert images.dtype == np.float32 and images.std() > 0.01 and np.isfinite(images).all()
  if (name, size) in ONLY:
    np.testing.assert_array_equal(np.load(folder / f"{name}_only_{size}_{size}.npy"), wanted)
  np.testing.assert_allclose(images, wanted, atol=1e-4 if name in dict(ONLY) else 0, rtol=0)


def test_generate_gives_the_same_images(exported):
  """By the config: over the eight devices, a batch each, so that the last bits may differ."""
  made, _, given, folder = exported
  config, method, variables, _, _ = made["heun"]
  images = sampling.generate(config, method, variables, given["heun"]["seeds"], given["heun"]["labels"])
  np.testing.assert_allclose(np.load(folder / "heun_64.npy"), images, atol=1e-4)


def test_one_artifact_is_for_all_platforms(exported):
  """The platforms are recorded, and nothing in it is outside what JAX keeps stable: its random bits on GPUs alone."""
  _, artifacts, _, folder = exported
  loaded = jax.export.deserialize(bytearray((folder / "heun.jaxexport").read_bytes()))
  assert loaded.platforms == ("cpu", "cuda", "tpu") and not loaded.disabled_safety_checks
  for artifact in artifacts.values():
    calls = set(re.findall(r"custom_call @(\w+)", artifact.exported.mlir_module()))
    assert calls <= {"cu_threefry2x32_ffi", "shape_assertion"}, calls


def test_what_an_artifact_says_of_itself(exported):
  _, artifacts, _, folder = exported
  about = json.loads((folder / "heun.json").read_text())
  assert about == json.loads(json.dumps(artifacts["heun"].about))
  assert about["inputs"] == [
    {"name": "seeds", "shape": ["b"], "dtype": "uint32"}, {"name": "labels", "shape": ["b"], "dtype": "int32"}
  ]  # fmt: skip
  assert about["output"]["shape"] == ["b", 8, 8, 1] and about["evaluations"] == 14  # two a step, guided
  assert about["sampling"]["sampler"] == "heun" and about["versions"]["jax"] == jax.__version__
  names = [each["name"] for each in artifacts["latents"].about["inputs"]]
  assert names == ["parameters", "seeds", "condition"]
  with np.load(folder / "latents.npz") as file:
    assert {name.partition("/")[0] for name in file} == {"model", "decoder"}
  assert not (folder / "heun.npz").exists()
  sizes = {name: (folder / f"{name}.jaxexport").stat().st_size for name in ("heun", "ddpm")}
  assert all(size < 200_000 for size in sizes.values()), sizes


@pytest.mark.parametrize("seeds", [np.arange(3), np.zeros(3, np.float32), np.zeros((3, 1), np.uint32)])
def test_arguments_of_another_kind_are_refused(exported, seeds):
  _, artifacts, _, _ = exported
  with pytest.raises(ValueError, match="uint32|[Rr]ank"):
    artifacts["dddm"].exported.call(seeds)
  with pytest.raises(ValueError, match="shape"):
    artifacts["heun_only_64"].exported.call(np.zeros(63, np.uint32), np.zeros(63, np.int32))


# --- what cannot be exported ------------------------------------------------------------------------------------------


def wild(denoise, process, x, grid, keys, trajectory=False):
  """Goes on until all images are small."""
  halve = lambda state: (state[0] + 1, state[1] / 2)
  return jax.lax.while_loop(lambda state: jnp.any(jnp.abs(state[1]) > 1), halve, (0, x))[1]


def counted(denoise, process, x, grid, keys, trajectory=False):
  """Ends by the number of the grid's steps, which the images have no part in."""
  count = jnp.sum(grid > 0)
  return jax.lax.while_loop(lambda state: state[0] < count, lambda state: (state[0] + 1, state[1] / 2), (0, x))[1]


def length(denoise, process, x, grid, keys, trajectory=False):
  """Needs to know the batch."""
  return x * len(x)


def test_a_sampler_whose_steps_the_images_decide_is_refused(monkeypatch):
  config, method, variables = edm_model()
  method = method._replace(samplers=("wild", "counted", "length"))
  call = lambda name, **more: export.sampler(method, variables, (8, 8, 1), [1.0, 0.5, 0.0], name, **more)
  for function in (wild, counted, length):
    monkeypatch.setitem(samplers.BY_NAME, function.__name__, function)
  with pytest.raises(ValueError, match="^sampler 'wild' of this model cannot be exported: its number of steps is dec"):
    call("wild", batch_size=4)
  assert call("counted")[0].platforms == export.DEFAULT_PLATFORMS
  with pytest.raises(ValueError, match="^sampler 'length' of this model cannot be exported: [^\n]+$"):
    call("length")
  config, method, variables = edm_model()
  with pytest.raises(ValueError, match="^sampler 'rk45' of this model cannot be exported: its number of steps is dec"):
    export.sampler(method, variables, (8, 8, 1), [1.0, 0.5, 0.0], "rk45", batch_size=4)
  config.sampling.sampler = "rk45"
  with pytest.raises(config_lib.ConfigError, match="sampling.sampler = 'rk45': cannot be exported: its number"):
    export.from_config(config, method, variables)


@pytest.mark.parametrize(
  "fields, said",
  [
    ({"ratio": "mean"}, "sampling.ratio = 'mean'.*measured before"),
    ({"sigma_min_search": True}, "sampling.sigma_min_search = True.*searched before"),
    ({"classifier_scale": 2.0}, "sampling.classifier_scale = 2.0: must be 0"),
  ],
)
def test_what_is_measured_or_guided_by_another_network_is_refused(fields, said):
  with pytest.raises(config_lib.ConfigError, match=said):
    config, *model = edm_model()
    config.sampling.update(fields)
    export.from_config(config, *model)


@pytest.mark.parametrize(
  "more, said",
  [
    ({"platforms": ("cpu", "gpu")}, "platforms must be some of cpu, cuda, tpu, rocm, each once, got cpu, gpu"),
    ({"platforms": ()}, "platforms must be .* got none"),
    ({"platforms": ("cpu", "cpu")}, "platforms must be .* got cpu, cpu"),
    ({"parameters": "outside"}, "parameters must be one of inside, beside, got 'outside'"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"trajectory": True}, "trajectory cannot be exported"),
    ({"tile": (8, 2)}, "tile cannot be exported"),
    ({"guidance": 2.0}, "guidance needs labels"),
    ({"sampler": "dddm"}, "sampler must be one of heun"),
  ],
)
def test_mistakes_are_one_line(more, said):
  _, method, variables = edm_model()
  with pytest.raises(ValueError, match=said) as error:
    export.sampler(method, variables, (8, 8, 1), [1.0, 0.5, 0.0], **more)
  assert "\n" not in str(error.value)


def test_latents_need_a_decoder():
  config = latent_config()
  model = model_of(config, base=lambda config, heads, **options: test_classifiers.Toy(heads))
  with pytest.raises(ValueError, match="latents need a decoder"):
    export.from_config(config, *model)


def test_parameters_that_numpy_cannot_hold_are_named():
  _, method, variables = edm_model()
  variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), variables)
  with pytest.raises(ValueError, match="the parameter model/params/.* must be of a dtype .* got bfloat16"):
    export.sampler(method, variables, (8, 8, 1), [1.0, 0.0])


def test_files_are_not_written_over(exported, tmp_path, monkeypatch):
  _, artifacts, _, _ = exported
  paths = export.write(tmp_path / "a.b.jaxexport", artifacts["ddpm"])
  assert [path.name for path in paths] == ["a.b.jaxexport", "a.b.json", "a.b.npz"]
  assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
  for path in paths:
    path.rename(tmp_path / "aside")
    (tmp_path / path.name).write_text("mine")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/a.b.") + ".*already there"):
      export.write(tmp_path / "a.b", artifacts["ddpm"])
    assert (tmp_path / path.name).read_text() == "mine"
    (tmp_path / "aside").rename(path)
  paths[0].write_text("mine")
  export.write(tmp_path / "a.b", artifacts["ddpm"], overwrite=True)
  assert jax.export.deserialize(bytearray(paths[0].read_bytes())).nr_devices == 1
  monkeypatch.setitem(sys.modules, "jax._src.export.serialization", None)
  with pytest.raises(ValueError, match="needs the package flatbuffers"):
    export.write(tmp_path / "c", artifacts["ddpm"])


# --- the program ------------------------------------------------------------------------------------------------------

SETUP = """
from diffusion_jax.methods import base
from training import toy
base.network_from_config = lambda config, heads: toy.Toy()
"""
MISTAKES = {
  "platform": (["--platforms=cpu,gpu"], "--platforms must be some of cpu, cuda, tpu, rocm"),
  "parameters": (["--parameters=no"], "--parameters must be one of inside, beside, got 'no'"),
  "there": (["--out={tmp}/there"], "--out={tmp}/there.jaxexport: {tmp}/there.json is already there; pass --overwrite"),
  "batch": (["--batch_size=-1"], "--batch_size must be at least 1, got -1"),
  "classifier": (["--classifier_scale=2", "--classifier=c"], "config.sampling.classifier_scale = 2.0"),
  "sampler": (["--sampler=huen"], "config.sampling.sampler = 'huen'"),
}


def test_the_program(tmp_path):
  """Its files load by the lines that it prints, and give the images of the flags' sampler."""
  config = tiny.get_config()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
    method = methods.from_config(config)
    made = jax.jit(lambda key: method.init(key, start.example_batch(config)))(jax.random.key(3))
  checkpoint.write_config(tmp_path / "run", config)
  checkpoints = checkpoint.Checkpoints(tmp_path / "run", config)
  checkpoints.save(jax.tree.map(np.asarray, made.replace(step=np.int32(24))), 24)
  checkpoints.close()
  (tmp_path / "there.json").write_text("mine")
  program = ["experiments/export.py", f"--workdir={tmp_path}/run"]
  good = ["--num_steps=2", "--guidance=2", "--parameters=beside", "--platforms=cpu", f"--out={tmp_path}/new/toy"]
  calls = [["good", [*program, *good]], ["workdir", [*program[:1], f"--out={tmp_path}/none"]]]
  calls += [
    [name, [*program, *(flag.replace("{tmp}", str(tmp_path)) for flag in argv)]] for name, (argv, _) in MISTAKES.items()
  ]
  env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
  forks = [sys.executable, "-c", SETUP + FORKS]
  done = subprocess.run(forks, input=json.dumps(calls), env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  results = json.loads(done.stdout.splitlines()[-1])
  mistakes = {name: said for name, (_, said) in MISTAKES.items()} | {"workdir": "--workdir is missing"}
  for name, said in mistakes.items():
    code, out, err = results[name]
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, (name, err)
    assert said.replace("{tmp}", str(tmp_path)) in err, err
  code, out, err = results["good"]
  assert code == 0, err
  said, _, lines = out.partition("\n\n")
  assert "step 24 by heun, NFE 6, images 8×8×1, parameters beside, for cpu." in said
  about = json.loads((tmp_path / "new/toy.json").read_text())
  assert about["checkpoint"]["step"] == 24 and len(about["checkpoint"]["sha256"]) == 64
  alone(f'{lines}\nnp.save("images.npy", images)', cwd=tmp_path)
  config.sampling.update(num_steps=2, guidance=2.0)
  given = {"seeds": np.arange(64), "labels": np.arange(64) % 10}
  wanted = reference((config, method, state.inference_variables(made.ema), None, None), given, 64)
  np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), wanted)
