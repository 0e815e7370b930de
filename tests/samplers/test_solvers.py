"""Few-step solvers: the exact recursion of each for Gaussian data, orders of convergence, identities, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import solver_oracle

from diffusion_jax import process, samplers, times
from diffusion_jax.samplers import adaptive, catalogue, polynomial

M, S2 = 0.3, 0.64
PROCESSES = {"EDM": process.EDM(), "VP": process.VP(), "VE": process.VE(), "Decoupled": process.Decoupled()}
GRIDS = {
  "EDM": times.edm_grid(7),
  "VP": np.append(1 + np.arange(7) / 6 * (1e-3 - 1), 0),
  "VE": times.ve_grid(7) ** 2,
  "Decoupled": times.decoupled_grid(7),
}
STEPS = {
  "dpm_solver_2": ("singlestep", {}),
  "dpm_solver_3": ("singlestep", {}),
  "dpmpp_2s": ("singlestep", {}),
  "dpmpp_2m": ("exponential", {"order": 2, "variant": "bh2"}),
  "dpmpp_3m": ("exponential", {"order": 3, "variant": "bh2"}),
}


def keys_of(n):
  return jax.vmap(jax.random.key)(jnp.arange(n))


def reference(name, proc, grid, options):
  """States at the grid's positive values and the result, coefficients [., N + 2 or 2]."""
  schedule, order = oracle.SCHEDULES[proc], options.get("order")
  if name == "multistep":
    states = solver_oracle.in_angle(schedule, M, S2, grid, order)
  elif name == "deis":
    states = solver_oracle.deis(schedule, M, S2, grid, order)
  elif name in ("unipc", "sa_solver"):
    variant = options.get("variant") if name == "unipc" else None
    tau = lambda t: options.get("tau", 0.0) * (0.05 <= solver_oracle.level(schedule, t) <= 20)
    final = options.get("lower_final", True)
    states = solver_oracle.exponential(schedule, M, S2, grid, order, order, variant, tau, final)
  elif name == "dpmpp_2m_sde":
    states = solver_oracle.exponential(schedule, M, S2, grid, 2, 0, "bh2", lambda t: options["tau"])
  elif STEPS[name][0] == "singlestep":
    states = solver_oracle.singlestep(schedule, M, S2, grid, name)
  else:
    states = solver_oracle.exponential(schedule, M, S2, grid, **STEPS[name][1])
  last = states[-1]
  return [*states, solver_oracle.pair(schedule, M, S2, last, grid[-2])[0]]


DETERMINISTIC = [
  *(("multistep", {"order": order}) for order in (1, 2, 3, 4)),
  *(("deis", {"order": order}) for order in (1, 2, 3, 4)),
  *((name, {}) for name in STEPS),
  *(("unipc", {"order": order, "variant": variant}) for order in (1, 2, 3) for variant in ("bh1", "bh2")),
  ("unipc", {"order": 3, "variant": "bh2", "lower_final": False}),
  *(("sa_solver", {"order": order, "tau": 0.0}) for order in (1, 2, 3)),
]  # fmt: skip


@pytest.mark.parametrize("name, options", DETERMINISTIC)
@pytest.mark.parametrize("proc", ["EDM", "VP", "Decoupled"])
def test_gaussian_data_give_the_exact_recursion(proc, name, options, x64):
  p, grid = PROCESSES[proc], GRIDS[proc]
  expected = np.array(reference(name, proc, grid, options))
  x = jnp.linspace(-2, 2, 48).reshape(3, 4, 4, 1) * p.sigma(grid[0])
  denoise = oracle.gaussian_denoise(p, M, S2)
  run = lambda x: getattr(samplers, name)(denoise, p, x, grid, keys_of(3), trajectory=True, **options)
  x0, states = jax.jit(run)(x)
  expected = expected[:, 0, None, None, None, None] + expected[:, 1, None, None, None, None] * np.asarray(x)
  np.testing.assert_allclose(states, expected, rtol=1e-8, atol=1e-8)
  np.testing.assert_array_equal(x0, states[-1])


@pytest.mark.parametrize("name, options", [
  ("dpmpp_2m_sde", {"tau": 1.0}), ("dpmpp_2m_sde", {"tau": 0.4}),
  ("sa_solver", {"order": 2, "tau": 1.0}), ("sa_solver", {"order": 3, "tau": 0.7}),
])  # fmt: skip
@pytest.mark.parametrize("proc", PROCESSES)
def test_stochastic_solvers_give_the_exact_mean_and_variance(proc, name, options):
  p, grid = PROCESSES[proc], GRIDS[proc]
  mean, start, *noise = reference(name, proc, grid, options)[-1]
  keys = keys_of(2048)
  x = p.prior(keys, (8, 8, 1), grid[0])
  more = {"s_max": 20.0} if name == "sa_solver" else {}
  denoise = oracle.gaussian_denoise(p, M, S2)
  out = jax.jit(lambda x: getattr(samplers, name)(denoise, p, x, grid, keys, **options, **more))(x)
  out = np.asarray(out, np.float64).ravel()  # 131,072 independent numbers
  v = (start * float(p.sigma(grid[0]))) ** 2 + np.sum(np.square(noise))
  assert abs(out.mean() - mean) < 4 * np.sqrt(v / out.size)
  assert abs(out.var() - v) < 4 * v * np.sqrt(2 / out.size)


ORDERS = [
  *(("multistep", {"order": order}, order) for order in (1, 2, 3, 4)),
  *(("deis", {"order": order}, order) for order in (1, 2, 3, 4)),
  ("dpm_solver_2", {}, 2), ("dpm_solver_3", {}, 3), ("dpmpp_2s", {}, 2), ("dpmpp_2m", {}, 2), ("dpmpp_3m", {}, 3),
  *(("unipc", {"order": p, "lower_final": False}, p + 1) for p in (1, 2, 3)),
  *(("sa_solver", {"order": p, "tau": 0.0, "lower_final": False}, p + 1) for p in (1, 2, 3)),
]  # fmt: skip


@pytest.mark.parametrize("name, options, order", ORDERS)
@pytest.mark.parametrize("proc", ["VP", "Decoupled"])
def test_order_of_convergence(proc, name, options, order, x64):
  """Error at the last positive time for a mixture, from grids of about N and 2N steps.

  The first steps of a multistep solver have too little history for its order: here they are as short as their own
  order asks for, so that they leave no more than the others.
  """
  p, schedule = PROCESSES[proc], oracle.SCHEDULES[proc]
  start, end = 8.0, 0.3
  x = np.linspace(-2, 2, 16) * schedule(float(p.inverse(jnp.float64(start))))[1]
  exact = oracle.mixture_flow(
    schedule, oracle.MIXTURE, x, *(float(p.inverse(jnp.float64(n))) for n in (start, end))
  )  # fmt: skip
  denoise = oracle.scalar_mixture_denoise(p, oracle.MIXTURE)

  def error(n):
    levels = (start**0.25 + np.arange(n + 1) / n * (end**0.25 - start**0.25)) ** 4
    short = (levels[0] - levels[1]) * (4 / n) ** (order / 2 - 1) if order > 2 else 0
    extra = start - short * np.arange(1, order) if order > 2 else []
    grid = np.asarray(p.inverse(jnp.asarray(np.unique(np.concatenate([levels, extra]))[::-1])))
    run = lambda x: getattr(samplers, name)(denoise, p, x, np.append(grid, 0), keys_of(1), trajectory=True, **options)
    return np.abs(np.asarray(jax.jit(run)(x.reshape(1, 4, 4, 1))[1][-2]).ravel() - exact).max()

  observed = np.log2(error(64) / error(128))
  assert abs(observed - order) < (0.35 if order < 4 else 0.5), observed


def test_moments_are_the_integrals(x64):
  """M_k = ∫ e^{z(1 − r)} r^k dr by quadrature, from both ends of the series' range to far beyond."""
  from scipy.integrate import quad

  for z in (-30.0, -2.1, -2.0, -1e-3, 0.0, 1e-6, 1.9, 2.1, 10.0):
    moments = polynomial.exponential_moments(jnp.float64(z), 4)
    expected = [quad(lambda r: np.exp(z * (1 - r)) * r**k, 0, 1, epsabs=0, epsrel=1e-13)[0] for k in range(5)]
    np.testing.assert_allclose(moments, expected, rtol=1e-12)


def test_solvers_of_one_estimate_are_ddim_and_of_no_noise_the_others(x64):
  p, grid, keys = PROCESSES["VP"], GRIDS["VP"], keys_of(2)
  denoise = oracle.scalar_mixture_denoise(p, oracle.MIXTURE)
  x = p.prior(keys, (4, 4, 1), grid[0])
  run = lambda name, **options: np.asarray(getattr(samplers, name)(denoise, p, x, grid, keys, **options))
  np.testing.assert_allclose(run("deis", order=1), run("ddim"), rtol=1e-9)
  np.testing.assert_allclose(run("dpmpp_2m_sde", tau=0.0), run("dpmpp_2m"), rtol=1e-9)


@pytest.mark.parametrize("name", [name for name, kind in samplers.KINDS.items() if not kind.previous and kind.orders])
def test_a_start_without_signal_leads_to_the_data(name):
  """From α = 0, where log-SNR is −∞: finite, and near the flow of a decoupled process."""
  p, grid = PROCESSES["Decoupled"], times.decoupled_grid(40, power=2)
  options = {"tau": 0.0} if name == "sa_solver" else {}
  x = jnp.linspace(-2, 2, 16).reshape(1, 4, 4, 1)
  out = samplers.BY_NAME[name](oracle.gaussian_denoise(p, M, S2), p, x, grid, keys_of(1), **options)
  np.testing.assert_allclose(out, M + np.sqrt(S2) * x, atol=0.06 if name in ("euler", "ddim") else 0.02)


# --- the adaptive solver ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proc", PROCESSES)
def test_rk45_meets_its_tolerance(proc, x64):
  p, schedule = PROCESSES[proc], oracle.SCHEDULES[proc]
  start, end = (float(p.inverse(jnp.float64(n))) for n in (8.0, 0.05))
  x = np.linspace(-2, 2, 16) * schedule(start)[1]
  exact = oracle.mixture_flow(schedule, oracle.MIXTURE, x, start, end)
  denoise = oracle.scalar_mixture_denoise(p, oracle.MIXTURE)

  def run(tolerance):
    (_, states), count = jax.jit(lambda x: samplers.rk45(
      denoise, p, x, np.array([start, end, 0.0]), rtol=tolerance, atol=tolerance, count=True, trajectory=True,
    ))(x.reshape(1, 4, 4, 1))  # fmt: skip
    return np.abs(np.asarray(states[1]).ravel() - exact).max(), int(count[0])

  (coarse, few), (fine, many) = run(1e-3), run(1e-8)
  assert coarse < 2e-2 and fine < 2e-7
  assert few < 100 and many < 1000 and (many - 2) % 6 == 0


def test_an_image_of_rk45_has_its_own_steps_and_evaluations():
  """Beside a hard image an easy one has the steps that it has alone."""
  p, grid = PROCESSES["EDM"], np.array([80.0, 0.01, 0.0])
  means = jnp.stack([jnp.full((4, 4, 1), -0.5), jnp.linspace(-1, 1, 16).reshape(4, 4, 1)])
  denoise = oracle.mixture_denoise(p, means, jnp.array([0.4, 0.6]), 0.1)
  x = jnp.stack([jnp.zeros((4, 4, 1)), jax.random.normal(jax.random.key(0), (4, 4, 1)) * 80])
  together, counts = samplers.rk45(denoise, p, x, grid, count=True)
  for i in range(2):
    alone, count = samplers.rk45(denoise, p, x[i : i + 1], grid, count=True)
    np.testing.assert_allclose(together[i], alone[0], atol=1e-5)
    assert counts[i] == count[0]
  assert counts[0] != counts[1]


def test_rk45_that_does_not_arrive_gives_nan(monkeypatch):
  monkeypatch.setattr(adaptive, "MAX_TRIALS", 3)
  x = jnp.ones((2, 2, 2, 1))
  assert np.isnan(samplers.rk45(oracle.gaussian_denoise(PROCESSES["EDM"], M, S2), PROCESSES["EDM"], x,
                                np.array([80.0, 0.01, 0.0]), rtol=1e-6, atol=1e-6)).all()  # fmt: skip


def test_rk45_ends_at_estimates_that_are_no_numbers():
  calls, x = [], jnp.ones((2, 2, 2, 1))

  def broken(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return oracle.gaussian_denoise(PROCESSES["EDM"], M, S2)(x * jnp.nan, t)

  assert np.isnan(samplers.rk45(broken, PROCESSES["EDM"], x, np.array([80.0, 0.01, 0.0]))).all()
  jax.effects_barrier()
  assert len(calls) == 2  # at the start, and for the image


# --- errors and the catalogue -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, message", [
  (lambda x, g: samplers.unipc(D, P, x, g[2:], order=3), r"order must be at most the number of steps \(2\), got 3"),
  (lambda x, g: samplers.dpmpp_3m(D, P, x, g[2:]), r"order must be at most the number of steps \(2\), got 3"),
  (lambda x, g: samplers.deis(D, P, x, g, order=5), "order must be 1 to 4, got 5"),
  (lambda x, g: samplers.multistep(D, P, x, g, order=0), "order must be 1 to 4, got 0"),
  (lambda x, g: samplers.unipc(D, P, x, g, order=4), "order of unipc must be 1 to 3, got 4"),
  (lambda x, g: samplers.unipc(D, P, x, g, variant="bh3"), "variant must be one of bh1, bh2, got 'bh3'"),
  (lambda x, g: samplers.dpmpp_2m(D, P, x, g[::-1]), "grid must decrease from a finite t to 0"),
  (lambda x, g: samplers.rk45(D, P, x, g[::-1]), "grid must decrease from a finite t to 0"),
  (lambda x, g: samplers.rk45(D, P, x, g, rtol=0.0), "rtol must be positive, got 0.0"),
  (lambda x, g: samplers.dpm_solver_2(D, P, x, g[:-1]), "grid must decrease from a finite t to 0"),
  (lambda x, g: samplers.sa_solver(D, P, x, g, None), "sa_solver draws noise: keys must hold one PRNG key an image"),
  (lambda x, g: samplers.dpmpp_2m_sde(D, P, x, g, None), "dpmpp_2m_sde draws noise: keys must hold one PRNG key"),
  (lambda x, g: samplers.dpmpp_2m(D, LINEAR, x, DECOUPLED), r"Decoupled\('linear'\) is not a Gaussian process"),
  (lambda x, g: samplers.deis(D, LINEAR, x, DECOUPLED), r"Decoupled\('linear'\) is not a Gaussian process"),
  (lambda x, g: samplers.dpm_solver_3(D, LINEAR, x, DECOUPLED), r"Decoupled\('linear'\) is not a Gaussian process"),
  (lambda x, g: samplers.rk45(D, LINEAR, x, DECOUPLED), r"Decoupled\('linear'\) is not a Gaussian process"),
])  # fmt: skip
def test_bad_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(jnp.ones((2, 2, 2, 1)), times.edm_grid(4))


P, LINEAR, DECOUPLED = process.EDM(), process.Decoupled("linear"), times.decoupled_grid(4)
D = oracle.gaussian_denoise(P, M, S2)


def test_a_process_without_noise_levels_is_served_by_those_that_need_none():
  served = samplers.serving(LINEAR, "decoupled")
  assert served[0] == "decoupled" and {"multistep", "euler", "heun", "ddim", "dpdm"} == set(served[1:])
  assert set(samplers.serving(P)) == set(samplers.BY_NAME) - {"dddm"}


def test_the_readme_has_the_table_of_samplers():
  from pathlib import Path

  assert catalogue.table() in (Path(__file__).parents[2] / "README.md").read_text()
