"""What there is to know of each sampler by name: its order, its cost, whether it draws noise, and whom it serves."""

from collections.abc import Callable
from typing import NamedTuple

from diffusion_jax.process import Process
from diffusion_jax.samplers import adaptive, ancestral, direct, exponential, multistep, ode, sde, singlestep


class Kind(NamedTuple):
  """A sampler.

  Attributes:
    sample: the function.
    orders: of convergence in the step: that of a deterministic sampler; of one with the option `order` each that there
      is, the default last; empty for one that has none.
    cost: number of steps -> evaluations of the network; None where a tolerance decides.
    noise: "no", "yes", or what decides.
    source: where it comes from.
    gaussian: needs α(t) and noise levels.
    history: estimates of a step, so that a grid has at least so many steps; of one with an order, that of order p is p.
    previous: needs denoise(x, t, previous), DDDM's, and serves no other.
  """

  sample: Callable
  orders: tuple[int, ...]
  cost: Callable[[int], int] | None
  noise: str
  source: str
  gaussian: bool = True
  history: int = 1
  previous: bool = False

  @property
  def has_order(self) -> bool:
    """Whether `order` is an option of it."""
    return len(self.orders) > 1


def _n(steps: int) -> int:
  return steps


def _two_n(steps: int) -> int:
  return 2 * steps - 1


def _twice(steps: int) -> int:
  return 2 * steps


def _three_n(steps: int) -> int:
  return 3 * steps - 2


KINDS = {
  "euler": Kind(ode.euler, (1,), _n, "churn", "EDM", gaussian=False),
  "heun": Kind(ode.heun, (2,), _two_n, "churn", "EDM, Algorithms 1 to 3", gaussian=False),
  "ddim": Kind(ancestral.ddim, (1,), _n, "eta", "Song et al. 2021", gaussian=False),
  "multistep": Kind(multistep.multistep, (1, 3, 4, 2), _n, "no", "Adams–Bashforth in arctan(σ/α)", gaussian=False),
  "deis": Kind(multistep.deis, (1, 2, 4, 3), _n, "no", "Zhang & Chen 2023, tAB"),
  "dpm_solver_2": Kind(singlestep.dpm_solver_2, (2,), _two_n, "no", "Lu et al. 2022"),
  "dpm_solver_3": Kind(singlestep.dpm_solver_3, (3,), _three_n, "no", "Lu et al. 2022"),
  "dpmpp_2s": Kind(singlestep.dpmpp_2s, (2,), _two_n, "no", "Lu et al. 2022, DPM-Solver++"),
  "dpmpp_2m": Kind(exponential.dpmpp_2m, (2,), _n, "no", "Lu et al. 2022, DPM-Solver++", history=2),
  "dpmpp_3m": Kind(exponential.dpmpp_3m, (3,), _n, "no", "Lu et al. 2022, DPM-Solver++", history=3),
  "dpmpp_2m_sde": Kind(exponential.dpmpp_2m_sde, (), _n, "yes", "Lu et al. 2022, DPM-Solver++", history=2),
  "unipc": Kind(exponential.unipc, (1, 2, 3), _n, "no", "Zhao et al. 2023; its corrector adds one order"),
  "sa_solver": Kind(exponential.sa_solver, (1, 2, 3), _n, "tau", "Xue et al. 2023; its corrector adds one order"),
  "rk45": Kind(adaptive.rk45, (5,), None, "no", "Dormand & Prince 1980, adaptive"),
  "ddpm": Kind(ancestral.ddpm, (), _n, "yes", "Ho et al. 2020"),
  "decoupled": Kind(ancestral.decoupled, (), _n, "yes", "DDM, Algorithm 2", gaussian=False),
  "dpdm": Kind(direct.dpdm, (), _n, "yes", "DPDM, Algorithm 2", gaussian=False),
  "dddm": Kind(direct.dddm, (), _n, "its start", "DDDM, Algorithm 2", previous=True),
  "euler_maruyama": Kind(sde.euler_maruyama, (), _n, "yes", "Song et al. 2021"),
  "predictor_corrector": Kind(sde.predictor_corrector, (), _twice, "yes", "Song et al. 2021"),
}
BY_NAME = {name: kind.sample for name, kind in KINDS.items()}


def serving(process: Process, *first: str) -> tuple[str, ...]:
  """Names of the samplers that serve every method of a process but DDDM's, those of `first` before the others."""
  names = [name for name, kind in KINDS.items() if not kind.previous and (process.is_gaussian or not kind.gaussian)]
  return (*first, *(name for name in names if name not in first))


def evaluations(name: str, steps: int) -> int | None:
  """Evaluations of the network of a sampler in so many steps; None where a tolerance decides."""
  cost = KINDS[name].cost
  return None if cost is None else cost(steps)


def check_steps(name: str, steps: int, order: int | None = None):
  """Raises ValueError where a step of a sampler uses more estimates than there are steps."""
  kind = KINDS.get(name)  # none of a sampler that was put into BY_NAME alone
  needed = order or (kind.history if kind else 1)
  if steps < needed:
    raise ValueError(f"{name} uses {needed} estimates in a step: the grid must have as many steps, got {steps}")


def table() -> str:
  """The samplers as a Markdown table, which the README has."""
  rows = ["| sampler | order | evaluations of N steps | noise | processes | source |", "|---|---|---|---|---|---|"]
  for name, kind in KINDS.items():
    order = f"{min(kind.orders)} to {max(kind.orders)}" if kind.has_order else "".join(map(str, kind.orders)) or "–"
    cost = {_n: "N", _two_n: "2N − 1", _twice: "2N", _three_n: "3N − 2", None: "as the tolerance asks"}[kind.cost]
    whom = "DDDM's" if kind.previous else "with noise levels" if kind.gaussian else "all"
    rows.append(f"| `{name}` | {order} | {cost} | {kind.noise} | {whom} | {kind.source} |")
  return "\n".join(rows)
