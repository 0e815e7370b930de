"""DDDM's sampler: a fixed-point iteration at one state and one time, from a draw of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import process, samplers, times
from diffusion_jax.types import Prediction

T = 50
P = process.DDPM(T, 0.1 / T, 20 / T)
SHAPE = (3, 2, 1)
A, B, C = -0.6, 0.3, 0.2  # f(x̄, x) = A·x̄ + B·x + C, whose fixed point is (B·x + C)/(1 − A)


def affine(x, t, previous):
  return Prediction(A * previous + B * x + C, jnp.full_like(x, jnp.nan))


def keys_of(n):
  return jax.vmap(jax.random.key)(jnp.arange(n))


def grid_of(n):
  return np.append(np.full(n, float(T)), 0.0)


def start(n=3):
  """Keys, x_T, and the first estimate in float64 NumPy, found by the trajectory."""
  keys = keys_of(n)
  x = P.prior(keys, SHAPE, T)
  _, estimates = samplers.dddm(affine, P, x, grid_of(1), keys, trajectory=True)
  return keys, x, np.asarray(estimates[0], float)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_estimates_are_those_of_a_plain_loop(n):
  """x̄ ← A·x̄ + B·x_T + C with one x_T, in float64 NumPy; all of them, the first too, are in the trajectory."""
  keys, x, image = start()
  got, estimates = samplers.dddm(affine, P, x, grid_of(n), keys, clamp=None, trajectory=True)
  expected = [image]
  for _ in range(n):
    expected.append(A * expected[-1] + B * np.asarray(x, float) + C)
  np.testing.assert_allclose(estimates, expected, atol=1e-6)
  np.testing.assert_array_equal(estimates[-1], got)
  np.testing.assert_array_equal(got, samplers.dddm(affine, P, x, grid_of(n), keys, clamp=None))


def test_the_limit_is_the_fixed_point():
  """Reached at the rate |A|: after n iterations the distance is |A|^n of the first."""
  keys, x, first = start()
  fixed = (B * np.asarray(x, float) + C) / (1 - A)
  run = lambda n: samplers.dddm(affine, P, x, grid_of(n), keys, clamp=None)
  np.testing.assert_allclose(run(60), fixed, atol=1e-6)
  np.testing.assert_allclose(run(5) - fixed, A**5 * (first - fixed), atol=1e-6)


def test_the_network_sees_one_state_and_the_last_time():
  """Whatever the grid has between its ends; n evaluations, each given what the one before said."""
  seen = []

  def recorded(x, t, previous):
    pred = affine(x, t, previous)
    jax.debug.callback(lambda *values: seen.append([np.asarray(v) for v in values]), x, t, previous, pred.clean)
    return pred

  keys, x, first = start()
  for grid in (grid_of(4), np.array([T, 20.0, 20.0, 3.0, 0.0])):
    seen.clear()
    out = samplers.dddm(recorded, P, x, grid, keys, clamp=None)
    jax.effects_barrier()
    assert len(seen) == 4
    for state, t, _, _ in seen:
      np.testing.assert_array_equal(state, x)
      assert t == T
    said = [first, *(row[3] for row in seen)]
    for before, (_, _, previous, _) in zip(said, seen):
      np.testing.assert_allclose(previous, before, rtol=1e-6)
    np.testing.assert_array_equal(said[-1], out)


def test_every_estimate_but_the_first_is_clipped():
  """By hand at limit .4, which is passed on to the next iteration; the default is 1, None is none."""
  keys, x, image = start()
  wide = lambda x, t, previous: Prediction(4 * affine(x, t, previous).clean, x)
  run = lambda **more: samplers.dddm(wide, P, x, grid_of(3), keys, trajectory=True, **more)[1]
  for limit, estimates in ((0.4, run(clamp=0.4)), (1.0, run()), (np.inf, run(clamp=None))):
    expected = [image]
    for _ in range(3):
      expected.append(np.clip(4 * (A * expected[-1] + B * np.asarray(x, float) + C), -limit, limit))
    np.testing.assert_allclose(estimates, expected, rtol=1e-5, atol=1e-5)
  assert np.abs(image).max() > 1 and np.abs(run(clamp=None)).max() > 1


def test_traced_iterations_of_a_padded_grid_are_those_of_its_own():
  """Bit for bit, in one compilation; the trajectory stays where the iterations end.

  A loop of one, which XLA takes apart and rounds otherwise, within the last bit.
  """
  keys, x, _ = start()
  traces = []

  @jax.jit
  def padded(grid, iterations, clamp):
    traces.append(1)
    return samplers.dddm(affine, P, x, grid, keys, iterations=iterations, clamp=clamp, trajectory=True)

  own = jax.jit(lambda grid, clamp: samplers.dddm(affine, P, x, grid, keys, clamp=clamp, trajectory=True))
  for n in (1, 2, 5, 16):
    got, estimates = padded(jnp.asarray(times.pad(grid_of(n), 16), jnp.float32), n, 0.7)
    alone, all_of_them = own(jnp.asarray(grid_of(n), jnp.float32), 0.7)
    np.testing.assert_allclose(estimates[: n + 1], all_of_them, rtol=0, atol=2e-7 if n == 1 else 0)
    np.testing.assert_allclose(got, alone, rtol=0, atol=2e-7 if n == 1 else 0)
    np.testing.assert_array_equal(estimates[n:], np.broadcast_to(got, (17 - n, *got.shape)))
  assert len(traces) == 1


def test_iterations_passed_over_cost_no_evaluation():
  calls = []

  def counted(x, t, previous):
    jax.debug.callback(lambda: calls.append(1))
    return affine(x, t, previous)

  keys, x, _ = start()
  jax.jit(lambda n: samplers.dddm(counted, P, x, grid_of(16), keys, iterations=n))(3).block_until_ready()
  jax.effects_barrier()
  assert len(calls) == 3


def test_an_image_depends_on_its_key_alone():
  run = jax.jit(lambda keys: samplers.dddm(affine, P, P.prior(keys, SHAPE, T), grid_of(2), keys, clamp=None))
  np.testing.assert_allclose(run(keys_of(9))[4:6], run(keys_of(9)[4:6]), atol=1e-6)
  assert len(np.unique(run(keys_of(9))[:, 0, 0, 0])) == 9


def test_the_first_estimate_is_normal_and_independent_of_the_state():
  """4,096 images of 6 numbers: mean, variance and correlation with x_T within five standard errors."""
  keys = keys_of(4096)
  x = P.prior(keys, SHAPE, T)
  _, (first, _) = samplers.dddm(affine, P, x, grid_of(1), keys, trajectory=True)
  error = 5 / np.sqrt(first.size)
  assert abs(np.mean(first)) < error
  assert abs(np.mean(np.square(first)) - 1) < error * np.sqrt(2)
  assert abs(np.corrcoef(np.ravel(first), np.ravel(x))[0, 1]) < error
  for image in first[:8]:  # nor is it the state of another image, or a draw that all share
    assert np.abs(x - image).max((1, 2, 3)).min() > 0.01
    assert np.sum(np.abs(first - image).max((1, 2, 3)) < 0.01) == 1


def test_memory_does_not_grow_with_the_number_of_iterations():
  def temporary_bytes(n):
    keys = keys_of(8)
    run = jax.jit(lambda x: samplers.dddm(affine, P, x, grid_of(n), keys))
    return run.lower(jnp.ones((8, 16, 16, 1))).compile().memory_analysis().temp_size_in_bytes

  assert temporary_bytes(256) < temporary_bytes(8) + 8192  # the counter


def test_it_can_be_differentiated(x64):
  """x̄_n = A^n·x̄_0 + (B·x + C)·(1 − A^n)/(1 − A): its slope in x, with traced iterations too."""
  keys, x = keys_of(2), jnp.ones((2, *SHAPE))
  total = lambda x, n: samplers.dddm(affine, P, x, grid_of(8), keys, iterations=n, clamp=None).sum()
  for n in (1, 5):
    slope = B * (1 - A**n) / (1 - A)
    np.testing.assert_allclose(jax.grad(total)(x, n), np.full(x.shape, slope), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x, n), np.full(x.shape, slope), rtol=1e-12)


@pytest.mark.parametrize("change, message", [
  ({"keys": None}, "dddm draws noise: keys must hold one PRNG key an image, got None"),
  ({"keys": keys_of(5)}, r"one key an image \[2\], got shape \[5\]"),
  ({"x": jnp.ones(2)}, r"x must be a batch of images .* got shape \[2\]"),
  ({"grid": np.array([0.0, 50.0])}, "grid must decrease from a finite t to 0"),
  ({"iterations": 0}, "iterations must be 1 to 3 for a grid of 3 steps, got 0"),
  ({"iterations": 4}, "iterations must be 1 to 3 for a grid of 3 steps, got 4"),
  ({"clamp": 0.0}, "clamp must be a positive number, or None for none, got 0.0"),
])  # fmt: skip
def test_bad_arguments_are_named(change, message):
  given = {"x": jnp.ones((2, *SHAPE)), "grid": grid_of(3), "keys": keys_of(2), **change}
  with pytest.raises(ValueError, match=message):
    samplers.dddm(affine, P, given.pop("x"), given.pop("grid"), given.pop("keys"), **given)
