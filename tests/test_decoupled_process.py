"""Decoupled processes: H by quadrature, the solved parameters, forward marginals, velocity, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from diffusion_jax import guidance, process
from diffusion_jax.types import Prediction

# h_t of parameters [k, ...] at times [...], as the paper has them
RATES = {
  "constant": lambda p, t: p[0] + 0 * t,
  "linear": lambda p, t: p[0] * t + p[1],
  "quadratic": lambda p, t: p[0] * t**2 + p[1] * t + p[2],
  "exponential": lambda p, t: np.exp(p[0] * t) + p[1],
  "sine": lambda p, t: np.sin(p[0] * t),
}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)


def integral(name, parameters, t):
  """H_t = ∫_0^t h by quadrature; parameters are [k, ...]."""
  return sum(w * RATES[name](parameters, 0.5 * t * (1 + node)) for node, w in zip(NODES, WEIGHTS)) * 0.5 * t


def split(p, clean):
  return np.stack(np.split(np.asarray(clean, np.float64), p.parameters, -1))


def keys_of(n):
  return jax.vmap(jax.random.key)(jnp.arange(n))


def scale_of(p):
  return 0.72 if p.attenuation == "sine" else 1.0


def images(dtype=np.float64):
  x0 = np.random.default_rng(0).uniform(-1, 1, (4, 3, 3, 2))
  x0[0, 0, 0], x0[0, 0, 1] = (1, -1), (0, 1e-6)
  return jnp.asarray(x0, dtype)


@pytest.mark.parametrize("wide, tolerance", [(True, 1e-9), (False, 1e-5)], ids=["x64", "float32"])
@pytest.mark.parametrize("name", RATES)
def test_the_image_fades_to_zero_along_h(name, wide, tolerance):
  """x_0 + H_1(φ) = 0, m(φ, t) = x_0 + H_t(φ), relative to the size of H's parts; the way back to x_0."""
  with jax.enable_x64(wide):
    p, x0 = process.Decoupled(name), images(np.float64 if wide else np.float32)
    clean = p.encode(keys_of(4), x0)
    assert clean.shape == (4, 3, 3, 2 * p.parameters) and clean.dtype == x0.dtype
    parts, start = split(p, clean), scale_of(p) * np.asarray(x0, np.float64)
    size = 1 + np.abs(integral(name, parts, 1.0) - parts[-1] * (name != "sine"))
    assert np.all(np.abs(start + integral(name, parts, 1.0)) < tolerance * size)
    for t in (0.0, 1e-4, 0.3, 0.5, 0.97, 1.0):
      expected = start + integral(name, parts, t)
      assert np.all(np.abs(p.signal(clean, t) - expected) < tolerance * size), t
    np.testing.assert_array_equal(p.signal(clean, 1.0), 0 * x0)
    of_each = p.signal(clean, jnp.array([0.0, 0.3, 0.97, 1.0]))
    np.testing.assert_allclose(of_each[1], p.signal(clean[1:2], 0.3)[0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(p.decode(clean), x0, atol=tolerance * size.max())
    np.testing.assert_allclose(p.image(p.signal(clean, 0.0)), p.decode(clean), atol=tolerance * size.max())


def test_the_exponential_and_the_sine_keep_their_digits_at_the_ends(x64):
  """To 1e-6 relative (1e-10 here) for a → 0 and large a, derivatives included."""
  a = jnp.array([0.0, 1e-12, -1e-7, 1e-3, 0.019, 0.021, -0.2, 3.0, -6.0, 6.0]).reshape(1, 1, 10, 1)
  exponential, sine = process.Decoupled("exponential"), process.Decoupled("sine")
  clean = jnp.concatenate([a, 0 * a], -1)
  for t in (1e-3, 0.4, 0.999):
    for p, c in ((exponential, clean), (sine, a)):
      parts = split(p, c)
      expected = integral(p.attenuation, parts, t) - integral(p.attenuation, parts, 1.0)
      np.testing.assert_allclose(p.signal(c, t), expected, rtol=1e-10, atol=1e-14)
      slope = p.velocity(Prediction(c, 0 * a), t)
      np.testing.assert_allclose(slope, RATES[p.attenuation](parts, t), rtol=1e-9, atol=1e-12)


def test_the_sine_is_solved_on_its_rising_part(x64):
  """(1 − cos a)/a = −.72·x_0 with |a| ≤ 2.331, by another solver; its derivative; clipped images."""
  p, rise = process.Decoupled("sine"), lambda a: (1 - np.cos(a)) / a
  top = scipy.optimize.minimize_scalar(lambda a: -rise(a), bounds=(1, 3), method="bounded", options={"xatol": 1e-12})
  assert -top.fun == pytest.approx(0.7246, abs=1e-4) and top.x == pytest.approx(2.331, abs=1e-3)
  x0 = np.array([-1.0, -0.6, -1e-3, 0.2, 0.9, 0.999])
  solve = lambda x: scipy.optimize.brentq(lambda a: rise(a) - 0.72 * x, 1e-9, top.x, xtol=1e-14)
  expected = [-np.sign(x) * solve(abs(x)) for x in x0]
  np.testing.assert_allclose(p.encode(None, jnp.asarray(x0)), expected, rtol=1e-9)
  np.testing.assert_array_equal(p.encode(None, jnp.array([1.7, -1.7])), p.encode(None, jnp.array([1.0, -1.0])))
  slope = jax.vmap(jax.grad(lambda x: p.encode(None, x)))(jnp.asarray(x0[1:]))
  a = np.asarray(expected[1:])
  np.testing.assert_allclose(slope, -0.72 / (np.sin(a) / a - rise(a) / a), rtol=1e-6)
  single = process.Decoupled("sine").encode(None, jnp.asarray(x0, jnp.float32))
  np.testing.assert_allclose(single, expected, rtol=1e-5)


def marginal(name, x0, t):
  """Mean and variance of x_t given x_0 over the noise and the free parameters; the exponential's by quadrature."""
  if name == "sine":
    a = -scipy.optimize.brentq(lambda a: (1 - np.cos(a)) / a - 0.72 * x0, 1e-9, 2.331)
    return 0.72 * x0 + (1 - np.cos(a * t)) / a, t
  mean, left = (1 - t) * x0, 1 - t
  if name == "exponential":
    a, weight = np.polynomial.hermite_e.hermegauss(80)
    bend = (np.expm1(a * t) - t * np.expm1(a)) / a
    first, second = (np.sum(weight * bend**k) / np.sqrt(2 * np.pi) for k in (1, 2))
    return mean + first, second - first**2 + t
  bend = {"constant": 0, "linear": t**2 / 4, "quadratic": (t * (1 + t) / 3) ** 2 + t**2 / 4}[name]
  return mean, left**2 * bend + t


@pytest.mark.parametrize("name", RATES)
def test_forward_marginals(name):
  """65,536 draws of φ and noise around one image value: mean and variance within four standard errors."""
  p, x0 = process.Decoupled(name), 0.7
  clean = p.encode(keys_of(4), jnp.full((4, 128, 128, 1), x0))
  eps = jax.random.normal(jax.random.key(9), (4, 128, 128, 1))
  for t in (0.05, 0.6):
    x = np.asarray(p.perturb(clean, eps, t), np.float64).ravel()
    mean, variance = marginal(name, x0, t)
    centred = (x - mean) ** 2
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / x.size), t
    assert abs(centred.mean() - variance) < 4 * centred.std() / np.sqrt(x.size), t


def test_free_parameters_are_normal_one_key_an_image():
  for clamp in (False, True):
    p = process.Decoupled("quadratic", clamp)
    clean = np.asarray(p.encode(keys_of(3), jnp.zeros((3, 64, 64, 2))))
    free = clean[..., :4]
    alone = p.encode(keys_of(3)[1:2], jnp.zeros((1, 64, 64, 2)))
    np.testing.assert_array_equal(alone[0], clean[1])
    assert len(np.unique(free)) > (0.6 if clamp else 0.99) * free.size
    if clamp:
      assert np.abs(free).max() == 1 and abs(np.mean(np.abs(free) == 1) - 0.3173) < 0.02
    else:
      assert abs(free.mean()) < 4 / np.sqrt(free.size) and abs(free.var() - 1) < 4 * np.sqrt(2 / free.size)


@pytest.mark.parametrize("name", RATES)
def test_velocity_is_h_and_the_noise_of_a_root(name, x64):
  p, t = process.Decoupled(name), jnp.array([1e-4, 0.2, 0.7, 1.0])
  clean, eps = p.encode(keys_of(4), images()), jax.random.normal(jax.random.key(1), (4, 3, 3, 2), float)
  by_hand = RATES[name](split(p, clean), np.asarray(t).reshape(-1, 1, 1, 1))
  by_hand = by_hand + eps / (2 * np.sqrt(t).reshape(-1, 1, 1, 1))
  np.testing.assert_allclose(p.velocity(Prediction(clean, eps), t), by_hand, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", RATES)
def test_thresholds_keep_the_free_parameters_and_the_state(name, x64):
  p, t = process.Decoupled(name), 0.4
  clean, eps = p.encode(keys_of(4), images()), jax.random.normal(jax.random.key(1), (4, 3, 3, 2), float)
  pred = guidance.threshold(lambda x, t: Prediction(clean, eps), p, 0.5)(0 * eps, t)
  np.testing.assert_allclose(p.decode(pred.clean), np.clip(images(), -0.5, 0.5), atol=1e-9)
  np.testing.assert_allclose(p.perturb(pred.clean, pred.eps, t), p.perturb(clean, eps, t), atol=1e-9)
  free = 2 * (p.parameters - 1)
  np.testing.assert_array_equal(pred.clean[..., :free], clean[..., :free])


def test_what_is_not_gaussian_says_so():
  for name in ("linear", "quadratic", "exponential", "sine"):
    p = process.Decoupled(name)
    assert not p.is_gaussian and p.sigma(0.25) == 0.5
    denoise = process.reframe(lambda x, t: Prediction(x, x), process.EDM(), p)
    calls = (lambda: p.alpha(0.5), lambda: p.inverse(0.5), lambda: p.noise_level(0.5))
    for call in (*calls, lambda: denoise(jnp.zeros((1, 2, 2, 1)), 0.5)):
      with pytest.raises(ValueError, match=rf"Decoupled\('{name}'\) is not a Gaussian process: .*only 'constant'"):
        call()
  assert process.Decoupled().is_gaussian
  assert hash(process.Decoupled("sine")) == hash(process.Decoupled("sine")) != hash(process.Decoupled())


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="attenuation must be one of 'constant', .*'sine', got 'cubic'"):
    process.Decoupled("cubic")
  p, x = process.Decoupled("linear"), jnp.zeros((2, 3, 3, 1))
  clean = p.encode(keys_of(2), x)
  for t in (-0.1, 1.001, float("nan"), np.array([0.5, 2.0]), jnp.array([0.5, -1.0])):
    calls = (lambda: p.signal(clean, t), lambda: p.perturb(clean, x, t), lambda: p.prior(keys_of(2), (3, 3, 1), t))
    scales = (lambda: p.sigma(t), lambda: process.Decoupled().alpha(t), lambda: p.polar(t))
    for call in (*calls, *scales, lambda: p.velocity(Prediction(clean, x), t)):
      with pytest.raises(ValueError, match=r"t of a decoupled process must be in \[0, 1\], got"):
        call()
  with pytest.raises(ValueError, match=r"encode draws φ of Decoupled\('linear'\): keys must hold one key an image"):
    p.encode(None, x)
  with pytest.raises(ValueError, match=r"clean must have 2 times the channels of an image, got shape \[2, 3, 3, 1\]"):
    p.signal(x, 0.5)
