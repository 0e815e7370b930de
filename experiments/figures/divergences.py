"""DPDM's Table 5: divergences of two parallel segments, of which only the smoothed one is smooth (Appendix A.1).

  python experiments/figures/divergences.py --out=results/dpdm

P_θ is the uniform law on {(θ, z), 0 ≤ z ≤ 1} and P_0 that on {(0, z)}; with noise of variance t their densities are

    p_θ^(t)(x, z) = N(x; θ, t)·∫_0^1 N(z; s, t) ds                                                  (1)
    smooth KL = ∫∫ p_θ^(t)·log(p_θ^(t)/p_0^(t)) dx dz                  = θ²/(2t)                    (2)
    its gradient = E_{p_θ^(t)}[(∇ log p_θ^(t) − ∇ log p_0^(t))·∂(x, z)/∂θ], ∂(x, z)/∂θ = (1, 0)     (3)

No value is taken from the closed forms. (2) and (3), the paper's Theorem 3.2, are quadratures, the scores by autodiff.
The other divergences are those of n atoms on each segment in place of the uniform laws: KL and Jensen-Shannon are sums
over the union of the atoms, so that KL is +∞ where P_θ has an atom and P_0 has none; Wasserstein-1 is the cost of the
best assignment. The CSV has the closed forms beside, and how far off the computed values are.

Writes OUT/table5.md, and OUT/table5.png with OUT/table5.csv.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from common import OUT, outputs, plt, write
from etils import epath

from diffusion_jax import cli
from diffusion_jax.evaluation import report

THETAS = np.arange(-20, 21) / 20
VARIANCES = (0.1, 0.25, 1.0)  # t
NODES = 32  # of Gauss-Legendre on the segment
POINTS = (241, 241)  # of the trapezoidal rule in x and z, which is exact to rounding for such integrands
TAIL = 10.0  # standard deviations of the noise around the segments
ATOMS = 64
TOP = 2.5  # of the plot: smooth KL at small t goes on above it
STEP = 1e-6  # of the one-sided slopes at θ = 0


def log_density(x, z, theta, t: float):
  """log p_θ^(t) of equation (1) at (x, z), which broadcast."""
  nodes, weights = np.polynomial.legendre.leggauss(NODES)
  s, weights = (nodes + 1) / 2, weights / 2
  log_normal = lambda d: -(d**2) / (2 * t) - 0.5 * jnp.log(2 * jnp.pi * t)
  return log_normal(x - theta) + jax.nn.logsumexp(log_normal(z[..., None] - s), axis=-1, b=weights)


def quadrature(integrand, t: float):
  """∫∫ integrand(x, z) dx dz over the segments of all THETAS and the noise around them."""
  reach = TAIL * jnp.sqrt(t)
  x = jnp.linspace(THETAS[0] - reach, THETAS[-1] + reach, POINTS[0])
  z = jnp.linspace(-reach, 1 + reach, POINTS[1])
  return jnp.sum(integrand(x[:, None], z[None])) * (x[1] - x[0]) * (z[1] - z[0])


def smooth_kl(theta, t: float):
  """Equation (2)."""

  def integrand(x, z):
    log_p = log_density(x, z, theta, t)
    return jnp.exp(log_p) * (log_p - log_density(x, z, 0.0, t))

  return quadrature(integrand, t)


def score_gradient(theta, t: float):
  """Equation (3): the gradient that DPDM follows."""
  along_x = lambda x, z, center: jax.jvp(lambda x: log_density(x, z, center, t), (x,), (jnp.ones_like(x),))[1]

  def integrand(x, z):
    return jnp.exp(log_density(x, z, theta, t)) * (along_x(x, z, theta) - along_x(x, z, 0.0))

  return quadrature(integrand, t)


def atoms(theta: float) -> np.ndarray:
  """The midpoints of ATOMS equal parts of the segment at θ, [ATOMS, 2]."""
  return np.stack([np.full(ATOMS, theta), (np.arange(ATOMS) + 0.5) / ATOMS], axis=1)


def masses(theta: float) -> tuple[np.ndarray, np.ndarray]:
  """P_θ and P_0 as probabilities of the union of their atoms."""
  both, index = np.unique(np.concatenate([atoms(theta), atoms(0.0)]), axis=0, return_inverse=True)
  count = lambda part: np.bincount(part, minlength=len(both)) / ATOMS
  return count(index.ravel()[:ATOMS]), count(index.ravel()[ATOMS:])


def kl(p, q) -> float:
  """Σ p·log(p/q) over p > 0; +∞ if q = 0 there."""
  held = p > 0
  return float(np.sum(p[held] * np.log(p[held] / q[held]))) if np.all(q[held] > 0) else np.inf


def jensen_shannon(p, q) -> float:
  return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def wasserstein(theta: float) -> float:
  cost = np.linalg.norm(atoms(theta)[:, None] - atoms(0.0)[None], axis=-1)
  return float(cost[scipy.optimize.linear_sum_assignment(cost)].mean())


def divergences() -> dict:
  """{(name, t): (θ -> value)}; t is None where there is no noise."""
  smooth = jax.jit(smooth_kl)
  out = {("smooth KL (ours)", t): lambda theta, t=t: float(smooth(theta, t)) for t in VARIANCES}
  out["KL", None] = lambda theta: kl(*masses(theta))
  out["Wasserstein", None] = wasserstein
  out["Jensen-Shannon", None] = lambda theta: jensen_shannon(*masses(theta))
  return out


def closed_form(name: str, t: float | None, theta: float) -> float:
  """What Appendix A.1 derives."""
  if t is not None:
    return theta**2 / (2 * t)
  return {"KL": np.inf if theta else 0.0, "Wasserstein": abs(theta), "Jensen-Shannon": np.log(2) * (theta != 0)}[name]


def summary(name: str, divergence) -> list:
  """A row of Table 5: how the divergence grows with d = |θ|, its values, its slopes at 0, and whether it is smooth."""
  zero, half, one = (divergence(theta) for theta in (0.0, 0.5, 1.0))
  power = np.log2(one / half) if np.isfinite(one) else 0.0
  distance = f"{one:.3f}·d^{power:.2f}" if power > 1e-6 else _number(one)
  left, right = ((divergence(side * STEP) - zero) * side for side in (-1, 1))
  jump = max(abs(left), abs(right)) > 1e3 * STEP
  slopes = f"a jump of {_number(right)}" if jump else f"{_number(left / STEP)}, {_number(right / STEP)}"
  smooth = not jump and abs(right - left) < 1e-3 * STEP
  return [name, distance, *map(_number, (zero, half, one)), slopes, "yes" if smooth else "no"]


def _number(value: float) -> str:
  return "+∞" if value == np.inf else f"{round(value, 4) + 0.0:.4g}"


def main():
  png, _ = outputs("table5")
  with jax.enable_x64(True):
    found, gradient = divergences(), jax.jit(score_gradient)
    rows, table = [], []
    for (name, t), divergence in found.items():
      for theta in THETAS:
        slope = None if t is None else float(gradient(theta, t))
        value, known = divergence(theta), closed_form(name, t, theta)
        rows.append([name, t, theta, value, known, 0.0 if value == known else value - known, slope])
      table.append(summary(name if t is None else f"{name}, t = {t:g}", divergence))
  header = ["divergence", "distance, d = abs θ", "θ = 0", "θ = 0.5", "θ = 1", "slopes at 0−, 0+", "smooth"]
  text = report.markdown(header, table)

  figure, axes = plt.subplots(figsize=(6, 4.5))
  for name, t in found:
    values = np.array([row[3] for row in rows if row[:2] == [name, t]])
    label = name if t is None else f"{name}, t = {t:g}"
    if np.isinf(values).any():
      axes.plot(THETAS, np.where(np.isinf(values), TOP, values), "k^", markersize=4, label=f"{label}, +∞ but at θ = 0")
    else:
      step = np.abs(np.diff(values)).max() > 0.5  # a jump: no line across it
      axes.plot(THETAS, values, "s" if step else "-", markersize=3, label=label)
  axes.set(xlabel="θ, offset of the segments", ylabel="divergence of $P_θ$ from $P_0$", ylim=(-0.05, 1.05 * TOP))
  axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
  columns = ["divergence", "t", "theta", "value", "closed_form", "difference", "gradient_by_scores"]
  write(figure, columns, rows, "table5")
  path = epath.Path(OUT.value) / "table5.md"
  path.write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  cli.run(main)
