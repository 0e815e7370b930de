"""Heads against the images and noise that they were made from; preconditioners against Table 1."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parameterization as par
from diffusion_jax import process, times

PROCESSES = [process.EDM(), process.VP(), process.DDPM(), process.Cosine(), process.Decoupled()]


@pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
def test_every_head_gives_back_image_and_noise(p, x64):
  x0, eps = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
  t = p.inverse(jnp.array([0.01, 0.3, 1.0, 5.0, 60.0]))
  clean = p.encode(None, x0)
  x = p.perturb(clean, eps, t)
  for pred in [
    par.from_x0(p, x0, x, t),
    par.from_eps(p, eps, x, t),
    par.from_v(p, par.v_target(p, x0, eps, t), x, t),
  ]:
    np.testing.assert_allclose(pred.clean, clean, atol=1e-9)
    np.testing.assert_allclose(pred.eps, eps, atol=1e-9)


def test_v_is_salimans_and_ho_where_variance_is_preserved(x64):
  p, t = process.VP(), jnp.array([0.3])
  x0, eps = jax.random.normal(jax.random.key(0), (2, 1, 2, 2, 1))
  np.testing.assert_allclose(par.v_target(p, x0, eps, t), p.alpha(t) * eps - p.sigma(t) * x0, rtol=1e-12)


SIGMA = np.geomspace(0.002, 80, 15)
VP_TIME = (-0.1 + np.sqrt(0.01 + 39.8 * np.log1p(SIGMA**2))) / 19.9
LEVELS = times.iddpm_levels()[:-1]
NEAREST = np.abs(LEVELS - SIGMA[:, None]).argmin(1)
TABLE = {  # c_skip, c_out, c_in, c_noise
  "edm": (par.EDMPreconditioner(0.5), 0.25 / (SIGMA**2 + 0.25), SIGMA * 0.5 / np.sqrt(SIGMA**2 + 0.25),
          1 / np.sqrt(SIGMA**2 + 0.25), np.log(SIGMA) / 4),
  "vp": (par.VPPreconditioner(), 1, -SIGMA, 1 / np.sqrt(SIGMA**2 + 1), 999 * VP_TIME),
  "ve": (par.VEPreconditioner(), 1, SIGMA, 1, np.log(SIGMA / 2)),
  "iddpm": (par.IDDPMPreconditioner(), 1, -SIGMA, 1 / np.sqrt(SIGMA**2 + 1), 999 - NEAREST),
}  # fmt: skip


# [σ_min, σ_max] of the networks: PAPERS' constants, σ = √(e^{½β_d t² + β_min t} − 1) for VP.
TRAINED = {
  "edm": (0.0, np.inf),
  "vp": tuple(np.sqrt(np.expm1(0.5 * 19.9 * t**2 + 0.1 * t)) for t in (1e-5, 1.0)),
  "ve": (0.02, 100.0),
  "iddpm": (0.00642, 20291.0),
}


@pytest.mark.parametrize("name", TABLE)
def test_preconditioners_are_table_1(name, x64):
  preconditioner, c_skip, c_out, c_in, c_noise = TABLE[name]
  c = preconditioner(jnp.asarray(SIGMA))
  for got, expected in zip(c, (c_skip, c_out, c_in, c_noise, (1 - c_skip) / SIGMA, -c_out / SIGMA)):
    np.testing.assert_allclose(got, expected * np.ones(15), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore:noise levels")
def test_preconditioned_pair_is_consistent_down_to_small_noise(name):
  """x = D + σ·ε̂, and in float32 ε̂ keeps its digits at σ = .002, where (x − D)/σ would lose three."""
  x = jax.random.normal(jax.random.key(0), (15, 4, 4, 3))
  sigma = jnp.asarray(SIGMA, jnp.float32)
  f = jnp.cos(3 * x)
  pred = par.precondition(lambda inp, c_noise: f, TABLE[name][0])(x, sigma)
  np.testing.assert_allclose(pred.clean + sigma[:, None, None, None] * pred.eps, x, rtol=1e-4, atol=1e-5)
  _, c_skip, c_out, _, _ = TABLE[name]
  if name in ("ve", "iddpm"):  # whose D at smaller σ is that of σ_min
    c_out = np.sign(c_out) * np.maximum(SIGMA, TABLE[name][0].sigma_min)
  exact = (np.asarray(x, np.float64) * ((1 - c_skip) / SIGMA * np.ones(15))[:, None, None, None]
           + np.asarray(f, np.float64) * (-c_out / SIGMA)[:, None, None, None])  # fmt: skip
  np.testing.assert_allclose(pred.eps, exact, rtol=2e-6, atol=1e-6)


def test_network_sees_unit_variance_and_float32_scalings():
  x0 = 0.5 * jax.random.normal(jax.random.key(0), (64, 16, 16, 1))
  for s in (0.002, 0.5, 80.0):
    x = x0 + s * jax.random.normal(jax.random.key(1), x0.shape)
    seen = {}

    def network(inp, c_noise):
      seen.update(std=float(inp.std()), c_noise=c_noise)
      return inp.astype(jnp.bfloat16)

    pred = par.precondition(network, par.EDMPreconditioner(0.5))(x, s)
    assert seen["std"] == pytest.approx(1, rel=0.02) and seen["c_noise"].shape == (64,)
    assert pred.clean.dtype == pred.eps.dtype == jnp.float32


@pytest.mark.parametrize("name", TABLE)
def test_noise_levels_beyond_the_trained_ones_are_clamped(name):
  """With one warning where they are known, silently where they are traced; D is that of the nearest level."""
  preconditioner = TABLE[name][0]
  lo, hi = TRAINED[name]
  np.testing.assert_allclose((preconditioner.sigma_min, preconditioner.sigma_max), (lo, hi), rtol=1e-3)
  denoise = par.precondition(lambda inp, c_noise: jnp.sin(inp + c_noise[:, None, None, None]), preconditioner)
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  inside = denoise(x, jnp.array([max(preconditioner.sigma_min, 1e-3), min(preconditioner.sigma_max, 1e5)]))
  outside = jnp.array([1e-3 if name == "edm" else 1e-4, 1e5])
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jax.jit(denoise)(x, outside)
    assert not caught
    got = denoise(x, outside)
    assert len(caught) == (name != "edm"), [str(w.message) for w in caught]
  np.testing.assert_allclose(got.clean, inside.clean, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got.eps, (x - inside.clean) / outside[:, None, None, None], rtol=1e-3, atol=1e-4)


def test_levels_inside_the_range_are_left_alone():
  """The range's own ends, rounded to float32, give no warning and come back as they are."""
  for preconditioner in (par.VPPreconditioner(), par.VEPreconditioner(), par.IDDPMPreconditioner()):
    ends = np.float32([preconditioner.sigma_min, 1.0, preconditioner.sigma_max])
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      np.testing.assert_allclose(par.clamp(preconditioner, ends), ends, rtol=1e-6)
