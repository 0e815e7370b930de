"""Processes: closed forms, inverses at both ends of the range, derivatives, reframing."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from diffusion_jax import process
from diffusion_jax.types import Prediction

PROCESSES = {
  "EDM": (process.EDM(), np.geomspace(1e-4, 1e3, 40)),
  "VE": (process.VE(), np.geomspace(1e-8, 1e4, 40)),
  "VP": (process.VP(), np.geomspace(1e-6, 1.0, 40)),
  "DDPM": (process.DDPM(), np.array([1e-3, 0.5, 1.0, 1.5, 2.0, 499.25, 998.5, 999.0, 1000.0])),
  "Cosine": (process.Cosine(), np.array([1e-3, 0.5, 1.0, 1.5, 2.0, 1999.25, 3998.5, 3999.0, 4000.0])),
  "Decoupled": (process.Decoupled(), np.append(np.geomspace(1e-8, 0.5, 20), np.linspace(0.5, 0.999, 20))),
}


@pytest.mark.parametrize("wide, tolerance", [(True, 1e-9), (False, 2e-5)], ids=["x64", "float32"])
@pytest.mark.parametrize("name", PROCESSES)
def test_schedules_and_velocity_against_hand_derivatives(name, wide, tolerance):
  p, t = PROCESSES[name]
  with jax.enable_x64(wide):
    ones = jnp.ones((len(t), 1, 1, 1))
    expected = np.array([oracle.SCHEDULES[name](float(v)) for v in t])
    sign = p.encode(None, jnp.ones(()))  # −1 for the decoupled clean component
    np.testing.assert_allclose(p.alpha(jnp.asarray(t)), expected[:, 0], rtol=tolerance)
    np.testing.assert_allclose(p.sigma(jnp.asarray(t)), expected[:, 1], rtol=tolerance)
    of_clean = p.velocity(Prediction(sign * ones, 0 * ones), jnp.asarray(t)).ravel()
    of_eps = p.velocity(Prediction(0 * ones, ones), jnp.asarray(t)).ravel()
    if not wide and name in ("DDPM", "Cosine"):
      tolerance = 2e-3  # differences of neighbouring float32 table entries
    for got, derivative in [(of_clean, expected[:, 2]), (of_eps, expected[:, 3])]:
      np.testing.assert_allclose(got, derivative, rtol=tolerance, atol=1e-10 if wide else 1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_inverse_undoes_the_noise_level(name):
  p, t = PROCESSES[name]
  with jax.enable_x64(True):
    t = jnp.asarray(t)
    np.testing.assert_allclose(p.inverse(p.noise_level(t)), t, rtol=1e-7)
    assert p.inverse(0.0) == 0
  levels = jnp.geomspace(0.002, 80.0, 30)
  np.testing.assert_allclose(p.noise_level(p.inverse(levels)), levels, rtol=1e-4)
  assert p.inverse(0.0) == 0 and p.sigma(0.0) == 0 and p.alpha(0.0) == 1


def test_vp_constants_of_the_paper_and_their_re_solved_form():
  assert float(process.VP().noise_level(1.0)) == pytest.approx(152.17, rel=1e-3)
  vp = process.VP()
  lo, hi = (float(np.sqrt(np.expm1(0.5 * 19.9 * t**2 + 0.1 * t))) for t in (1e-3, 1.0))
  solved = process.VP.from_range(lo, hi)
  assert (solved.beta_d, solved.beta_min) == pytest.approx((19.9, 0.1), rel=1e-9)
  narrow = process.VP.from_range(0.002, 80.0)
  assert narrow.beta_min == pytest.approx(-0.00477, abs=1e-5)
  with jax.enable_x64(True):
    np.testing.assert_allclose(narrow.noise_level(jnp.array([1e-3, 1.0])), [0.002, 80.0], rtol=1e-9)
    np.testing.assert_allclose(narrow.inverse(jnp.array([0.0, 0.002, 80.0])), [0, 1e-3, 1.0], rtol=1e-9)
  assert vp == process.VP() and hash(vp) == hash(process.VP())


def test_vp_keeps_its_digits_at_small_times():
  t = 1e-5
  exact = np.sqrt(np.expm1(0.5 * 19.9 * t**2 + 0.1 * t))
  assert float(process.VP().noise_level(jnp.float32(t))) == pytest.approx(exact, rel=1e-6)


def test_discrete_chains_are_exact_at_the_integers_and_hold_beyond_the_last():
  beta = np.linspace(1e-4, 0.02, 1000)
  alpha_bar = np.cumprod(1 - beta)
  t = np.arange(1, 1001)
  with jax.enable_x64(True):
    np.testing.assert_allclose(process.DDPM().alpha(t) ** 2, alpha_bar, rtol=1e-11)
    assert process.DDPM().alpha(1200.0) == process.DDPM().alpha(1000.0)
  assert alpha_bar[-1] == pytest.approx(4.0358e-5, rel=1e-3)  # Ho et al. 2020
  last = process.Cosine().alpha(4000.0)
  assert np.isfinite(last) and last > 0


def test_perturb_and_prior():
  keys = jax.vmap(jax.random.key)(jnp.arange(4096))
  for p, t in [(process.VP(), 0.4), (process.Decoupled(), 0.4), (process.VE(), 9.0)]:
    x0, eps = 2.0 * jnp.ones((2, 3, 3, 1)), -jnp.ones((2, 3, 3, 1))
    expected = p.alpha(t) * x0 + p.sigma(t) * eps
    np.testing.assert_allclose(p.perturb(p.encode(None, x0), eps, jnp.full(2, t)), expected, rtol=1e-6)
    np.testing.assert_allclose(p.decode(p.encode(None, x0)), x0)
    x = np.asarray(p.prior(keys, (4, 4, 1), t), np.float64)
    assert x.shape == (4096, 4, 4, 1)
    assert abs(x.mean()) < 4 * p.sigma(t) / np.sqrt(x.size)
    assert abs(x.var() / p.sigma(t) ** 2 - 1) < 4 * np.sqrt(2 / x.size)


def test_decoupled_signal_is_zero_at_one_and_the_image_at_zero():
  p, x0 = process.Decoupled(), jnp.linspace(-1, 1, 9).reshape(1, 3, 3, 1)
  np.testing.assert_array_equal(p.signal(p.encode(None, x0), 1.0), 0 * x0)
  np.testing.assert_array_equal(p.signal(p.encode(None, x0), 0.0), x0)


@pytest.mark.parametrize("source", PROCESSES)
@pytest.mark.parametrize("target", PROCESSES)
def test_reframed_denoiser_is_the_exact_denoiser_of_the_target(source, target, x64):
  (p, _), (q, t) = PROCESSES[source], PROCESSES[target]
  noise = np.array([oracle.SCHEDULES[target](v)[1] / oracle.SCHEDULES[target](v)[0] for v in t])
  t = jnp.asarray(t[noise < 150])  # a chain ends at its own largest noise level
  x = jax.random.normal(jax.random.key(0), (len(t), 4, 4, 1)) * q.sigma(t).reshape(-1, 1, 1, 1)
  pred = process.reframe(oracle.gaussian_denoise(p, 0.3, 0.64), p, q)(x, t)
  exact = oracle.gaussian_denoise(q, 0.3, 0.64)(x, t)
  np.testing.assert_allclose(pred.clean, exact.clean, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(pred.eps, exact.eps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wide", [True, False], ids=["x64", "float32"])
def test_reframe_takes_the_limit_where_no_signal_is_left(wide):
  """At α = 0 the best estimate is the mean of the data and x itself the noise."""
  with jax.enable_x64(wide):
    p, q = process.EDM(), process.Decoupled()
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    pred = process.reframe(oracle.gaussian_denoise(p, 0.3, 0.64), p, q)(x, 1.0)
    np.testing.assert_allclose(q.decode(pred.clean), 0.3 + 0 * x, atol=1e-5)
    np.testing.assert_allclose(pred.eps, x, atol=1e-5)


def test_a_time_of_the_wrong_shape_is_named():
  with pytest.raises(ValueError, match=r"scalar or \[2\] for x \(2, 3, 3, 1\), got \(3,\)"):
    process.VP().perturb(jnp.zeros((2, 3, 3, 1)), jnp.zeros((2, 3, 3, 1)), jnp.ones(3))
