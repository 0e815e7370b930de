"""The published samplers' own outputs for a Gaussian mixture with an exact denoiser (golden/samplers.*)."""

import json
from pathlib import Path

import jax
import numpy as np
import oracle
import pytest

from diffusion_jax import process, samplers, times

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = json.loads((GOLDEN / "samplers.json").read_text())
ARRAYS = np.load(GOLDEN / "samplers.npz")


def nhwc(x):
  return np.moveaxis(np.asarray(x, np.float64), -3, -1)


# Noise range of the published sampler by grid, where a case names none.
RANGES = {"vp": (None, None), "ve": (0.02, 100.0), "iddpm": (0.002, 81.0), "edm": (0.002, 80.0)}


def setting(case):
  """(process, noise levels) of a case."""
  n, grid = case["num_steps"], case.get("discretization", "edm")
  lo, hi = RANGES[grid]
  if grid == "vp":
    lo, hi = (float(x) for x in np.sqrt(np.expm1(0.5 * 19.9 * np.array([1e-6, 1.0]) + 0.1 * np.array([1e-3, 1.0]))))
  lo, hi = case.get("sigma_min", lo), case.get("sigma_max", hi)
  vp = process.VP.from_range(lo, hi)
  levels = {
    "edm": lambda: times.edm_grid(n, lo, hi, case.get("rho", 7.0)),
    "vp": lambda: times.vp_grid(n, vp.beta_d, vp.beta_min),
    "ve": lambda: times.ve_grid(n, lo, hi),
    "iddpm": lambda: times.iddpm_grid(n, lo, hi),
  }[grid]()
  return {"vp": vp, "ve": process.VE(), "linear": process.EDM()}[case.get("schedule", "linear")], levels


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_matches_the_published_sampler(case, x64):
  p, levels = setting(case)
  means, weights, std = nhwc(ARRAYS["means"]), ARRAYS["weights"], float(ARRAYS["std"])
  grid = p.inverse(levels)
  x = nhwc(ARRAYS["latents"]) * p.sigma(grid[0])
  solver = samplers.euler if case.get("solver") == "euler" else samplers.heun
  options = {"alpha": case["alpha"]} if "alpha" in case else {}
  denoise = oracle.mixture_denoise(p, means, weights, std)
  out = jax.jit(lambda x: solver(denoise, p, x, grid, **options))(x)
  reference = nhwc(ARRAYS["out_" + case["name"]])
  error = np.linalg.norm(out - reference) / np.linalg.norm(reference)
  assert error < (1e-5 if case.get("discretization") == "iddpm" else 1e-9), error
