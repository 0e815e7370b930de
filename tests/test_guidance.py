"""Clipping of estimated images; classifier-free guidance is in test_sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import tiny

from diffusion_jax import config as config_lib
from diffusion_jax import guidance, process, samplers, times
from diffusion_jax.types import Prediction

PROCESSES = [process.EDM(), process.VP(), process.DDPM(), process.Cosine(), process.Decoupled()]


@pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
def test_a_clipped_pair_still_makes_up_its_state(p, x64):
  """m(ĉ, t) + σ_t·ε̂ is what it was, the image is clipped by hand, and what is inside the limit stays."""
  x, clean, eps = 2 * jax.random.normal(jax.random.key(0), (3, 4, 4, 4, 1), float)
  t = p.inverse(jnp.array([0.02, 0.7, 10.0, 80.0]))
  pred = Prediction(p.encode(None, clean), eps)
  clipped = lambda limit: guidance.threshold(lambda x, t: pred, p, limit)(x, t)
  np.testing.assert_allclose(p.decode(clipped(0.8).clean), np.clip(clean, -0.8, 0.8))
  state = lambda pred: p.perturb(pred.clean, pred.eps, t)
  np.testing.assert_allclose(state(clipped(0.8)), state(pred), rtol=1e-9, atol=1e-9)
  jax.tree.map(np.testing.assert_array_equal, clipped(100.0), pred)


def test_clipping_holds_a_chain_that_starts_at_no_signal():
  """Five cosine steps of DDIM with ε̂ a hundredth too small: beyond 100 without, inside [−1, 1] with clipping."""
  p, grid = process.Cosine(), times.respaced(4000, 5)

  def denoise(x, t):
    eps = 0.99 * x
    return Prediction((x - p.sigma(t) * eps) / p.alpha(t), eps)

  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
  assert np.abs(samplers.ddim(denoise, p, x, grid)).max() > 100
  assert np.abs(samplers.ddim(guidance.threshold(denoise, p, 1.0), p, x, grid)).max() <= 1


def test_a_negative_limit_is_named():
  config = tiny.get_config()
  config.sampling.clip = -1.0
  with pytest.raises(config_lib.ConfigError, match=r"config.sampling.clip = -1.0: must not be negative"):
    config_lib.check(config)
