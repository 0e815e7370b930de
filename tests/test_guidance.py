"""Clipping of estimated images, and guidance by a classifier; classifier-free guidance is in test_sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from training import tiny

from diffusion_jax import config as config_lib
from diffusion_jax import guidance, methods, process, samplers, sampling, times
from diffusion_jax.types import Prediction, like

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


# --- by a classifier --------------------------------------------------------------------------------------------------

MEANS = np.random.default_rng(0).uniform(-1, 1, (4, 2, 2, 1))  # of four components
CLASSES, WEIGHTS, STD = np.array([0, 0, 1, 2]), np.array([0.1, 0.3, 0.4, 0.2]), 0.3
WITH_ENDS = [
  (process.EDM(), [1e-3, 0.5, 80.0, 1e4]),
  (process.VE(), [1e-4, 1.0, 1e4]),
  (process.VP(), [1e-3, 0.3, 1.0]),
  (process.DDPM(), [0.5, 1.0, 300.0, 1000.0]),
  (process.Cosine(), [1.0, 2000.0, 3999.0, 4000.0]),
  (process.Decoupled(), [1e-4, 0.5, 1 - 1e-6, 1.0]),
]


def logits_of(p):
  """The exact log p(x_t, y) of the mixture, [B, 3]."""

  def logits(variables, x, t):
    t = jnp.broadcast_to(t, x.shape[:1])
    alpha, sigma = like(p.alpha(t), x[:, None]), like(p.sigma(t), x[:, None])
    distance = jnp.square(x[:, None] - alpha * MEANS)  # [B, 4, 2, 2, 1]
    parts = jnp.log(WEIGHTS) - jnp.sum(distance / (2 * (alpha**2 * STD**2 + sigma**2)), axis=(2, 3, 4))
    return jnp.stack([jax.nn.logsumexp(parts[:, CLASSES == y], axis=1) for y in range(3)], axis=1)

  return logits


def exact(p, label=-1):
  kept = CLASSES >= 0 if label < 0 else CLASSES == label
  return oracle.mixture_denoise(p, MEANS[kept], WEIGHTS[kept] / WEIGHTS[kept].sum(), STD)


def conditional(p, labels, x, t):
  """The exact pair of each image given its label, −1 for none."""
  pairs = [(label, exact(p, label)(x, t)) for label in range(-1, 3)]
  chosen = [jax.tree.map(lambda a, label=label: a * like(labels == label, a), pair) for label, pair in pairs]
  return jax.tree.map(lambda *parts: sum(parts), *chosen)


def classifier_of(p, scale=1.0):
  return guidance.Classifier(logits_of(p), p, 3, {}, scale)


@pytest.mark.parametrize("p, ts", WITH_ENDS, ids=lambda value: type(value).__name__)
def test_an_exact_pair_with_an_exact_classifier_is_the_exact_conditional_pair(p, ts, x64):
  """At all t, α = 0 among them, where it is the limit. The state stays; scale 0, and label −1, leave the pair alone."""
  t, labels = jnp.repeat(jnp.array(ts), 4), jnp.tile(jnp.array([0, 1, 2, -1]), len(ts))
  eps = jax.random.normal(jax.random.key(1), (len(t), 2, 2, 1), float)
  x = p.perturb(p.encode(None, jnp.tile(MEANS, (len(ts), 1, 1, 1))), eps, t)
  guide = lambda x, t, labels, scale: guidance.classifier(exact(p), classifier_of(p).log_prob(labels), p, scale)(x, t)
  guide, expected = jax.jit(guide), jax.jit(lambda x, t: (conditional(p, labels, x, t), exact(p)(x, t)))
  pair, (given, plain) = guide(x, t, labels, 1.0), expected(x, t)
  for got, wanted in zip(pair, given[:2]):
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=2e-6)
  state = lambda pred: p.perturb(pred.clean, pred.eps, t)
  np.testing.assert_allclose(state(pair), state(plain), rtol=1e-9, atol=1e-9)
  for off in (guide(x, t, labels, 0.0), guide(x, t, labels * 0 - 1, 1.0)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), off, plain)
  one = guide(x[:4], t[0], labels[:4], 1.0)  # a scalar t
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:4], rtol=1e-9, atol=1e-9), one, pair)


@pytest.mark.parametrize("p", [*PROCESSES, process.VE()], ids=lambda p: type(p).__name__)
def test_a_classifier_of_a_chain_guides_every_process(p, x64):
  """Exact where the chain knows the noise level; beyond, to first order in 1/noise, and finite to α = 0."""
  chain, labels = process.DDPM(), jnp.array([0, 1, 2, 1])
  log_prob = guidance.reframe(classifier_of(chain).log_prob(labels), chain, p)
  eps = jax.random.normal(jax.random.key(1), MEANS.shape, float)
  guide = jax.jit(lambda x, t: (guidance.classifier(exact(p), log_prob, p, 1.0)(x, t), conditional(p, labels, x, t)))
  ts = [(p.inverse(level), tolerance) for level, tolerance in ((0.0101, 1e-5), (0.7, 1e-5), (150.0, 1e-5), (1e4, 0.02))]
  if isinstance(p, process.Decoupled):
    ts.append((jnp.ones(()), 0.02))
  for t, tolerance in ts:
    got, expected = guide(p.perturb(p.encode(None, MEANS), eps, t), t)
    np.testing.assert_allclose(got.clean, expected.clean, atol=tolerance)


@pytest.mark.parametrize("own, other", [(process.EDM(), None), (process.DDPM(), process.VP())], ids=str)
def test_guided_samples_are_those_of_the_class(own, other, x64):
  """Path by path those of the conditional denoiser, unguided ones too; each class near its own components."""
  asked = []

  def logits(variables, x, t):
    asked.append(x.shape)
    return logits_of(process.DDPM())(variables, x, t)

  given = lambda v, x, t, cond: conditional(own, cond["label"], x, t)
  plain = lambda v, x, t, cond: exact(own)(x, t)
  seeds, grid = np.arange(64), (other or own).inverse(times.edm_grid(24, 0.02, 80.0))
  labels = np.where(seeds % 4 == 3, -1, seeds % 4)

  def draw(denoise, scale=0.0, labels=labels):
    method = methods.Method(None, None, denoise, own, ("ddim",))
    classifier = guidance.Classifier(logits, process.DDPM(), 3, {}, scale)
    keys = sampling.keys_of(seeds)
    return sampling.sample(
      method, {}, keys, (2, 2, 1), grid, "ddim", process=other, labels=labels, classifier=classifier
    )

  expected, unguided = draw(given), draw(plain)
  assert asked == []  # nor evaluated at scale 0
  got = draw(plain, 1.0)
  np.testing.assert_allclose(got, expected, atol=1e-4)
  found = CLASSES[np.argmin(np.sum((got[:, None] - MEANS) ** 2, axis=(2, 3, 4)), axis=1)]
  assert np.mean(found[labels >= 0] == labels[labels >= 0]) > 0.9
  np.testing.assert_allclose(got[labels < 0], unguided[labels < 0], atol=1e-6)
  traces = len(asked)
  assert np.abs(draw(plain, 3.0) - got).max() > 0.01
  assert len(asked) == traces  # nothing compiled anew
  with pytest.raises(ValueError, match=r"a classifier needs labels \[B\], got None"):
    draw(plain, 1.0, None)
