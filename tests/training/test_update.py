"""The shared optimisation step against NumPy: learning rate, Adam, clipping, averages, the guard, the loops."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import tiny, toy

from diffusion_jax import methods
from diffusion_jax.methods import base
from diffusion_jax.training import parallel, start, state, update


def config_of(**fields):
  c = tiny.get_config()
  for name, value in fields.items():
    c.update_from_flattened_dict({name: value})
  return c


def toy_state(config, params):
  params = {"net": jax.tree.map(jnp.asarray, params)}
  return state.create(params, {"net": update.optimizer(config.optimizer).init(params["net"])})


# --- formulas ---------------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_linearly_in_images():
  """lr = learning_rate·min(images/warmup, 1)."""
  config = config_of(**{"optimizer.learning_rate": 0.5, "optimizer.warmup_images": 1000})
  images = np.array([0, 1, 250, 999, 1000, 10**8])
  got = [update.learning_rate(config, jnp.float32(n)) for n in images]
  np.testing.assert_allclose(got, 0.5 * np.minimum(images / 1000, 1), rtol=1e-6)


def test_without_warm_up_the_rate_is_whole_from_the_first_step():
  config = config_of(**{"optimizer.learning_rate": 0.5, "optimizer.warmup_images": 0})
  assert update.learning_rate(config, jnp.float32(0)) == 0.5


def test_the_learning_rate_falls_polynomially():
  """lr = max(γ_0·(1 − n/N)^.96, γ_min), under the ramp; beyond N it stays at γ_min."""
  fields = {"learning_rate": 0.5, "warmup_images": 100, "decay_power": 0.96, "min_learning_rate": 0.05}
  fields = {f"optimizer.{name}": value for name, value in fields.items()}
  images = np.array([0, 50, 100, 5000, 9000, 9500, 10_000, 10**6])
  expected = np.maximum(0.5 * np.maximum(1 - images / 10_000, 0) ** 0.96, 0.05) * np.minimum(images / 100, 1)
  for length in ({"optimizer.decay_images": 10_000}, {"train.num_steps": 400, "train.batch_size": 25}):
    got = [update.learning_rate(config_of(**fields, **length), jnp.float32(n)) for n in images]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_average_ramps_up_with_the_updates():
  """β = min(.999, 1 − (1 + n)^(−2/3)) of 128 images an update, as DDM's code has it."""
  half_life = 128 * np.log(0.5) / np.log(0.999)
  assert round(half_life) == 88_678
  config = config_of(**{"ema.half_life_images": 88_678, "ema.ramp_up": 0.0, "ema.ramp_power": 2 / 3}).ema
  n = np.array([0, 1, 100, 10_000, 40_000, 10**6])
  got = [update.ema_decay(config, 128, jnp.float32(128 * k)) for k in n]
  np.testing.assert_allclose(got, np.minimum(0.999, 1 - (1.0 + n) ** (-2 / 3)), rtol=1e-5, atol=1e-6)


def test_an_average_halves_its_past_in_a_half_life():
  """β over the steps of half_life images is 1/2; without ramp that holds from the first image on."""
  config = config_of(**{"ema.half_life_images": 3200, "ema.ramp_up": 0.0}).ema
  beta = update.ema_decay(config, 32, jnp.float32(0))
  np.testing.assert_allclose(float(beta) ** 100, 0.5, rtol=1e-4)


def test_the_half_life_ramps_up_with_the_images_seen():
  """h = min(half_life, ramp_up·images): β = ½^(batch/h), and 0 on the first step."""
  config = config_of(**{"ema.half_life_images": 1000, "ema.ramp_up": 0.05}).ema
  images = np.array([64, 6400, 20_000, 10**7])
  got = [update.ema_decay(config, 64, jnp.float32(n)) for n in images]
  np.testing.assert_allclose(got, 0.5 ** (64 / np.minimum(1000, 0.05 * images)), rtol=1e-5)
  assert update.ema_decay(config, 64, jnp.float32(0)) == 0


@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_updates_are_adam_with_warm_up_and_averages(clip):
  """Twelve updates of given gradients, against Adam (Kingma & Ba, Algorithm 1), (1) and (2) in float64."""
  config = config_of(**{
    "optimizer.learning_rate": 0.1, "optimizer.warmup_images": 40, "optimizer.clip_norm": clip,
    "optimizer.beta1": 0.8, "optimizer.beta2": 0.95, "optimizer.epsilon": 1e-3,
    "ema.half_life_images": 30, "ema.ramp_up": 0.5, "train.batch_size": 8,
  })  # fmt: skip
  rng = np.random.default_rng(0)
  p = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}
  now, step = toy_state(config, {k: v.astype(np.float32) for k, v in p.items()}), jax.jit(apply, static_argnums=0)
  config = Hashable(config)
  ema, m, v = dict(p), {k: 0 * x for k, x in p.items()}, {k: 0 * x for k, x in p.items()}
  for i in range(12):
    g = {k: rng.normal(size=x.shape) * rng.choice([0.1, 3.0]) for k, x in p.items()}
    now, metrics = step(config, now, jnp.float32(i), jax.tree.map(jnp.float32, g))
    norm = np.sqrt(sum(np.sum(x**2) for x in g.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    if clip and norm > clip:
      g = {k: x * clip / norm for k, x in g.items()}
    images = 8 * i
    rate = 0.1 * min(images / 40, 1)
    beta = 0.5 ** (8 / min(30, 0.5 * images)) if images else 0.0
    np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
    for k in p:
      m[k], v[k] = 0.8 * m[k] + 0.2 * g[k], 0.95 * v[k] + 0.05 * g[k] ** 2
      p[k] = p[k] - rate * (m[k] / (1 - 0.8 ** (i + 1))) / (np.sqrt(v[k] / (1 - 0.95 ** (i + 1))) + 1e-3)
      ema[k] = beta * ema[k] + (1 - beta) * p[k]
      np.testing.assert_allclose(now.params["net"][k], p[k], rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(now.ema["net"][k], ema[k], rtol=1e-4, atol=1e-5)
  reference = optax.scale_by_adam(0.8, 0.95, 1e-3)
  assert jax.tree.structure(reference.init(now.params["net"])) == jax.tree.structure(
    now.opt_state["net"][1] if clip else now.opt_state["net"]
  )


class Hashable:
  """Lets a config be a static argument."""

  def __init__(self, config):
    self.config = config


def apply(config, now, loss, grads):
  new, metrics = update.apply_gradients(config.config, now, "net", loss, grads, None)
  return new.replace(step=now.step + 1), metrics


def test_the_first_average_is_the_parameters():
  config = config_of(**{"ema.ramp_up": 0.05})
  before = toy_state(config, {"w": np.ones(3, np.float32)})
  before = before.replace(ema={"net": {"w": jnp.full(3, 7.0)}})
  after, _ = apply(Hashable(config), before, jnp.float32(1.0), {"w": jnp.ones(3)})
  np.testing.assert_array_equal(after.ema["net"]["w"], after.params["net"]["w"])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_what_is_frozen_stays(decay):
  """Its gradient counts neither in the norm nor in the clipping of the others', and it does not decay."""
  rng = np.random.default_rng(0)
  params = {name: {"kernel": rng.normal(size=3).astype(np.float32)} for name in ("enc_a", "dec_a")}
  grads = {name: {"kernel": jnp.full(3, 5.0)} for name in params}
  fields = {"optimizer.clip_norm": 1.0, "optimizer.weight_decay": decay, "optimizer.warmup_images": 0}
  for frozen, trained in (("net/enc_*", ["dec_a"]), ("net/*/bias", ["dec_a", "enc_a"])):
    config = config_of(**fields, **{"optimizer.frozen": (frozen,)})
    after, metrics = apply(Hashable(config), toy_state(config, params), jnp.float32(1.0), grads)
    changed = [name for name in sorted(params) if np.any(after.params["net"][name]["kernel"] != params[name]["kernel"])]
    assert changed == trained
    np.testing.assert_allclose(metrics["grad_norm"], 5 * np.sqrt(3 * len(trained)), rtol=1e-6)


def test_roles_are_updated_apart():
  """An update of one role leaves the parameters, averages and moments of another alone."""
  config = config_of()
  one = toy_state(config, {"w": np.ones(2, np.float32)})
  both = lambda tree: {**tree, "teacher": jax.tree.map(jnp.copy, tree["net"])}
  now = one.replace(params=both(one.params), ema=both(one.ema), opt_state=both(one.opt_state), step=jnp.int32(5))
  after, _ = apply(Hashable(config), now, jnp.float32(1.0), {"w": jnp.ones(2)})
  assert not np.array_equal(after.params["net"]["w"], now.params["net"]["w"])
  for name in ("params", "ema", "opt_state"):
    jax.tree.map(np.testing.assert_array_equal, getattr(after, name)["teacher"], getattr(now, name)["teacher"])


# --- the guard --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss, grad", [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, -np.inf), (1.0, 1e30)])
def test_an_update_that_is_not_finite_changes_nothing_but_counters(loss, grad):
  """NaN or infinity in the loss or in one gradient, or a norm that overflows; a good update ends the row of them."""
  config = config_of()
  before = toy_state(config, {"w": np.ones(3, np.float32)}).replace(step=jnp.int32(3))
  before, _ = apply(Hashable(config), before, jnp.float32(1.0), {"w": jnp.ones(3)})
  bad = {"w": jnp.array([1.0, grad, 1.0], jnp.float32)}
  after, metrics = apply(Hashable(config), before, jnp.float32(loss), bad)
  after, _ = apply(Hashable(config), after, jnp.float32(loss), bad)
  for name in ("params", "ema", "opt_state"):
    jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
  assert (int(after.skipped), int(after.skipped_in_row), float(metrics["skipped"])) == (2, 2, 1.0)
  good, metrics = apply(Hashable(config), after, jnp.float32(1.0), {"w": jnp.ones(3)})
  assert (int(good.skipped), int(good.skipped_in_row), float(metrics["skipped"])) == (2, 0, 0.0)
  assert not np.array_equal(good.params["net"]["w"], after.params["net"]["w"])


def test_a_dynamic_loss_scale_halves_at_a_bad_update_and_doubles_after_good_ones():
  """It never falls below 1, and the count of good updates begins again at a bad one and at a doubling."""
  config = config_of(**{"optimizer.loss_scale": 8.0, "optimizer.loss_scale_growth": 3})
  now = state.create({"net": {"w": jnp.ones(3)}}, update.init_optimizer(config, {"net": {"w": jnp.ones(3)}}))
  scales = []
  for loss in [1, 1, np.nan, 1, 1, 1, 1, np.nan, np.nan, np.nan, np.nan, np.nan, 1]:
    now, _ = apply(Hashable(config), now, jnp.float32(loss), {"w": jnp.ones(3)})
    scales.append(float(update.loss_scale(config.optimizer, now)))
  assert scales == [8, 8, 4, 4, 4, 8, 8, 4, 2, 1, 1, 1, 1]
  assert update.loss_scale(config_of(**{"optimizer.loss_scale": 100.0}).optimizer, now) == 100.0


def test_a_scaled_loss_gives_the_same_loss_metrics_and_gradients():
  loss = lambda params, batch: (jnp.mean(params["w"] * batch), {"m": jnp.sum(batch)})
  batch, params = jnp.arange(8.0), {"w": jnp.float32(3.0)}
  for accumulation in (1, 2):
    plain = update.value_and_grad(loss, params, batch, accumulation)
    scaled = update.value_and_grad(loss, params, batch, accumulation, jnp.float32(512.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), scaled, plain)


def test_one_bad_device_skips_the_update_on_all():
  """The loss of one of eight devices is NaN: every copy of the state stays equal and unchanged."""
  config = config_of()
  now = parallel.from_config("pmap").everywhere(toy_state(config, {"w": np.ones(3, np.float32)}))
  run = lambda now, loss: update.apply_gradients(config, now, "net", loss, {"w": jnp.ones(3)}, "i")[0]
  after = jax.pmap(run, axis_name="i")(now, jnp.ones(8).at[5].set(jnp.nan))
  np.testing.assert_array_equal(after.skipped, np.ones(8))
  np.testing.assert_array_equal(after.params["net"]["w"], np.ones((8, 3)))


def test_gradients_are_averaged_over_devices():
  """Loss and gradient norm are those of the mean over the axis, on every device."""
  config = config_of()
  now = parallel.from_config("pmap").everywhere(toy_state(config, {"w": np.ones(3, np.float32)}))
  run = lambda now, loss, g: update.apply_gradients(config, now, "net", loss, {"w": g}, "i")
  grads = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
  _, metrics = jax.pmap(run, axis_name="i")(now, jnp.arange(8.0), grads)
  np.testing.assert_allclose(metrics["loss"], np.full(8, 3.5))
  np.testing.assert_allclose(metrics["grad_norm"], np.full(8, np.linalg.norm(grads.mean(0))), rtol=1e-5)


def test_a_window_holds_the_good_updates_since_the_last_log_line():
  """Means over good updates, the number skipped, and nothing of the window before."""
  losses, config = [1.0, np.nan, 4.0, 7.0, np.nan, 9.0, np.nan, np.nan, np.nan], config_of()
  values = jnp.array(losses)

  def method_update(now, batch, key):
    return update.apply_gradients(config, now, "net", values[now.step], {"w": jnp.ones(2)}, None)

  step = update.windowed(method_update, log_every=3)
  now, means = toy_state(config, {"w": np.ones(2, np.float32)}), []
  for i in range(9):
    now = step(now, None, None)
    if i % 3 == 2:
      means.append(update.window_means(now.window))
  assert int(now.step) == 9
  assert [m["skipped"] for m in means] == [1, 1, 3]
  np.testing.assert_allclose([m["loss"] for m in means[:2]], [2.5, 8.0])
  np.testing.assert_allclose(means[0]["grad_norm"], np.sqrt(2), rtol=1e-6)
  assert means[2]["loss"] is None and means[2]["grad_norm"] is None
  assert "updates" not in means[0]


# --- several updates a call, micro-batches ----------------------------------------------------------------------------


def batches(config, count):
  rng = np.random.default_rng(1)
  b = config.train.batch_size
  return [
    {
      "image": rng.integers(0, 256, (b, 8, 8, 1)).astype(np.uint8),
      "label": rng.integers(0, 10, b).astype(np.int32),
      "index": np.arange(b, dtype=np.int32),
      "slot": np.arange(b, dtype=np.int32),
    }
    for _ in range(count)
  ]


@pytest.fixture(scope="module")
def run_of():
  """(**fields of config.train) -> (state after four updates of random batches, text of the compiled function)."""

  @functools.cache
  def run(updates_per_call=1, accumulation=1, layout="pmap", on_device=False):
    config = config_of(**{"train.batch_size": 16, "train.accumulation": accumulation})
    layout = parallel.from_config(layout)
    method = methods.from_config(config, layout.axis_name)
    shardings = layout.shardings(start.shapes(method, config))
    now = layout.lay(jax.jit(lambda: start.create_state(method, config), out_shardings=shardings)())
    key, data, store = start.train_key(config), batches(config, 4), None
    if on_device:  # the examples of all batches after another, in reverse
      store = {name: np.concatenate([b[name] for b in data])[::-1] for name in ("image", "label")}
      data = [{"index": 63 - 16 * i - b["index"], "slot": b["slot"]} for i, b in enumerate(data)]
      store = layout.everywhere(store)
    data = [layout.split(data[i : i + updates_per_call]) for i in range(0, 4, updates_per_call)]
    call = layout.compile(update.windowed(method.update, 4), updates_per_call)
    compiled = call.lower(now, data[0], key, store).compile({"xla_backend_optimization_level": 0})
    for batch in data:
      now, skipped = compiled(now, batch, key, store)
    np.testing.assert_array_equal(parallel.first(skipped), np.zeros(updates_per_call))
    return layout.whole(layout.lay(layout.gather(now))), compiled.as_text()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(base, "network_from_config", lambda config, heads: toy.Toy())
    yield run


@pytest.mark.parametrize("loop", [
  {"updates_per_call": 4}, {"accumulation": 2}, {"layout": "jit"}, {"layout": "fsdp"}, {"on_device": True},
  {"layout": "fsdp", "updates_per_call": 2, "accumulation": 2, "on_device": True},
], ids=str)  # fmt: skip
def test_loops_of_updates_give_what_single_ones_give(run_of, loop):
  """Four updates in a call are four calls, two micro-batches are one batch, and all layouts are one: losses,
  parameters, averages, moments. So it is with the data on the devices.
  """
  single, looped = run_of()[0], run_of(**loop)[0]
  assert int(single.step) == int(looped.step) == 4
  assert single.window["loss"] > 0 and single.window["updates"] == 4
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), looped, single)


def loops_with_products(hlo: str) -> list[str]:
  """Names of the while bodies of an HLO text that hold a convolution or a matrix product, called ones included."""
  bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", hlo, re.M | re.S))

  def holds(name):
    text = bodies.get(name, "")
    called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", text)
    return bool(re.search(r" (convolution|dot|custom-call)\(", text)) or any(map(holds, called))

  assert bodies
  return [body for body in re.findall(r"body=%?([\w.\-]+)", hlo) if holds(body)]


def test_the_search_for_loops_finds_one():
  """A scan that is not unrolled is found, so that the next test could fail."""
  w = jnp.ones((64, 64))
  scan = lambda unroll: lambda x: jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, 4, unroll=unroll)[0]
  hlo = lambda unroll: jax.jit(scan(unroll)).lower(w).compile().as_text()
  assert loops_with_products(hlo(1)) and not loops_with_products(hlo(4))


@pytest.mark.parametrize("loop", [{"updates_per_call": 4}, {"accumulation": 2}], ids=str)
def test_no_loop_on_cpu_holds_a_convolution(run_of, loop):
  """Loops of updates are unrolled whole on CPU, where gradient convolutions in a while loop are far slower."""
  assert update.loop_unroll(7) == 7
  hlo = run_of(**loop)[1]
  assert re.search(r" (convolution|custom-call)\(", hlo)
  assert not loops_with_products(hlo)


def test_a_loop_is_rolled_where_there_is_an_accelerator(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert update.loop_unroll(7) == 1
