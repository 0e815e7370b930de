"""Grids against the paper's constants; laws against their distribution functions."""

import jax
import numpy as np
import pytest
import scipy.stats

from diffusion_jax import times


def test_edm_grid_is_the_papers():
  grid = times.edm_grid(18)
  i = np.arange(18)
  expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  np.testing.assert_allclose(grid, np.append(expected, 0), rtol=1e-12)
  assert grid.dtype == np.float64 and grid[0] == pytest.approx(80) and grid[-2] == pytest.approx(0.002)
  np.testing.assert_allclose(times.edm_grid(1), [80, 0])


def test_vp_and_ve_grids():
  np.testing.assert_allclose(times.vp_grid(5)[[0, -2]], np.sqrt(np.expm1([10.05, 1.0995e-4])), rtol=1e-5)
  ve = times.ve_grid(5)
  np.testing.assert_allclose(ve[1:5] / ve[:4], (0.02 / 100) ** 0.25)
  assert ve[0] == 100 and ve[-1] == 0


def test_iddpm_levels_have_the_papers_constants():
  u = times.iddpm_levels()
  assert u[1000] == 0 and np.all(np.diff(u) < 0)
  assert (u[999], u[8], u[0]) == pytest.approx((0.00642, 80.204, 20291), rel=1e-3)
  grid = times.iddpm_grid(20)  # the paper's formula with j_0 = 8
  index = np.floor(8 + (999 - 8) / 19 * np.arange(20) + 0.5).astype(int)
  np.testing.assert_array_equal(grid, np.append(u[index], 0))


PUBLISHED = [(4, 0.3), (5, 0.2), (6, 0.1), (7, 0.015), (8, 0.0035), (9, 5.5e-4), (12, 1e-4)]


@pytest.mark.parametrize("nfe, sigma_min", PUBLISHED)
def test_dpdm_grid(nfe, sigma_min):
  grid = times.dpdm_grid(nfe)
  k = np.arange(nfe)
  expected = (80 ** (1 / 40) + k / (nfe - 1) * (sigma_min ** (1 / 40) - 80 ** (1 / 40))) ** 40
  np.testing.assert_allclose(grid, np.append(expected, 0), rtol=1e-9)


def test_time_grids():
  np.testing.assert_array_equal(times.respaced(1000, 5), [1000, 800, 600, 400, 200, 0])
  np.testing.assert_array_equal(times.respaced(4000, 3), [4000, 2667, 1333, 0])
  np.testing.assert_allclose(times.decoupled_grid(4), [1, 0.75, 0.5, 0.25, 0])
  np.testing.assert_allclose(times.decoupled_grid(4, power=2), [1, 0.75**2, 0.25, 0.0625, 0])
  assert np.all(np.diff(times.respaced(1000, 999)) < 0)


def test_pad_repeats_the_last_positive_level():
  np.testing.assert_array_equal(times.pad([3.0, 2.0, 0.0], 4), [3, 2, 2, 2, 0])
  np.testing.assert_array_equal(times.pad([3.0, 0.0], 1), [3, 0])


@pytest.mark.parametrize("call, message", [
  (lambda: times.edm_grid(0), "whole number of steps >= 1, got 0"),
  (lambda: times.edm_grid(2.5), "whole number"),
  (lambda: times.edm_grid(5, 2.0, 1.0), "0 < sigma_min <= sigma_max, got 2.0 and 1.0"),
  (lambda: times.edm_grid(5, rho=0), "rho must be positive, got 0"),
  (lambda: times.decoupled_grid(4, 0.0), "power must be positive, got 0.0"),
  (lambda: times.respaced(10, 11), "n = 11 steps of a chain of 10"),
  (lambda: times.iddpm_grid(2000), "levels in .* got n = 2000"),
  (lambda: times.pad(np.ones(5), 3), "does not fit max_steps = 3"),
])  # fmt: skip
def test_bad_grids_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize("law, transform, distribution", [
  (times.lognormal(-1.2, 1.2), np.log, scipy.stats.norm(-1.2, 1.2)),
  (times.log_uniform(0.02, 100), np.log, scipy.stats.uniform(np.log(0.02), np.log(100 / 0.02))),
  (times.uniform(0.25, 1.0), lambda t: t, scipy.stats.uniform(0.25, 0.75)),
  (times.vp_uniform(), lambda n: (-0.1 + np.sqrt(0.01 + 39.8 * np.log1p(n**2))) / 19.9, scipy.stats.uniform(1e-5, 1)),
])  # fmt: skip
def test_laws_have_their_distribution(law, transform, distribution):
  draws = np.asarray(law(jax.random.key(0), 20_000), np.float64)
  assert scipy.stats.kstest(transform(draws), distribution.cdf).pvalue > 1e-3


def test_discrete_laws_are_uniform_over_their_levels():
  t = np.asarray(times.discrete(10)(jax.random.key(0), 20_000))
  counts = np.bincount(t.astype(int), minlength=11)
  assert counts[0] == 0 and scipy.stats.chisquare(counts[1:]).pvalue > 1e-3
  levels = np.asarray(times.iddpm_uniform()(jax.random.key(0), 5000))
  assert np.isin(levels, times.iddpm_levels()[:-1].astype(np.float32)).all() and len(np.unique(levels)) > 900
