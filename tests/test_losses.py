"""Distances by hand, weights by their closed forms, the variational bound by integration, gradients and minimisers."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import scipy.stats

from diffusion_jax import losses, process
from diffusion_jax import parameterization as par

A = jnp.array([[[[1.0], [2.0]]], [[[0.0], [0.0]]]])
B = jnp.array([[[[0.0], [4.0]]], [[[0.0], [0.0]]]])


def test_distances():
  np.testing.assert_allclose(losses.squared_error(A, B), [5, 0])
  np.testing.assert_allclose(losses.absolute_error(A, B), [3, 0])
  np.testing.assert_allclose(losses.pseudo_huber(A, B, 2.0), [np.sqrt(9) - 2, 0])
  c = 0.00054 * np.sqrt(2)
  np.testing.assert_allclose(losses.pseudo_huber(A, B), [np.sqrt(5 + c * c) - c, 0], rtol=1e-6)
  gradient = jax.grad(lambda a: losses.pseudo_huber(a, B).sum())(B)
  np.testing.assert_array_equal(gradient, 0 * B)  # no 0/0 at the minimum


def test_pseudo_is_the_root_without_cancellation():
  """Against 50 digits, over all that float32 holds; the derivative is 1/(2√(d + c²)). Zero at zero, c² = 0 included."""
  for c in (6.9e-5, 0.03, 2.0):
    d = np.geomspace(1e-20, 1e6, 40, dtype=np.float32)
    with decimal.localcontext(prec=50):
      exact, shift = [decimal.Decimal(float(v)) for v in d], decimal.Decimal(c)
      values = np.array([float((v + shift**2).sqrt() - shift) for v in exact])
    got, slope = jax.vmap(jax.value_and_grad(lambda v, c=c: losses.pseudo(v, c)))(jnp.asarray(d))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, values, rtol=1e-6)
    np.testing.assert_allclose(slope, 0.5 / np.sqrt(d.astype(np.float64) + c**2), rtol=1e-6)
  zero = jnp.zeros((2, 4, 4, 1), jnp.float32) + 0.3
  for c in (None, 6.9e-5, 1e-12, 1e-25, 0.0):
    value, gradient = jax.value_and_grad(lambda a, c=c: losses.pseudo_huber(a, zero, c).sum())(zero)
    assert value == 0 and gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, 0 * zero)


def test_edm_weight_balances_the_networks_output_scale():
  sigma = jnp.geomspace(0.002, 80, 20)
  np.testing.assert_allclose(losses.edm_weight(sigma, 0.7), par.EDMPreconditioner(0.7)(sigma).c_out ** -2, rtol=1e-5)
  np.testing.assert_allclose(losses.inverse_variance_weight(sigma), np.asarray(sigma) ** -2.0, rtol=1e-6)


# --- the variational bound --------------------------------------------------------------------------------------------

BOUND = jax.jit(losses.variational_bound, static_argnums=0)
PROCESSES = {"DDPM": process.DDPM(), "Cosine": process.Cosine(), "EDM": process.EDM(), "VP": process.VP()}


def images(values):
  return np.asarray(values, np.float64).reshape(-1, 1, 1, 1)


def posterior(name, x0, x_t, t, s):
  """Mean and variance of q(x_s | x_t, x_0) by Bayes's rule, and the variance of q(x_t | x_s)."""
  (a_t, s_t), (a_s, s_s) = oracle.SCHEDULES[name](t)[:2], oracle.SCHEDULES[name](s)[:2]
  a = a_t / a_s
  beta = s_t**2 - a**2 * s_s**2
  variance = 1 / (1 / s_s**2 + a**2 / beta)
  return variance * (a_s * x0 / s_s**2 + a * x_t / beta), variance, beta


@pytest.mark.parametrize("name, t, s", [("DDPM", 500, 499), ("DDPM", 2, 1), ("Cosine", 1500, 1300), ("EDM", 2.0, 0.7)])
def test_bound_is_the_integrated_divergence(name, t, s, x64):
  """∫ q·log(q/p) by the trapezoidal rule, with a state x_t that the bound never sees; summed over two pixels."""
  x0, clean, v, x_t = np.array([0.3, -0.2]), np.array([-0.1, 0.25]), np.array([-0.6, 0.4]), np.array([0.7, -1.1])
  total = 0
  for i in range(2):
    mean, variance, beta = posterior(name, x0[i], x_t[i], t, s)
    model_mean = posterior(name, clean[i], x_t[i], t, s)[0]
    w = (v[i] + 1) / 2
    log_q = scipy.stats.norm(mean, variance**0.5).logpdf
    log_p = scipy.stats.norm(model_mean, (beta**w * variance ** (1 - w)) ** 0.5).logpdf
    x = mean + np.linspace(-12, 12, 4001) * variance**0.5
    total += np.trapezoid(np.exp(log_q(x)) * (log_q(x) - log_p(x)), x)
  shaped = [np.reshape(values, (1, 1, 2, 1)) for values in (clean, v, x0)]
  np.testing.assert_allclose(BOUND(PROCESSES[name], *shaped, float(t), float(s)), [total], rtol=1e-7)


def test_bound_is_least_at_the_true_variance_and_leaves_the_mean_alone(x64):
  """The Σ that minimises the divergence is β̃ + (μ̃ − μ)², where the mean errs; β̃ and no divergence where not."""
  t, s, x0, clean = 20.0, 10.0, images([0.1, 0.1, 0.1]), images([0.1, 0.16, 0.03])
  bound = lambda clean, v: BOUND(P, clean, v, x0, t, s).sum()
  P = PROCESSES["DDPM"]
  mean, variance, beta = posterior("DDPM", x0, 0.0, t, s)
  best = variance + (mean - posterior("DDPM", clean, 0.0, t, s)[0]) ** 2
  assert variance < best.max() < beta
  v = 2 * np.log(best / variance) / np.log(beta / variance) - 1
  np.testing.assert_allclose(jax.grad(bound, 1)(clean, v), 0 * v, atol=1e-9)
  np.testing.assert_array_less(0.01, jax.grad(bound, 1)(clean, v + 0.1))
  np.testing.assert_array_less(jax.grad(bound, 1)(clean, v - 0.1), -0.01)
  np.testing.assert_allclose(BOUND(P, clean, v, x0, t, s)[0], 0, atol=1e-12)
  for end in (0.0, s):
    np.testing.assert_array_equal(jax.grad(lambda clean: BOUND(P, clean, v, x0, t, end).sum())(clean), 0 * clean)


@pytest.mark.parametrize("t, clean", [(1.0, 0.013), (1.0, -1.02), (30.0, 0.999), (300.0, -0.4)])
@pytest.mark.parametrize("wide", [True, False], ids=["x64", "float32"])
def test_the_last_term_is_a_distribution_over_the_256_values(t, clean, wide):
  """Bin for bin that of SciPy's normal law, whose 256 masses sum to 1; finite beyond what SciPy can tell from 0."""
  with jax.enable_x64(wide):
    v, levels = images(np.full(256, 0.3)), np.arange(256) * 2 / 255 - 1
    nats = np.asarray(BOUND(PROCESSES["DDPM"], images(np.full(256, clean)), v, images(levels), t, 0.0), np.float64)
  np.testing.assert_allclose(np.exp(-nats).sum(), 1, rtol=1e-9 if wide else 1e-4)
  beta = oracle.ddpm(t)[1] ** 2
  step = oracle.eta2_ddpm(oracle.ddpm, 2 * t, t)  # what stands for β̃ = 0
  std = beta ** (0.65 / 2) * step ** (0.35 / 2)
  side = np.where(levels > clean, -1, 1)  # to the lower tail
  upper, lower = ((side * (levels - clean) + edge / 255) / std for edge in (1, -1))
  lower[np.arange(256) == np.where(side > 0, 0, 255)] = -np.inf
  upper[np.arange(256) == np.where(side > 0, 255, 0)] = np.inf
  mass = scipy.stats.norm.cdf(upper) - scipy.stats.norm.cdf(lower)
  seen = mass > 1e-300
  assert seen.sum() > 40
  np.testing.assert_allclose(nats[seen], -np.log(mass[seen]), rtol=1e-6 if wide else 1e-4)
  assert np.isfinite(nats).all()


def test_learned_variance_at_the_first_step_is_clipped_as_by_iddpm():
  """log β̃_1 is log β̃_2; in a grid of one step, 2t being past the chain's end, it is log β/2."""
  for name in ("DDPM", "Cosine"):
    p, schedule = PROCESSES[name], oracle.SCHEDULES[name]
    low, high = (losses.learned_log_variance(p, images([v]), 1.0, 0.0).item() for v in (-1, 1))
    np.testing.assert_allclose(low, np.log(oracle.eta2_ddpm(schedule, 2, 1)), rtol=1e-4)
    np.testing.assert_allclose(high, np.log(schedule(1)[1] ** 2), rtol=1e-4)
    low, high = (losses.learned_log_variance(p, images([v]), float(p.num_steps), 0.0).item() for v in (-1, 1))
    np.testing.assert_allclose(high - low, np.log(2), rtol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_bound_and_its_gradient_in_float32(name):
  """One batch of all times, the last step among them, against float64: no cancellation, no 0·∞.

  Gradients below 1e-9 may be noise: they are in proportion to log(σ_t/σ_s), and σ is 1 to rounding at the end of VP.
  """
  p = PROCESSES[name]
  t = {"DDPM": np.arange(1.0, 1001, 37), "Cosine": np.arange(1.0, 4001, 133), "VP": np.linspace(0.002, 1, 30)}.get(
    name, np.geomspace(0.002, 1e6, 30)
  )
  s = {"DDPM": t - 1, "Cosine": t - 1}.get(name, np.append(0.0, t[:-1]))
  rng = np.random.default_rng(0)
  x0 = np.round((rng.uniform(-1, 1, (len(t), 4, 4, 1)) + 1) * 127.5) / 127.5 - 1
  clean, v = x0 + 0.1 * rng.standard_normal(x0.shape), rng.uniform(-1, 1, x0.shape)

  def both(dtype):
    arguments = [jnp.asarray(a, dtype) for a in (clean, v, x0, t, s)]
    gradient = jax.grad(lambda v: BOUND(p, arguments[0], v, *arguments[2:]).sum())
    return np.asarray(BOUND(p, *arguments)), np.asarray(gradient(arguments[1]))

  value, gradient = both(jnp.float32)
  assert value.dtype == gradient.dtype == np.float32
  with jax.enable_x64(True):
    exact_value, exact_gradient = both(jnp.float64)
  np.testing.assert_allclose(value, exact_value, rtol=1e-3)
  error, size = (np.linalg.norm(g.reshape(len(t), -1), axis=1) for g in (gradient - exact_gradient, exact_gradient))
  np.testing.assert_array_less(error, 2e-3 * size + 1e-9)
