"""Clipped and rescaled estimates of images, guidance without and by a classifier, against closed forms."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from training import tiny

from diffusion_jax import config as config_lib
from diffusion_jax import guidance, methods, process, samplers, sampling, times
from diffusion_jax.evaluation import records
from diffusion_jax.study import run as study_run
from diffusion_jax.training import run_config
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


# --- dynamic thresholds -----------------------------------------------------------------------------------------------

LINEAR = process.Decoupled("linear")  # φ has a free parameter
EVERY = [*PROCESSES, LINEAR]


def some_pair(p):
  """(pair, t [4]) of images of increasing size in a process, its noise drawn apart."""
  keys = jax.random.split(jax.random.key(0), 4)
  images, eps = jax.random.normal(jax.random.key(1), (2, 4, 8, 8, 3), float)
  images = images * like(jnp.array([0.01, 0.3, 1.0, 40.0]), images)
  return Prediction(p.encode(keys, images), eps), jnp.array([0.1, 0.4, 0.7, 1.0]) * getattr(p, "num_steps", 1)


def state_of(p, pred, t):
  return p.perturb(pred.clean, pred.eps, t)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.995])
@pytest.mark.parametrize("p", EVERY, ids=str)
def test_a_dynamic_threshold_is_numpys_percentile(p, share, x64):
  """s of each image alone; an image within the limit stays, free parameters and the state do too."""
  pred, t = some_pair(p)
  got = jax.jit(lambda limit, share: guidance.threshold(lambda x, t: pred, p, limit, share)(0.0, t))(0.8, share)
  images = np.asarray(p.decode(pred.clean))
  s = np.maximum(np.percentile(np.abs(images), 100 * share, axis=(1, 2, 3), keepdims=True), 0.8)
  assert s[0] == 0.8 and s[3] > 8
  expected = np.clip(images, -s, s) / (s / 0.8)
  np.testing.assert_allclose(p.decode(got.clean), expected, rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(state_of(p, got, t), state_of(p, pred, t), rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(got.clean[0], pred.clean[0], rtol=1e-12)
  free = 3 * (p.parameters - 1) if p == LINEAR else 0
  np.testing.assert_array_equal(got.clean[..., :free], pred.clean[..., :free])


def test_a_dynamic_threshold_keeps_its_limit_and_has_a_gradient():
  """In float32 to the last digit; where all pixels are equal, or zero, the derivative is finite."""
  x = jax.random.normal(jax.random.key(0), (6, 8, 8, 3)) * jnp.array([0.0, 0.1, 1, 7, 1e3, 1e9])[:, None, None, None]
  x = jnp.concatenate([x, jnp.full((1, 8, 8, 3), 5.0)])
  denoise = lambda x, t: Prediction(x, x)
  images = lambda x, share: guidance.threshold(denoise, process.EDM(), 0.7, share)(x, 0.5).clean
  for share in (0.01, 0.9, 0.999):
    assert np.abs(images(x, share)).max() == np.float32(0.7)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(images(x, share))))(x)
    assert np.isfinite(slope).all() and np.abs(slope[1]).max() > 0.1
  np.testing.assert_array_equal(images(x[:2], 0.9), x[:2])


# --- without a classifier ---------------------------------------------------------------------------------------------

GIVEN, PLAIN = (0.4, 0.09), (-0.2, 0.64)  # mean and variance of a class, of all images


def gaussian_pairs(p):
  return tuple(oracle.gaussian_denoise(p, *each) for each in (GIVEN, PLAIN))


def guided_by_hand(p, x, t, w):
  """(x̂_0, ε̂) of E[x_0|x] = m + αs²/(α²s² + σ²)·(x − αm), ε̂ = σ/(α²s² + σ²)·(x − αm), in float64; w like t."""
  alpha, sigma, w = (np.asarray(like(jnp.asarray(v), x), float) for v in (p.alpha(t), p.sigma(t), w))
  x = np.asarray(x, float)
  (own, own_eps), (other, other_eps) = (
    (m + alpha * v / (alpha**2 * v + sigma**2) * (x - alpha * m), sigma / (alpha**2 * v + sigma**2) * (x - alpha * m))
    for m, v in (GIVEN, PLAIN)
  )
  return (1 - w) * other + w * own, (1 - w) * other_eps + w * own_eps


@pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
def test_guidance_acts_in_its_interval_alone(p, x64):
  """Below, at the lower end, inside, at the upper end, above: for a scalar t, for one an image, under vmap and pmap."""
  ts = p.inverse(jnp.array([0.02, 0.3, 1.0, 5.0, 60.0]))
  slack = 0 if p == process.EDM() else 1e-9  # the rounding of noise levels that are computed
  interval, acts = (0.3 * (1 - slack), 5.0 * (1 + slack)), np.array([0, 1, 1, 1, 0])
  x = jax.random.normal(jax.random.key(0), (5, 4, 4, 1), float)
  guided = lambda w, interval: guidance.classifier_free(*gaussian_pairs(p), w, process=p, interval=interval)
  run = jax.jit(lambda x, t, w, interval: guided(w, interval)(x, t)[:2])
  for w in (0.0, 1.0, 3.5):
    scales = np.where(acts, w, 1)
    expected = guided_by_hand(p, x, ts, scales)
    got = run(x, ts, w, interval)
    np.testing.assert_allclose(p.decode(got[0]), expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-9, atol=1e-12)
    for i, t in enumerate(ts):
      for a, b in zip(run(x, t, w, interval), got):
        np.testing.assert_allclose(a[i], b[i], rtol=1e-9, atol=1e-12)
    one = lambda x, t: jax.tree.map(lambda a: a[0], run(x[None], t, w, interval))
    for alone in (jax.vmap(one)(x, ts), jax.pmap(one)(x, ts)):
      jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), alone, got)
  everywhere = run(x, ts, 3.5, (0.0, 1e6))
  for a, b in zip(everywhere, guidance.classifier_free(*gaussian_pairs(p), 3.5)(x, ts)):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
  for a, b in zip(run(x, ts, 3.5, (2.0, 3.0)), gaussian_pairs(p)[0](x, ts)):  # no image is guided
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", EVERY, ids=str)
def test_rescaling_gives_the_contrast_of_the_class(p, x64):
  """φ = 1: the standard deviation of each image; between: the mixture of both; 0: nothing. The state stays."""
  cond, t = some_pair(p)
  other = Prediction(cond.clean[::-1], cond.eps[::-1])
  run = jax.jit(
    lambda share: guidance.classifier_free(lambda x, t: cond, lambda x, t: other, 4.0, process=p, rescale=share)(0.0, t)
  )
  plain = guidance.classifier_free(lambda x, t: cond, lambda x, t: other, 4.0)(0.0, t)
  images, own = (np.asarray(p.decode(pred.clean)) for pred in (plain, cond))
  std = lambda images: np.std(images, axis=(1, 2, 3), keepdims=True)
  assert np.all(np.abs(std(images) / std(own) - 1) > 0.1)
  np.testing.assert_allclose(std(np.asarray(p.decode(run(1.0).clean))), std(own), rtol=1e-9)
  for share in (0.0, 0.3, 0.7, 1.0):
    got = run(share)
    expected = share * images * std(own) / std(images) + (1 - share) * images
    np.testing.assert_allclose(p.decode(got.clean), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(state_of(p, got, t), state_of(p, plain, t), rtol=1e-9, atol=1e-9)
  for a, b in zip(run(0.0)[:2], plain):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
def test_a_rescaled_pair_of_gaussians_still_makes_up_its_state(p, x64):
  """x = m(ĉ, t) + σε̂, inside the interval and out of it, where the pair is that of the class."""
  ts = p.inverse(jnp.array([0.02, 0.3, 1.0, 5.0, 60.0]))
  x = jax.random.normal(jax.random.key(0), (5, 4, 4, 1), float)
  got = guidance.classifier_free(*gaussian_pairs(p), 3.0, process=p, interval=(0.2, 6.0), rescale=0.7)(x, ts)
  np.testing.assert_allclose(state_of(p, got, ts), x, rtol=1e-9, atol=1e-12)
  alone = gaussian_pairs(p)[0](x, ts)
  for a, b in zip(got[:2], alone):
    np.testing.assert_allclose(a[np.array([0, 4])], b[np.array([0, 4])], rtol=1e-12, atol=1e-15)
    assert np.abs(a - b)[1:4].max((1, 2, 3)).min() > 1e-3


def test_rescaling_leaves_constant_images_and_has_a_gradient():
  """There rounding would decide; an image that only guidance makes vary gets the deviation 0 of its class."""
  flat, noise = jnp.full((1, 8, 8, 1), 0.3), jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
  cond = jnp.concatenate([flat, flat, noise, 0 * flat])
  uncond = jnp.concatenate([-flat / 3, noise, noise / 2, 0 * flat])

  def image(cond, share=1.0):
    given, plain = (lambda x, t, clean=clean: Prediction(clean, x) for clean in (cond, uncond))
    edm = process.EDM()
    return guidance.classifier_free(given, plain, 3.0, process=edm, rescale=share)(jnp.zeros_like(cond), 1.0).clean

  got = image(cond)
  np.testing.assert_allclose(got[0], 3 * 0.3 + 2 * 0.1, rtol=1e-6)
  np.testing.assert_allclose(got[1], 0, atol=1e-6)
  np.testing.assert_allclose(np.std(got[2]), np.std(noise), rtol=1e-5)
  assert np.isfinite(jax.grad(lambda cond: jnp.sum(jnp.sin(image(cond))))(cond)).all()


@pytest.mark.parametrize("call, message", [
  (lambda f: guidance.classifier_free(f, f, 2.0, interval=(0.1, 1.0)), "process must be that of x and t"),
  (lambda f: guidance.classifier_free(f, f, 2.0, rescale=0.5), "process must be that of x and t"),
  (
    lambda f: guidance.classifier_free(f, f, 2.0, process=process.EDM(), interval=(2.0, 1.0)),
    r"interval must be noise levels \(lo, hi\), 0 <= lo <= hi, got \(2.0, 1.0\)",
  ),
  (lambda f: guidance.classifier_free(f, f, 2.0, process=process.EDM(), rescale=1.5), r"rescale must be in \[0, 1\]"),
  (lambda f: guidance.threshold(f, process.EDM(), 1.0, 99.5), r"percentile must be a share .* in \(0, 1\).*99.5"),
  (
    lambda f: guidance.classifier_free(f, f, 2.0, process=LINEAR, interval=(0.1, 1.0))(jnp.ones((1, 2, 2, 1)), 0.5),
    "not a Gaussian process",
  ),
])  # fmt: skip
def test_what_guidance_cannot_do_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(lambda x, t: Prediction(x, x))


class Gaussians:
  """The exact method of `GIVEN` and `PLAIN` in EDM's process; counts its traces, and what runs without a label."""

  def __init__(self):
    self.traces, self.unlabelled = 0, []

  def method(self):
    return methods.Method(None, None, self.denoise, process.EDM(), methods.edm.SAMPLERS)

  def denoise(self, variables, x, t, cond):
    self.traces += 1
    pairs = [oracle.gaussian_denoise(process.EDM(), *each)(x, t) for each in (GIVEN, PLAIN)]
    jax.debug.callback(lambda label, t: self.unlabelled.extend([float(t)] * bool(label < 0)), cond["label"][0], t)
    return jax.tree.map(lambda a, b: jnp.where(like(cond["label"] >= 0, a), a, b), *pairs)

  def draw(self, **fields):
    config = tiny.get_config()
    config.sampling.update(sampler="euler", num_steps=10, guidance=3.0)
    config.sampling.update(fields)
    config_lib.check(config)
    return sampling.generate(config, self.method(), {}, np.arange(8))


def euler_by_hand(num_steps=10, w=3.0, lo=0.0, hi=np.inf, share=0.0, clip=None, percentile=0.0):
  edm, grid = process.EDM(), times.edm_grid(num_steps)
  x = np.asarray(edm.prior(sampling.keys_of(np.arange(8)), (8, 8, 1), grid[0]), float)
  std = lambda images: np.std(images, axis=(1, 2, 3), keepdims=True)
  for t, s in zip(grid, grid[1:]):
    clean = guided_by_hand(edm, x, t, w if lo <= t <= hi else 1.0)[0]
    own = guided_by_hand(edm, x, t, 1.0)[0]
    clean = clean * (share * std(own) / std(clean) + 1 - share)
    if clip:
      top = np.maximum(np.percentile(np.abs(clean), 100 * percentile, axis=(1, 2, 3), keepdims=True), clip)
      clean = np.clip(clean, -top, top) / top * clip
    x = x + (s - t) * (x - clean) / t
  return x


def test_samples_are_those_by_hand():
  """Through config.sampling; numbers are traced, and the network without a label runs where guidance acts alone."""
  model = Gaussians()
  close = partial(np.testing.assert_allclose, atol=2e-4)
  close(model.draw(), euler_by_hand())
  assert len(model.unlabelled) % 10 == 0
  model.unlabelled.clear()
  inside = dict(guidance_sigma_min=0.1, guidance_sigma_max=10.0)
  close(model.draw(**inside), euler_by_hand(lo=0.1, hi=10.0))
  jax.effects_barrier()
  levels = [float(level) for level in times.edm_grid(10)[:-1] if 0.1 <= level <= 10]
  np.testing.assert_allclose(sorted(set(model.unlabelled)), sorted(levels), rtol=1e-5)
  assert 1 < len(levels) < 9
  first = dict(**inside, guidance_rescale=0.7, clip=0.6, clip_percentile=0.9)
  close(model.draw(**first), euler_by_hand(lo=0.1, hi=10.0, share=0.7, clip=0.6, percentile=0.9))
  traces = model.traces
  changed = model.draw(
    guidance=5.0, guidance_sigma_min=0.05, guidance_sigma_max=30.0, guidance_rescale=0.2, clip=0.8, clip_percentile=0.7,
    num_steps=6,
  )  # fmt: skip
  close(changed, euler_by_hand(6, 5.0, 0.05, 30.0, 0.2, 0.8, 0.7))
  assert model.traces == traces  # nothing compiled anew


@pytest.mark.parametrize("options, message", [
  ({"guidance_rescale": 0.5}, "guidance_interval and guidance_rescale need guidance"),
  ({"guidance_interval": (0.0, 1.0)}, "guidance_interval and guidance_rescale need guidance"),
  ({"guidance": 2.0, "guidance_rescale": -0.5}, r"rescale must be in \[0, 1\], got -0.5"),
  ({"clip_percentile": 0.9}, "clip_percentile needs clip"),
  ({"clip_percentile": 90.0, "clip": 1.0}, "percentile must be a share"),
])  # fmt: skip
def test_options_of_sample_that_do_not_go_together_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    labels = jnp.zeros(1, int)
    keys, grid = sampling.keys_of([0]), times.edm_grid(3)
    sampling.sample(Gaussians().method(), {}, keys, (8, 8, 1), grid, labels=labels, **options)


@pytest.mark.parametrize("fields, message", [
  ({"guidance_rescale": 0.5}, "guidance_rescale = 0.5: must be 0 without guidance, which sampling.guidance = 1 is"),
  ({"guidance_sigma_min": 0.5}, "guidance_sigma_min = 0.5: must be 0 without guidance, which sampling.guidance = 1 is"),
  ({"guidance": 2.0, "guidance_rescale": 1.5}, "guidance_rescale = 1.5: must be in [0, 1]"),
  ({"guidance": 2.0, "guidance_rescale": float("nan")}, "guidance_rescale = nan: must be in [0, 1]"),
  ({"guidance": 2.0, "guidance_sigma_min": -1.0}, "guidance_sigma_min = -1.0: must not be negative"),
  (
    {"guidance": 2.0, "guidance_sigma_min": 2.0, "guidance_sigma_max": 0.5},
    "guidance_sigma_max = 0.5: must be at least sampling.guidance_sigma_min (2)",
  ),
  (
    {"guidance": 2.0, "guidance_sigma_max": 5.0, "sampler": "dddm", "grid": "dddm"},
    "guidance_sigma_max = 5.0: must be 1e+06 for the sampler dddm, which stays at one noise level",
  ),
  ({"clip_percentile": 0.9}, "clip_percentile = 0.9: must be 0 without sampling.clip, the limit"),
  ({"clip_percentile": 99.5, "clip": 1.0}, "clip_percentile = 99.5: must be in (0, 1), such as .995, or 0 for none"),
])  # fmt: skip
def test_a_wrong_field_of_guidance_is_named(fields, message):
  config = tiny.get_config()
  config.sampling.update(fields)
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.check(config)
  assert str(error.value) == f"config.sampling.{message}"


def test_an_interval_needs_noise_levels():
  config = tiny.get_config()
  config.method = "decoupled"
  config.decoupled.attenuation = "linear"
  config.sampling.update(sampler="decoupled", grid="decoupled", guidance=2.0, guidance_sigma_min=0.5)
  with pytest.raises(config_lib.ConfigError, match="guidance_sigma_min = 0.5: must be 0.0 for decoupled.attenuation"):
    config_lib.check(config)


def test_runs_and_scores_from_before_are_the_same(tmp_path):
  """A config and a record that know nothing of the options: hash of the run and identity of the score are as before."""
  fields = ("guidance_sigma_min", "guidance_sigma_max", "guidance_rescale", "clip_percentile")
  config = tiny.get_config()
  run_config.write_config(tmp_path, config)
  stored = json.loads((tmp_path / "config.json").read_text())
  before = {name: value for name, value in stored.items() if not name.endswith(fields)}
  assert len(before) == len(stored) - len(fields)
  (tmp_path / "config.json").write_text(json.dumps(before))
  assert config_lib.flatten(run_config.read_config(tmp_path)) == config_lib.flatten(config)
  record = lambda sampling: records.identity({"sampling": dict(sampling)})
  own = {name: value for name, value in config.sampling.items() if name not in fields}
  assert record(own) == record(config.sampling)
  run = study_run.config_hash(config)
  config.sampling.update(guidance=2.0, guidance_rescale=0.5)
  assert study_run.config_hash(config) == run
  assert record(config.sampling) != record(own | {"guidance": 2.0})


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
