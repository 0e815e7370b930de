"""Editing: SDEdit between the image and a sample, RePaint's exact moments and their limit, slerp."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from diffusion_jax import editing, process, samplers, sampling, times
from diffusion_jax.types import Prediction

M, S2 = 0.3, 0.64
GRIDS = {
  "EDM": (process.EDM(), lambda n: times.edm_grid(n)),
  "VP": (process.VP(), lambda n: np.append(np.linspace(1, 1e-3, n), 0)),
  "Decoupled": (process.Decoupled(), times.decoupled_grid),
}
MEAN = np.array([0.2, -0.1])  # of a pair of pixels, of which the first is known
COVARIANCE = np.array([[0.36, 0.288], [0.288, 0.36]])
KNOWN = 0.9
SLOPE = COVARIANCE[1, 0] / COVARIANCE[0, 0]
GIVEN = MEAN[1] + SLOPE * (KNOWN - MEAN[0]), COVARIANCE[1, 1] - SLOPE * COVARIANCE[0, 1]  # mean, variance of the second


def repaint_moments(schedule, grid, moves):
  """Mean and variance of the second pixel after RePaint's moves, in NumPy: each is affine with Gaussian noise."""
  alpha, sigma = schedule(grid[0])[:2]
  mean, cov = np.array([alpha * KNOWN, 0.0]), sigma**2 * np.eye(2)
  for begin, end in moves:
    (a_t, s_t), (a_s, s_s) = schedule(grid[begin])[:2], schedule(grid[end])[:2]
    if end > begin:
      gain = a_t * COVARIANCE @ np.linalg.inv(a_t**2 * COVARIANCE + s_t**2 * np.eye(2))
      eta2 = oracle.eta2_ddpm(schedule, grid[begin], grid[end])
      on_x0, on_eps = a_s, np.sqrt(max(s_s**2 - eta2, 0))
      a = (on_x0 - on_eps * a_t / s_t) * gain + on_eps / s_t * np.eye(2)
      b = (on_x0 - on_eps * a_t / s_t) * (MEAN - a_t * gain @ MEAN)
      filled = a[1] @ mean + b[1], a[1] @ cov @ a[1] + eta2
      mean, cov = np.array([a_s * KNOWN, filled[0]]), np.diag([s_s**2, filled[1]])
    else:
      ratio = a_s / a_t
      mean, cov = ratio * mean, ratio**2 * cov + (s_s**2 - ratio**2 * s_t**2) * np.eye(2)
  return mean[1], cov[1, 1]


@pytest.mark.parametrize("name, resample, jump", [("EDM", 1, 1), ("VP", 4, 3), ("Decoupled", 3, 2)])
def test_repaint_has_its_exact_moments_and_keeps_what_is_known(name, resample, jump):
  p, grid_of = GRIDS[name]
  grid, count = np.asarray(grid_of(12)), 20_000
  x = jnp.broadcast_to(jnp.array([KNOWN, np.nan]).reshape(1, 2, 1), (count, 1, 2, 1))
  mask = np.array([0, 1]).reshape(1, 2, 1)
  denoise = oracle.correlated_denoise(p, MEAN, COVARIANCE)
  run = lambda x, keys: editing.inpaint(denoise, p, x, mask, grid, keys, resample=resample, jump=jump)
  found = np.asarray(jax.jit(run)(x, sampling.keys_of(np.arange(count))))
  np.testing.assert_array_equal(found[:, 0, 0, 0], np.float32(KNOWN))
  moves = editing.repaint_moves(12, resample, jump)
  mean, variance = repaint_moments(oracle.SCHEDULES[name], grid, moves)
  hole = found[:, 0, 1, 0]
  assert abs(hole.mean() - mean) < 4.5 * np.sqrt(variance / count)
  assert abs(hole.var() / variance - 1) < 4.5 * np.sqrt(2 / count)


def test_repaint_tends_to_the_conditional_law():
  """The mean as it repeats more, the variance as the steps grow too; one pass keeps a third of the mean's way away."""
  errors = {}
  for steps, resample in ((250, 1), (250, 2), (250, 10), (250, 100), (50, 100)):
    moves = editing.repaint_moves(steps, resample, 1)
    mean, variance = repaint_moments(oracle.edm, times.edm_grid(steps), moves)
    errors[steps, resample] = abs(mean - GIVEN[0]), abs(variance - GIVEN[1])
  means = [errors[250, resample][0] for resample in (1, 2, 10, 100)]
  assert means == sorted(means, reverse=True) and means[0] > 0.2 and means[-1] < 0.003
  assert errors[250, 100][1] < 0.01 and errors[50, 100][1] > 3 * errors[250, 100][1]


def test_moves_are_those_of_the_paper():
  """Every step once and `resample` − 1 times more where a stretch of `jump` is repeated; the last to 0."""
  np.testing.assert_array_equal(editing.repaint_moves(3, 1, 1), [[0, 1], [1, 2], [2, 3]])
  expected = [[0, 1], [1, 0], [0, 1], [1, 2], [2, 1], [1, 2], [2, 3]]
  np.testing.assert_array_equal(editing.repaint_moves(3, 2, 1), expected)
  moves = editing.repaint_moves(250, 10, 10)
  assert np.array_equal(moves[1:, 0], moves[:-1, 1]) and moves[0, 0] == 0 and moves[-1, 1] == 250
  up = moves[moves[:, 1] < moves[:, 0]]
  assert set(np.subtract(*up.T)) == {10} and len(up) == 9 * 24  # at 1, 11, ..., 231 steps from the end
  np.testing.assert_array_equal(editing.repaint_moves(5, 10, 10), editing.repaint_moves(5, 1, 1))


def test_masks_of_all_shapes_are_one_and_images_are_their_own():
  p, grid = process.EDM(), times.edm_grid(4)
  x, keys = jnp.linspace(-1, 1, 24).reshape(2, 2, 3, 2), sampling.keys_of([3, 5])
  hole = np.array([[0, 1, 1], [0, 0, 1]], bool)[..., None]
  run = jax.jit(
    lambda x, mask, keys, grid: editing.inpaint(oracle.gaussian_denoise(p, M, S2), p, x, mask, grid, keys, jump=2)
  )
  image = run(x, hole, keys, grid)
  for mask in (hole[None], np.broadcast_to(hole, x.shape), 255 * np.broadcast_to(hole, (2, 2, 3, 1)).astype(np.uint8)):
    np.testing.assert_allclose(run(x, mask, keys, grid), image, rtol=1e-6)
  np.testing.assert_allclose(run(x[1:], hole, keys[1:], grid), image[1:], rtol=1e-5)
  again, states = editing.inpaint(
    oracle.gaussian_denoise(p, M, S2), p, x, hole, times.pad(grid, 7), keys, jump=2, trajectory=True
  )
  np.testing.assert_allclose(again, image, rtol=1e-5)  # a padded grid, known before compilation
  assert len(states) == len(editing.repaint_moves(4, 10, 2)) + 1
  np.testing.assert_array_equal(states[-1], again)


@pytest.mark.parametrize("name", GRIDS)
def test_sdedit_goes_from_the_image_to_a_sample(name):
  """Strength 1 is sampling, but for the signal that is left at grid[0]; the least strength gives the image."""
  p, grid_of = GRIDS[name]
  grid, keys = np.asarray(grid_of(20)), sampling.keys_of([1, 2])
  denoise, x = oracle.gaussian_denoise(p, M, S2), jnp.linspace(-1, 1, 32).reshape(2, 4, 4, 1)
  edit = lambda strength, **more: editing.sdedit(denoise, p, x, grid, keys, strength=strength, **more)
  start = p.prior(keys, x.shape, grid[0])
  sampled = samplers.heun(denoise, p, start, grid)
  left = np.abs(np.asarray(samplers.heun(denoise, p, start + p.signal(x, grid[0]), grid) - sampled)).max()
  assert left < 0.03 and (name != "Decoupled" or left == 0)
  np.testing.assert_allclose(edit(1.0), sampled, atol=left + 1e-5)
  np.testing.assert_array_equal(edit(0.0), x)
  if name != "Decoupled":  # whose first step from 0 is to the noise level √(1/20)
    assert np.abs(edit(1e-3) - x).max() < 5 * float(p.noise_level(grid[-2]))
  by_ddpm = edit(0.4, sampler=samplers.ddpm)
  begin = p.signal(p.encode(keys, x), grid[12]) + p.prior(keys, x.shape, grid[12])
  np.testing.assert_allclose(by_ddpm, samplers.ddpm(denoise, p, begin, grid[12:], keys), rtol=1e-5)


def test_sdedit_keeps_what_the_flow_keeps(x64):
  """Of N(m, s²): x_0 = m + s·(α(x − m) + σz)/√(α²s² + σ²), for z of the prior and an exact flow."""
  p, keys = process.EDM(), sampling.keys_of(np.arange(3))
  x, grid = jnp.linspace(-1, 1, 48).reshape(3, 4, 4, 1), times.edm_grid(120)
  tail = editing.tail_at(grid, p, 0.7)
  found = editing.sdedit(oracle.gaussian_denoise(p, M, S2), p, x, tail, keys, strength=1)
  noise = p.prior(keys, x.shape, 0.7)
  np.testing.assert_allclose(found, M + 0.8 * (x - M + noise) / np.sqrt(S2 + 0.49), atol=1e-3)


def test_sdedit_of_processes_without_noise_levels():
  p, keys = process.Decoupled("linear"), sampling.keys_of([1, 2])
  x, grid = jnp.linspace(-0.5, 0.5, 8).reshape(2, 2, 2, 1), times.decoupled_grid(8)
  known = lambda state, t: Prediction(p.encode(keys, x), (state - p.signal(p.encode(keys, x), t)) / p.sigma(t))
  np.testing.assert_allclose(editing.sdedit(known, p, x, grid, keys, strength=0.5), x, atol=1e-5)


def test_tails_of_grids():
  grid = times.pad(times.edm_grid(10), 14)
  for strength, steps in ((1, 10), (0.5, 5), (0.01, 1), (0, 0)):
    np.testing.assert_array_equal(editing.tail(grid, strength), times.edm_grid(10)[10 - steps :])
  tail = editing.tail_at(grid, process.EDM(), 1.5)
  assert tail[0] == 1.5 and np.array_equal(tail[1:], [t for t in times.edm_grid(10) if t < 1.5])
  vp = editing.tail_at(process.VP().inverse(times.edm_grid(10)), process.VP(), 1.5)
  np.testing.assert_allclose(process.VP().noise_level(vp), tail, rtol=1e-4)
  np.testing.assert_allclose(editing.tail_at(grid, process.EDM(), 80.0), times.edm_grid(10))


def test_slerp():
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.normal(size=(5, 4, 4, 2)), jnp.float32) for _ in range(2))
  norm = lambda x: np.linalg.norm(np.asarray(x).reshape(len(x), -1), axis=1)
  np.testing.assert_array_equal(editing.slerp(a, b, 0.0), a)
  np.testing.assert_array_equal(editing.slerp(a, b, 1.0), b)
  weights = jnp.linspace(0, 1, 5)
  between = editing.slerp(a, b, weights)
  np.testing.assert_allclose(norm(between), (1 - weights) * norm(a) + weights * norm(b), rtol=1e-5)
  np.testing.assert_allclose(between[2], editing.slerp(a, b, 0.5)[2], rtol=1e-6)
  cosine = lambda x, y: np.sum(np.asarray(x) * np.asarray(y), axis=(1, 2, 3)) / norm(x) / norm(y)
  angle = np.arccos(cosine(a, b))
  np.testing.assert_allclose(np.arccos(cosine(a, editing.slerp(a, b, 0.3))), 0.3 * angle, rtol=1e-3)
  right = jnp.zeros((1, 2, 1, 1)).at[0, 0].set(1), jnp.zeros((1, 2, 1, 1)).at[0, 1].set(1)
  np.testing.assert_allclose(editing.slerp(*right, 1 / 3).ravel(), [np.cos(np.pi / 6), np.sin(np.pi / 6)], rtol=1e-6)


def test_slerp_of_parallel_opposite_and_empty_vectors():
  a = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 1)), jnp.float32)
  np.testing.assert_allclose(editing.slerp(a, a, 0.3), a, rtol=1e-5)
  np.testing.assert_allclose(editing.slerp(a, 3 * a, 0.25), 1.5 * a, rtol=1e-5)
  near = a + 1e-6
  assert np.abs(editing.slerp(a, near, 0.5) - a).max() < 1e-5
  for b in (-a, jnp.zeros_like(a)):
    assert np.isfinite(editing.slerp(a, b, 0.5)).all()
  slope = jax.grad(lambda a: editing.slerp(a, a, 0.5).sum())(a)
  assert np.isfinite(slope).all()


X, KEYS, EDM = jnp.zeros((2, 4, 4, 1)), jnp.arange(2), process.EDM()
MASK = np.ones((4, 4, 1))
FILL = lambda mask=MASK, x=X, p=EDM, **more: editing.inpaint(
  oracle.gaussian_denoise(EDM, M, S2), p, x, mask, [0.9, 0.5, 0.0], **{"keys": sampling.keys_of(KEYS), **more}
)
EDIT = lambda strength=0.5, **more: editing.sdedit(
  oracle.gaussian_denoise(EDM, M, S2), EDM, X, [1.0, 0.5, 0.0], strength=strength,
  **{"keys": sampling.keys_of(KEYS), **more},
)  # fmt: skip


@pytest.mark.parametrize("call, message", [
  (lambda: FILL(np.ones((4, 3, 1))), r"mask must be \[2, 4, 4, 1\], with 1 for the batch.*, got shape \[4, 3, 1\]"),
  (lambda: FILL(np.ones((4, 4))), r"mask must be .*, got shape \[4, 4\]"),
  (lambda: FILL(np.ones((3, 4, 4, 1))), r"mask must be .*, got shape \[3, 4, 4, 1\]"),
  (lambda: FILL(x=X[0]), r"x must be \[B, H, W, C\], got shape \[4, 4, 1\]"),
  (lambda: FILL(keys=None), "inpaint draws noise: keys must hold one PRNG key an image, got None"),
  (lambda: FILL(resample=0), "resample must be a positive whole number, got 0"),
  (lambda: FILL(jump=1.5), "jump must be a positive whole number, got 1.5"),
  (lambda: FILL(p=process.Decoupled("linear")), r"Decoupled\('linear'\) is not a Gaussian process"),
  (lambda: EDIT(1.5), r"strength must be in \[0, 1\], got 1.5"),
  (lambda: EDIT(float("nan")), r"strength must be in \[0, 1\], got nan"),
  (lambda: EDIT(keys=None), "sdedit draws noise: keys must hold one PRNG key an image, got None"),
  (lambda: editing.tail_at([1.0, 0.5, 0.0], EDM, 2.0), r"noise_level must be in \(0, 1\], the grid's range, got 2.0"),
  (lambda: editing.slerp(X, X[:1], 0.5), r"a and b must be \[B, ...\] of one shape, got \[2, 4, 4, 1\] and \[1, 4"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
