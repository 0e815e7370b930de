"""Published checkpoints give the published networks' own numbers, without PyTorch; errors say what does not fit."""

import functools
import json
import pathlib
import runpy
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files as tf
from etils import epath

from diffusion_jax import parameterization as par
from diffusion_jax import process, samplers, sampling, times
from diffusion_jax.interop import edm_checkpoint

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NETS = json.loads((GOLDEN / "nets.json").read_text())
draw = runpy.run_path(str(GOLDEN / "draw.py"))["draw"]
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails


@pytest.fixture(scope="module")
def tiny():
  return edm_checkpoint.load(epath.Path(GOLDEN) / "edm_tiny.pkl")


@pytest.fixture(scope="module")
def evaluate(tiny):
  """D of four images, compiled once."""
  return functools.partial(jit(tiny[0]), tiny[1])


def drawn(name):
  manifest = NETS[name]["state_dict"]
  return {key: draw(key, shape) for key, shape in manifest.items() if "resample_filter" not in key and key != "u"}


def golden(name):
  data = dict(np.load(GOLDEN / f"net_{name}.npz"))
  for key in ("x", "D"):
    data[key] = data[key].transpose(0, 2, 3, 1)
  return data


def relative_error(out, ref):
  return np.linalg.norm(np.asarray(out) - ref) / np.linalg.norm(ref)


def test_published_pickle(tiny, evaluate):
  params = tiny[1]
  data = golden("edm_tiny")
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  out = evaluate(data["x"], data["sigma"], data["class_labels"], data["augment_labels"])
  assert out.dtype == jnp.float32
  assert relative_error(out, data["D"]) < 1e-5  # measured: 3.3e-7


@pytest.mark.parametrize("name", ["iddpm_adm", "ve_ncsnpp", "vp_ddpmpp"])
def test_state_dict(name):
  denoise, params = edm_checkpoint.from_state_dict(drawn(name), NETS[name]["precond"], NETS[name]["init_kwargs"])
  data = golden(name)
  labels = data.get("class_labels")
  out = jit(denoise)(params, data["x"], data["sigma"], None if labels is None else labels.argmax(-1))
  assert relative_error(out, data["D"]) < 1e-4


def test_samplers_run_through_it(tiny, evaluate):
  """Heun of Karras et al. 2022, Algorithm 1, written out over D, gives what samplers.heun gives over as_denoise."""
  denoise, params = tiny
  labels, grid = jnp.array([3, 0, 1, 3]), times.edm_grid(4)
  one_hot, plain = np.eye(4, dtype=np.float32)[labels], np.zeros((4, 9), np.float32)
  x = 80 * np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
  sampler = lambda params, x: samplers.heun(edm_checkpoint.as_denoise(denoise, params, labels), process.EDM(), x, grid)
  out = jit(sampler)(params, x)
  slope = lambda x, t: (x - np.asarray(evaluate(x, np.full(4, t, np.float32), one_hot, plain))) / np.float32(t)
  for t, s in zip(grid[:-1], grid[1:]):
    d = slope(x, t)
    euler = (x + np.float32(s - t) * d).astype(np.float32)
    x = euler if s == 0 else (x + np.float32(s - t) * (d + slope(euler, s)) / 2).astype(np.float32)
  assert relative_error(out, x) < 1e-5


def test_recorded_arguments_reach_the_preconditioner():
  def of(name, **kwargs):
    kwargs = {**NETS[name]["init_kwargs"], **kwargs}
    return edm_checkpoint.from_state_dict(drawn(name), NETS[name]["precond"], kwargs)[0].preconditioner

  assert of("edm_tiny", sigma_data=0.25, sigma_min=0, sigma_max=float("inf")) == par.EDMPreconditioner(0.25)
  vp = of("vp_ddpmpp", beta_d=20.0, beta_min=-0.005, M=500, epsilon_t=1e-4)
  assert vp == par.VPPreconditioner(20.0, -0.005, 500, 1e-4)
  assert of("ve_ncsnpp", sigma_min=0.01, sigma_max=50) == par.VEPreconditioner(0.01, 50)
  assert of("iddpm_adm", M=400, C_1=0.002, C_2=0.01) == par.IDDPMPreconditioner(400, 0.002, 0.01)
  for kwargs, error in [
    (dict(sigma_data=0.0), "sigma_data = 0.0: expected a positive"),
    (dict(sigma_min=2.0, sigma_max=1.0), "sigma_min = 2.0: expected a number of at least 0, below sigma_max"),
    (dict(sigma_data="half"), "sigma_data = 'half': expected a number"),
    (dict(img_resolution=8.5), "img_resolution = 8.5: expected an integer"),
    (dict(num_blocks=90_000), "num_blocks = 90000"),
    (dict(channel_mult=7), "channel_mult = 7: expected at most"),
    (dict(model_type="UViT"), "model_type = 'UViT'"),
    (dict(depth=3), "unknown argument 'depth'"),
  ]:
    with pytest.raises(ValueError, match=error):
      of("edm_tiny", **kwargs)


def test_levels_of_iddpm():
  name = "iddpm_adm"
  load = lambda u: edm_checkpoint.from_state_dict({**drawn(name), "u": u}, "iDDPMPrecond", NETS[name]["init_kwargs"])
  load(times.iddpm_levels().astype(np.float32))
  with pytest.raises(ValueError, match="tensor 'u' of shape \\[1001\\]"):
    load(1.1 * times.iddpm_levels())
  with pytest.raises(ValueError, match="tensor 'u' of shape \\[501\\]"):
    load(times.iddpm_levels(500))


def test_tensors_that_do_not_fit():
  def load(change, precond="EDMPrecond"):
    tensors = drawn("edm_tiny")
    change(tensors)
    return edm_checkpoint.from_state_dict(tensors, precond, NETS["edm_tiny"]["init_kwargs"])

  name = "model.map_layer0.weight"
  with pytest.raises(ValueError, match="missing tensor 'map_layer0.weight'"):
    load(lambda tensors: tensors.pop(name))
  with pytest.raises(ValueError, match="unexpected tensor 'extra'"):
    load(lambda tensors: tensors.update({"model.extra": np.zeros(2)}))
  with pytest.raises(ValueError, match="unexpected tensor 'u'"):
    load(lambda tensors: tensors.update(u=np.zeros(2)))
  with pytest.raises(ValueError, match="'map_layer0.weight' has shape \\[2\\]"):
    load(lambda tensors: tensors.update({name: np.zeros(2)}))
  with pytest.raises(ValueError, match="conv.weight' has shape \\[\\]"):
    load(lambda tensors: tensors.update({"model.enc.8x8_conv.weight": np.zeros(())}))
  with pytest.raises(ValueError, match="preconditioner class 'EDMPrecondition': expected one of EDMPrecond"):
    load(lambda tensors: None, "EDMPrecondition")


def test_noise_levels_beyond_the_network_are_clamped():
  """Known ones with one warning, traced ones silently, to D at the nearest level."""
  name = "edm_tiny"
  denoise, params = edm_checkpoint.from_state_dict(drawn(name), "VEPrecond", NETS[name]["init_kwargs"])
  x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
  evaluate = jit(denoise)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    nearest, outside = evaluate(params, x, 0.02), evaluate(params, x, 0.001)
  np.testing.assert_array_equal(outside, nearest)
  with pytest.warns(UserWarning, match="noise levels 0.001 to 0.001 are clamped to .* 0.02 to 100") as caught:
    assert relative_error(denoise(params, x, 0.001), nearest) < 1e-5
  assert len(caught) == 1


def test_a_published_network_is_sampled_like_a_run(tiny):
  """as_run's config and method give, through sampling.generate, what the sampler alone gives over as_denoise."""
  denoise, params = tiny
  config, method = edm_checkpoint.as_run(denoise)
  assert (config.data.resolution, config.data.channels, config.data.num_classes) == (8, 3, 4)
  config.sampling.num_steps = 3
  seeds = np.array([4, 9, 2])
  got = sampling.generate(config, method, {"params": params}, seeds)
  edm, grid = process.EDM(), times.edm_grid(3)
  x = edm.prior(sampling.keys_of(seeds), (8, 8, 3), grid[0])
  alone = jit(lambda x: samplers.heun(edm_checkpoint.as_denoise(denoise, params, jnp.asarray(seeds % 4)), edm, x, grid))
  assert relative_error(got, alone(x)) < 1e-4  # XLA optimises the two apart


def test_inputs_that_do_not_fit(tiny):
  denoise, params = tiny
  x, good = jnp.zeros((2, 8, 8, 3)), dict(noise_level=1.0)
  for changed, error in [
    (dict(x=x[..., :1]), "x must be \\[B, H, W, 3\\], got shape \\[2, 8, 8, 1\\]"),
    (dict(x=x[:, :4]), "x must be \\[B, 8, 8, 3\\]"),
    (dict(noise_level=jnp.ones(3)), "noise_level must be a scalar or \\[2\\]"),
    (dict(labels=jnp.zeros((2, 5))), "labels must be integers \\[2\\] or one-hot \\[2, 4\\], got shape \\[2, 5\\]"),
    (dict(labels=jnp.zeros(2)), "labels must be integers .* of float32"),
    (dict(labels=[0, 4]), "labels must be in 0..3, or -1 for none, got 4"),
    (dict(augment=jnp.zeros((2, 8))), "augment must be \\[2, 9\\]"),
  ]:
    with pytest.raises(ValueError, match=error):
      denoise(params, **{"x": x, **good, **changed})
  name = "vp_ddpmpp"
  plain, params = edm_checkpoint.from_state_dict(drawn(name), "VPPrecond", NETS[name]["init_kwargs"])
  with pytest.raises(ValueError, match="labels must be None: the network is unconditional"):
    plain(params, jnp.zeros((2, 16, 16, 3)), 1.0, labels=jnp.zeros(2, int))


def test_pickles_that_are_no_checkpoint(tmp_path, capsys):
  path = tmp_path / "network.pkl"

  def error(value):
    path.write_bytes(tf.pickled(value))
    with pytest.raises(ValueError) as raised:
      edm_checkpoint.load(path)
    assert str(raised.value).startswith(str(path))
    return str(raised.value)

  weight = tf.tensor(tf.embedded(np.zeros(4, np.float32)), (2, 2))
  kwargs = NETS["edm_tiny"]["init_kwargs"]
  inner = tf.module({"weight": weight}, class_name="SongUNet")
  assert "expected a dict whose entry 'ema' is a network" in error({"ema": 3})
  assert "preconditioner class 'UNet'" in error({"ema": tf.module({}, {}, "UNet")})
  assert "network class 'None'" in error({"ema": tf.module({}, {}, "EDMPrecond", _init_kwargs=kwargs)})
  other = tf.module({}, {}, "Transformer")
  assert "'Transformer'" in error({"ema": tf.module({}, {"model": other}, "EDMPrecond", _init_kwargs=kwargs)})
  assert "positional" in error({"ema": tf.module({}, {"model": inner}, "EDMPrecond", _init_args=(8,))})
  assert "must be a dict" in error({"ema": tf.module({}, {"model": inner}, "EDMPrecond")})
  whole = {"ema": tf.module({}, {"model": inner}, "EDMPrecond", _init_kwargs=kwargs)}
  assert "num_blocks = 1: the 1 tensors cannot be" in error(whole)
  assert capsys.readouterr().out == ""  # no licence of weights that are not there


def test_licence_is_printed_once(tmp_path, capsys):
  path = tmp_path / "edm.pkl"
  path.write_bytes((GOLDEN / "edm_tiny.pkl").read_bytes())
  edm_checkpoint.load(path)
  assert "CC BY-NC-SA 4.0" in capsys.readouterr().out
  edm_checkpoint.load(str(path))
  assert capsys.readouterr().out == ""
