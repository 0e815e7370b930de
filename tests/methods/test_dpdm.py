"""The DPDM method: its gradients against closed forms, what an update does to each of the three networks, bad input.

The surrogate's gradient is compared by quadrature, whole updates by their mean within four standard errors. The closed
forms are those of affine networks on data N(M, S²): with d_θ(x) = a·x + b the pupil's images at σ are
N(a·M + b, a²(S² + σ²)), their best denoiser is known, and the smoothed KL is that of two Gaussians.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import tiny, toy
from training.published import published_config

from diffusion_jax import methods, process
from diffusion_jax.config import ConfigError
from diffusion_jax.methods import base, dpdm, edm
from diffusion_jax.training import checkpoint, loop, start, state, warm
from diffusion_jax.types import Prediction, like

M, S = 0.3, 0.8
EDM = process.EDM()
TEACHER = {"mean": jnp.float32(M), "std": jnp.float32(S)}


def best(mean, std, x, sigma):
  """E[x_0 | x] for data N(mean, std²) and x = x_0 + σε."""
  return mean + std**2 / (std**2 + sigma**2) * (x - mean)


def pupil(a, b, sigma):
  """Mean and standard deviation of the images a·x + b of noisy data, at one noise level."""
  return a * M + b, abs(a) * np.sqrt(S**2 + sigma**2)


def smoothed_kl(a, b, sigma, xp=np):
  """KL(q_σ ‖ p_σ) of those images and the data, both with noise σ added."""
  mean, variance, total = a * M + b, a**2 * (S**2 + sigma**2) + sigma**2, S**2 + sigma**2
  return 0.5 * (variance / total + (mean - M) ** 2 / total - 1 - xp.log(variance / total))


def config_of(**fields):
  c = tiny.get_config()
  c.method, c.init_from = "dpdm", "somewhere"
  c.data.update(num_classes=0, flip=False)
  c.label_dropout = 0.0
  # β1 = 0: Adam's first moment is the gradient.
  c.optimizer.update(beta1=0.0, beta2=0.99, learning_rate=1e-3, warmup_images=0)
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


def gaussians(law, frame=EDM):
  """The method of networks that are the best denoisers of N(mean, std²) by their two parameters."""

  def denoise(variables, x, t, cond=None):
    p = variables["params"]
    alpha, sigma = like(frame.alpha(t), x), like(frame.sigma(t), x)
    clean = best(p["mean"], p["std"], x / alpha, sigma / alpha)
    return Prediction(clean, (x - alpha * clean) / sigma)

  def init(key, example_batch):
    return state.create({"net": dict(TEACHER)}, {})

  return base.Method(init, None, denoise, frame, ("heun",), None, lambda keys: frame.inverse(law(keys)))


def affine(params, x, sigma, cond):
  return params["a"] * x + params["b"]


def method_of(law, frame=EDM, generate=affine, **fields):
  """(method, its first state with the teacher's parameters as they are)."""
  config = config_of(**fields)
  initial = lambda key, batch: {"a": jnp.float32(0.5), "b": jnp.float32(0.1)}
  method = dpdm.build(config, gaussians(law, frame), generate, initial)
  return method, method.init(jax.random.key(0), start.example_batch(config))


def constant(sigma):
  return lambda keys: jnp.full(keys.shape, sigma)


def batch_of(n, seed=0, **more):
  images = M + S * np.random.default_rng(seed).standard_normal((n, 8, 8, 1))
  return {"image": jnp.asarray(images, jnp.float32), "index": jnp.arange(n), "slot": jnp.arange(n), **more}


def run(method, made, count, n=64, **parameters):
  """Gradients of `count` updates from one state, each with batch and draws of its own: {role: {name: [count]}}."""
  made = made.replace(params={**made.params, **parameters})

  def one(step):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(7), step), (n, 8, 8, 1))
    after, _ = method.update(made.replace(step=step), {**batch_of(n), "image": M + S * noise}, jax.random.key(1))
    return {role: after.opt_state[role].mu for role in ("score", "generator")}

  return jax.jit(lambda: jax.lax.map(one, jnp.arange(count)))()


def agrees(values, expected):
  """Whether the mean is the expected number within four standard errors, which are small beside it."""
  values = np.asarray(values, np.float64)
  error = values.std() / np.sqrt(len(values))
  return abs(values.mean() - expected) < 4 * error + 1e-6 * abs(expected)


# --- the generator's gradient -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("a, b", [(0.5, 0.1), (1.1, -0.4)])
def test_the_surrogate_has_the_gradient_of_the_smoothed_kl(sigma, a, b, x64):
  """By quadrature over ε and ε̃, which is exact for a polynomial of degree 2, against the derivative by hand."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(8)
  u, v = (grid.ravel() for grid in np.meshgrid(nodes, nodes))
  w = np.outer(weights, weights).ravel() / (2 * np.pi)
  mean, std = pupil(a, b, sigma)

  def objective(theta):
    x = theta[0] * (M + np.sqrt(S**2 + sigma**2) * u) + theta[1] + sigma * v
    gap = best(mean, std, x, sigma) - best(M, S, x, sigma)
    return jnp.sum(w * dpdm.surrogate(gap[:, None], x[:, None], 1 / sigma**2))

  found = jax.grad(objective)(jnp.array([a, b]))
  h = 1e-5
  expected = [
    (smoothed_kl(a + h, b, sigma) - smoothed_kl(a - h, b, sigma)) / (2 * h),
    (smoothed_kl(a, b + h, sigma) - smoothed_kl(a, b - h, sigma)) / (2 * h),
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("theta", [-1.0, 0.3])
def test_the_two_line_example_has_the_gradient_theta_over_t(theta, x64):
  """Appendix A.1: data (0, y), pupil (θ, y), y ~ U[0, 1], noise of variance t; θ/t is the derivative of θ²/(2t)."""
  t, n = 0.7, 100
  noise = np.sqrt(t) * jax.random.normal(jax.random.key(0), (n, 2), jnp.float64)
  y = jnp.linspace(0, 1, n)

  def mean_of_y(noisy):  # E[y | y + noise], by quadrature
    nodes = jnp.linspace(0, 1, 201)
    w = jax.nn.softmax(-((noisy[:, None] - nodes) ** 2) / (2 * t), axis=1)
    return w @ nodes

  def objective(theta):
    x = jnp.stack([jnp.full(n, theta), y], axis=1) + noise
    denoised = lambda first: jnp.stack([jnp.full(n, first), mean_of_y(x[:, 1])], axis=1)
    return jnp.mean(dpdm.surrogate(denoised(theta) - denoised(0.0), x, 1 / t))

  np.testing.assert_allclose(jax.grad(objective)(theta), theta / t, rtol=1e-12)


@pytest.mark.parametrize("weight", ["unit", "diffusion"])
@pytest.mark.parametrize("frame", [process.EDM(), process.VP()], ids=["EDM", "VP"])
def test_an_update_follows_the_smoothed_kl(weight, frame):
  """The whole update, score network exact: its mean gradient is w(σ) times the derivative, per pixel, in any frame."""
  a, b, sigma = 0.5, 0.1, 0.9
  mean, std = pupil(a, b, sigma)
  # The score network moves by one Adam step, at most the learning rate, before the generator's: 1e-6 keeps it exact.
  method, made = method_of(constant(sigma), frame, dpdm__generator_weight=weight, optimizer__learning_rate=1e-6)
  exact = {"score": {"mean": jnp.float32(mean), "std": jnp.float32(std)}}
  found = run(method, made, 60, **exact)["generator"]
  w = {"unit": 1.0, "diffusion": (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * sigma**4}[weight]  # λσ⁴
  h = 1e-5
  by_a = (smoothed_kl(a + h, b, sigma) - smoothed_kl(a - h, b, sigma)) / (2 * h)
  by_b = (smoothed_kl(a, b + h, sigma) - smoothed_kl(a, b - h, sigma)) / (2 * h)
  assert agrees(found["a"], 64 * w * by_a) and agrees(found["b"], 64 * w * by_b)
  assert np.std(found["a"]) / np.sqrt(60) < 0.05 * abs(64 * w * by_a)


def mixed(keys):
  """Noise level .4 or 2, by an example's key."""
  return jnp.where(jax.vmap(jax.random.bernoulli)(keys), 0.4, 2.0)


def test_every_example_has_the_weights_of_its_own_noise_level():
  """λ in the score network's gradient and λσ² in the generator's, over two noise levels, against means by hand."""
  a, b = 0.5, 0.1
  method, made = method_of(mixed, optimizer__learning_rate=1e-30)
  wrong = {"mean": jnp.float32(0.0), "std": jnp.float32(1.0)}
  found = run(method, made, 100, score=wrong)
  by_score, by_generator = [], []
  for sigma in (0.4, 2.0):
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    mean, _ = pupil(a, b, sigma)
    k = 1 / (1 + sigma**2)  # D_φ(x̃) = k·x̃ for N(0, 1); its derivative by the mean is 1 − k
    by_score.append(weight * 2 * (1 - k) * (k * mean - mean))
    k_p = S**2 / (S**2 + sigma**2)
    gap = k * mean - (M + k_p * (mean - M))
    by_generator.append(weight * sigma**2 * gap)  # ∂x̃/∂b = 1
  assert agrees(found["score"]["mean"], 64 * np.mean(by_score))
  assert agrees(found["generator"]["b"], 64 * np.mean(by_generator))
  assert abs(np.mean(by_score) - by_score[0]) > 0.2 * abs(np.mean(by_score))


def test_the_fixed_point_is_the_data_law():
  """A pupil that moves noisy data to N(M, S²) leaves generator and score network, then the teacher, where they are."""
  sigma = 0.9
  method, made = method_of(constant(sigma), optimizer__learning_rate=1e-30)
  a = S / np.sqrt(S**2 + sigma**2)
  for b, at_rest in (((1 - a) * M, True), ((1 - a) * M + 0.3, False)):
    pupil_and_score = {"generator": {"a": jnp.float32(a), "b": jnp.float32(b)}, "score": dict(TEACHER)}
    found = run(method, made, 60, **pupil_and_score)
    np.testing.assert_array_equal(np.asarray(found["generator"]["a"]), 0)  # the two scores are one
    assert agrees(found["score"]["mean"], 0) == at_rest


def test_alternation_reduces_the_divergence_to_nothing():
  """From a weak denoiser, the posterior mean, to the data's law; score and generator learn together."""
  sigma = 1.0
  method, made = method_of(constant(sigma), optimizer__learning_rate=0.02, dpdm__score_steps=2)
  shrink = S**2 / (S**2 + sigma**2)
  weak = {"a": jnp.float32(shrink), "b": jnp.float32((1 - shrink) * M)}
  made = made.replace(params={**made.params, "generator": weak})

  def step(made, i):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(3), i), (32, 8, 8, 1))
    made, _ = method.update(made, {**batch_of(32), "image": M + S * noise}, jax.random.key(1))
    return made.replace(step=made.step + 1), made.params["generator"]

  _, path = jax.jit(lambda: jax.lax.scan(step, made, jnp.arange(300)))()
  divergence = smoothed_kl(np.asarray(path["a"], np.float64), np.asarray(path["b"], np.float64), sigma)
  assert divergence[0] > 0.014 and np.mean(divergence[-100:]) < 5e-4


# --- the score network ------------------------------------------------------------------------------------------------


def test_the_score_network_learns_the_pupils_law():
  """Its mean gradient vanishes at the best denoiser of the pupil's images, and not at that of the data."""
  a, b, sigma = 0.5, 0.1, 0.9
  method, made = method_of(constant(sigma))
  mean, std = pupil(a, b, sigma)
  exact = run(method, made, 60, score={"mean": jnp.float32(mean), "std": jnp.float32(std)})["score"]
  assert agrees(exact["mean"], 0) and agrees(exact["std"], 0)
  data = run(method, made, 60, score=dict(TEACHER))["score"]
  assert not agrees(data["mean"], 0) and not agrees(data["std"], 0)


def test_input_and_renoising_share_one_noise_level_and_every_step_draws_anew():
  """The levels that generator, score network and teacher see in an update with two score steps."""
  seen = []

  def spy(name, function):
    def spied(params, x, sigma, cond):
      jax.debug.callback(lambda s: seen.append((name, np.array(s))), jnp.ravel(sigma))
      return function(params, x, sigma, cond)

    return spied

  law = lambda keys: jax.vmap(lambda key: jnp.exp(jax.random.normal(key)))(keys)
  config = config_of(dpdm__score_steps=2)
  exact = gaussians(law)
  watched = spy("diffusion", lambda p, x, s, cond: exact.denoise({"params": p}, x, s, cond))
  diffusion = exact._replace(denoise=lambda v, x, t, cond=None: watched(v["params"], x, t, cond))
  initial = lambda key, batch: {"a": jnp.float32(0.5), "b": jnp.float32(0.1)}
  method = dpdm.build(config, diffusion, spy("generator", affine), initial)
  made = method.init(jax.random.key(0), start.example_batch(config))
  jax.block_until_ready(jax.jit(method.update)(made, batch_of(8), jax.random.key(0)))
  jax.effects_barrier()
  levels = {}
  for name, sigma in seen:
    levels.setdefault(tuple(sigma.round(4)), []).append(name)
  assert len(levels) == 3  # two score steps and the generator's
  assert sorted(map(sorted, levels.values())) == [
    ["diffusion", "diffusion", "generator"], ["diffusion", "generator"], ["diffusion", "generator"]
  ]  # fmt: skip
  keys = state.example_keys(jax.random.key(0), 0, jnp.arange(8))
  report = np.asarray(method.times(keys)).T.round(4)  # of a run that diverged
  assert {tuple(step) for step in report} == levels.keys()


def test_labels_augmentation_and_dropout_where_they_belong():
  """One draw of dropped labels for all networks of a step; augmentation and dropout are the score step's."""
  calls = []
  exact = gaussians(constant(0.5))

  def denoise(variables, x, t, cond=None):
    calls.append({name: value for name, value in (cond or {}).items() if value is not None})
    return exact.denoise(variables, x, t, cond)

  config = config_of(data__augment=1.0, dpdm__score_augment=True, data__num_classes=10, label_dropout=0.5)
  method = dpdm.build(config, exact._replace(denoise=denoise))
  made = method.init(jax.random.key(0), start.example_batch(config))
  batch = {**batch_of(16), "label": jnp.arange(16) % 10}
  method.update(made, batch, jax.random.key(0))
  names = [set(call) for call in calls]
  assert names.count({"label", "augment", "dropout"}) == 1 and names.count({"label"}) == 4
  assert all(call["label"] is calls[0]["label"] for call in calls[:2])  # generator and score network
  assert all(call["label"] is calls[2]["label"] for call in calls[2:])  # generator, score network and teacher


def test_the_score_networks_target_is_what_it_was_shown():
  """With σ near 0 a network that returns its input has no loss, whatever augmentation has done to the image."""
  exact = gaussians(constant(1e-6))
  method = dpdm.build(config_of(data__augment=1.0, dpdm__score_augment=True, edm__weight="inverse_variance"), exact)
  made = method.init(jax.random.key(0), start.example_batch(config_of()))
  _, metrics = jax.jit(method.update)(made, batch_of(16), jax.random.key(0))
  assert abs(float(metrics["score_loss"]) - 64) < 10  # ‖σε̃‖²/σ², and 1e11 had the target not been warped


# --- the update -------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy_network(monkeypatch):
  monkeypatch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())


def toy_config(**fields):
  c = tiny.get_config()
  c.method, c.init_from = "dpdm", "somewhere"
  c.sampling.update(sampler="dpdm", grid="dpdm")
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return c


def labelled(n):
  return {**batch_of(n), "label": jnp.arange(n) % 10}


def test_the_teacher_never_changes_and_has_no_optimizer_state(toy_network):
  config = toy_config(dpdm__score_steps=2)
  method = methods.from_config(config)
  made = start.create_state(method, config)
  assert set(made.params) == {"teacher", "generator", "score"}
  assert set(made.opt_state) == {"generator", "score"} and set(made.ema) == {"generator"}
  update = jax.jit(method.update)
  now = made
  for step in range(3):
    now, metrics = update(now.replace(step=jnp.int32(step)), labelled(8), jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, now.params["teacher"], made.params["teacher"])
  for role, count in (("generator", 3), ("score", 6)):
    assert not np.array_equal(now.params[role]["conv1"]["kernel"], made.params[role]["conv1"]["kernel"])
    assert int(now.opt_state[role].count) == count
  assert set(metrics) == {"loss", "grad_norm", "learning_rate", "skipped", "score_loss", "score_grad_norm"}
  assert update._cache_size() == 1  # alternation compiles once
  text = str(jax.make_jaxpr(method.update)(made, labelled(8), jax.random.key(0)))
  assert " cond[" not in text and " while[" not in text  # and never chooses between networks


def test_the_training_state_is_twice_that_of_plain_training(toy_network):
  size = lambda config: sum(
    leaf.nbytes for leaf in jax.tree.leaves(start.create_state(methods.from_config(config), config))
  )
  plain = tiny.get_config()
  assert size(toy_config()) < 2.1 * size(plain)


def poisoned(state, role):
  """The state with a NaN among the parameters of one network."""
  tree = state.params[role]
  spoilt = {**tree, "conv1": {**tree["conv1"], "bias": tree["conv1"]["bias"] + jnp.nan}}
  return state.replace(params={**state.params, role: spoilt})


def test_a_network_whose_gradient_is_not_finite_is_left_as_it_was(toy_network):
  """And the update counts as skipped; the other goes on if it can: a broken teacher does not touch the score step."""
  config = toy_config()
  method = methods.from_config(config)
  made = start.create_state(method, config).replace(step=jnp.int32(50))
  update = jax.jit(method.update)
  same = lambda a, b: all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), a, b)))
  for broken, moved in (("teacher", {"score"}), ("score", set()), ("generator", set())):
    before = poisoned(made, broken)
    after, metrics = update(before, labelled(8), jax.random.key(0))
    assert metrics["skipped"] == 1 and int(after.skipped) == 1 and int(after.skipped_in_row) == 1
    for role in ("teacher", "generator", "score"):
      assert same(after.params[role], before.params[role]) == (role not in moved), (broken, role)
    assert same(after.ema, before.ema) and same(after.opt_state["generator"], before.opt_state["generator"])
    assert same(after.opt_state["score"], before.opt_state["score"]) == ("score" not in moved)


def save(path, config, made=None):
  """A run's folder with one checkpoint, by default of the first state."""
  made = made or start.create_state(methods.from_config(config), config)
  checkpoint.write_config(path, config)
  checkpoints = checkpoint.Checkpoints(path, config)
  checkpoints.save(made, 5)
  checkpoints.close()
  return made


def test_one_device_does_what_eight_do(toy_network):
  """The update on a batch of 8 against that of 8 devices with one example each, with accumulation and two in a call."""
  config = toy_config(optimizer__warmup_images=0, train__batch_size=16)
  alone, shared = methods.from_config(config), methods.from_config(config, "batch")
  made, batch, key = start.create_state(alone, config), labelled(16), jax.random.key(0)
  after, metrics = jax.jit(alone.update)(made, batch, key)
  spread = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
  ran = jax.pmap(shared.update, axis_name="batch", in_axes=(None, 0, None))(made, spread, key)
  config.train.accumulation = 2
  accumulated = jax.jit(methods.from_config(config).update)(made, batch, key)
  for other, its in (jax.tree.map(lambda x: x[0], ran), accumulated):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), metrics, its)
    for role in ("generator", "score"):
      # Adam's first moment is the gradient; its first step would show the gradient's signs alone.
      for a, b in zip(jax.tree.leaves(after.opt_state[role].mu), jax.tree.leaves(other.opt_state[role].mu)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max())


def small(**fields):
  """A toy run that draws its hundred pictures in one step each."""
  return toy_config(**fields, sampling__num_steps=1)


def test_a_pupil_of_a_run_through_the_training_loop(toy_network, tmp_path):
  """It starts from the run's averages in all three networks; stopped, it goes on without the teacher's folder.

  With the state split over the devices it comes to the same.
  """
  teacher = save(tmp_path / "teacher", tiny.get_config())
  fields = dict(init_from=str(tmp_path / "teacher"), train__checkpoint_every=2)
  whole = loop.train(small(**fields, train__num_steps=4, train__parallel="fsdp"), tmp_path / "whole")
  loop.train(small(**fields, train__num_steps=2), tmp_path / "parts")
  jax.tree.map(np.testing.assert_array_equal, whole.params["teacher"], jax.device_get(teacher.ema["net"]))
  taken = json.loads((tmp_path / "parts" / "init_from.json").read_text())["taken"]
  assert {f"{role}/conv0/kernel" for role in ("teacher", "generator", "score")} <= set(taken)
  (tmp_path / "teacher").rename(tmp_path / "gone")
  again = loop.train(small(**fields, train__num_steps=4), tmp_path / "parts")
  jax.tree.map(np.testing.assert_array_equal, again.params["teacher"], whole.params["teacher"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), again.params, whole.params)
  method, variables = checkpoint.load_for_inference(tmp_path / "parts")
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(variables["params"]), again.ema["generator"])
  assert method.samplers[0] == "dpdm"


@pytest.mark.parametrize("row", ["vp", "ve", "iddpm"])
def test_every_row_of_table_1_can_have_a_pupil(toy_network, row, tmp_path):
  """The pupil has its teacher's preconditioner, law of σ and weight; (2) then has the factor 1."""
  fields = dict(edm__preconditioner=row, edm__noise={"ve": "log_uniform"}.get(row, row), edm__weight="inverse_variance")
  teacher = tiny.get_config()
  teacher.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  config = toy_config(**fields)
  method = methods.from_config(config)
  assert not any(warm.fit(warm.to_come(teacher), method, config).reasons.values())
  weight = methods.from_config(teacher).weight
  np.testing.assert_allclose(dpdm.factor_from_config(config, weight)(jnp.array([0.1, 3.0])), 1, rtol=1e-6)
  levels = np.asarray(method.times(state.example_keys(jax.random.key(0), 0, jnp.arange(500))))
  known = method.preconditioner
  assert levels.min() >= 0.999 * known.sigma_min and levels.max() <= 1.001 * known.sigma_max
  if row == "iddpm":
    made = start.create_state(method, config)
    _, metrics = jax.jit(method.update)(made, labelled(8), jax.random.key(0))
    assert np.isfinite(list(map(float, metrics.values()))).all() and metrics["skipped"] == 0


def test_a_published_pickle_can_be_the_teacher():
  config = published_config()
  config.method = "dpdm"
  fit = warm.fit(warm.load(config, None), methods.from_config(config), config)
  assert not any(fit.reasons.values()) and "teacher/map_layer0/kernel" in fit.taken


def test_a_generator_of_ones_own(toy_network):
  """Any function with an image: it has its own parameters, the other two networks start from the teacher."""
  config = toy_config()
  diffusion = edm.from_config(config)
  method = dpdm.build(config, diffusion, affine, lambda key, batch: {"a": jnp.float32(0.5), "b": jnp.float32(0.1)})
  fit = warm.fit(warm.to_come(tiny.get_config()), method, config)
  assert {path.split("/")[0] for path in fit.taken} == {"teacher", "score"}
  assert fit.reasons["generator/a"] == "its network starts by itself"
  made = start.create_state(method, config)
  after, _ = jax.jit(method.update)(made.replace(step=jnp.int32(50)), labelled(8), jax.random.key(0))
  assert float(after.params["generator"]["a"]) != 0.5
  x = jnp.ones((2, 8, 8, 1))
  for sigma in (2.0, jnp.array([1.0, 2.0])):
    pred = method.denoise(state.inference_variables(made.ema), x, sigma)
    np.testing.assert_allclose(pred.clean, 0.6)
    np.testing.assert_allclose(pred.clean + like(sigma, x) * pred.eps, x, rtol=1e-6)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, message", [
  (dict(init_from=""), r"config.init_from = '': dpdm needs its teacher"),
  (dict(init_only=("teacher/*",)), r"config.init_only = .*must be \(\) for dpdm"),
  (dict(sampling__variance="learned"), r"config.sampling.variance = 'learned': dpdm trains no variance"),
  (dict(dpdm__score_augment=True), r"config.dpdm.score_augment = True: needs data.augment"),
  (dict(dpdm__score_steps=0), r"config.dpdm.score_steps = 0: must be positive"),
  (dict(dpdm__generator_weight="units"), r"config.dpdm.generator_weight = 'units': expected one of .*nearest: unit"),
  (dict(dpdm__diffusion="edn"), r"config.dpdm.diffusion = 'edn': expected one of edm.*nearest: edm"),
])  # fmt: skip
def test_a_wrong_config_is_named(fields, message):
  config = toy_config()
  config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  with pytest.raises(ConfigError, match=message):
    methods.from_config(config)


def test_a_teacher_that_does_not_fit_is_named(toy_network, tmp_path):
  def fit(config):
    source = warm.load(config, None)
    return warm.fit(source, methods.from_config(config), config)

  save(tmp_path / "edm", tiny.get_config())
  save(tmp_path / "dpdm", toy_config())
  assert not any(fit(toy_config(init_from=str(tmp_path / "edm"))).reasons.values())
  for fields, message in (
    (dict(data__num_classes=0, label_dropout=0.0), r"config.data.num_classes = 0: init_from was trained with 10"),
    (dict(data__resolution=16), r"config.data.resolution = 16: init_from was trained with 8"),
    (dict(data__channels=3), r"config.data.channels = 3: init_from was trained with 1"),
    (dict(edm__sigma_data=0.3), r"config.edm.preconditioner = 'edm': .*sigma_data=0.5.*sigma_data=0.3"),
    (dict(init_from=str(tmp_path / "dpdm")), r"config.init_from = .*teacher must be a run of .*'edm', not dpdm"),
    (dict(init_from=str(tmp_path / "nowhere")), r"config.init_from = .*nowhere.*no run here"),
  ):
    with pytest.raises(ConfigError, match=message):
      fit(toy_config(**{"init_from": str(tmp_path / "edm"), **fields}))


def test_a_pupil_can_start_another_run(toy_network, tmp_path):
  """Its generator's averages are the one network that it gives away."""
  made = save(tmp_path, toy_config())
  config = tiny.get_config()
  config.init_from = str(tmp_path)
  taken = warm.fit(warm.load(config, None), methods.from_config(config), config).taken
  np.testing.assert_array_equal(taken["net/conv0/kernel"], made.ema["generator"]["conv0"]["kernel"])
