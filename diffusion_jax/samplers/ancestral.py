"""Samplers made of transitions: any decreasing grid, one evaluation a step, noise added or not.

    x_s = x_t + [m(ĉ, s) − m(ĉ, t)] + (√(σ_s² − η²) − σ_t)·ε̂ + η·z                      (1)
    DDIM:       η² = 0;  η = eta·(DDPM's) for eta in [0, 1]                             (2)
    DDPM:       η² = (σ_s/σ_t)²(σ_t² − (α_t/α_s)²σ_s²) = σ_s²(1 − r²),  r = α_tσ_s/(α_sσ_t)
                √(σ_s² − η²) = σ_s·r                                                    (3)
    Decoupled:  η² = (σ_s/σ_t)²(σ_t² − σ_s²),  √(σ_s² − η²) = σ_s²/σ_t                  (4)
    Variance:   DDPM's noise may have variance β = (σ_t/σ_s)²η² instead, or the network's choice between
                the two, `losses.learned_log_variance`; the mean is that of (3)          (5)
    Refit:      x̂_0 = x_t − [m(ĉ, t) − m(ĉ, 0)] − σ_tε̂ = x_t − H_t(φ̂) − √t·ε̂            (6)

For a pair that agrees (x_t = m(ĉ, t) + σ_tε̂), (1) is the posterior of the method in its usual form; written as an
increment it is also Algorithm 2 of Decoupled Diffusion Models, whose heads are independent. Sources: Ho et al. 2020,
Song et al. 2021 (DDIM), Nichol & Dhariwal 2021 (the learned variance), Huang et al.
"""

import jax.numpy as jnp

from diffusion_jax import losses
from diffusion_jax.process import Gaussian, Process, as_time
from diffusion_jax.samplers import loop
from diffusion_jax.types import Array, Denoise, Key, Prediction, like, normal

VARIANCES = ("posterior", "upper", "learned")


def transition(process: Process, pred: Prediction, x: Array, t, s, root, eta=None, z: Array | None = None) -> Array:
  """x_s by equation (1).

  Args:
    process: the process of x.
    pred: estimates at (x, t).
    x: x_t [B, ...].
    t: time of x, scalar.
    s: time to go to, scalar, 0 <= s < t.
    root: √(σ_s² − η²), given in a form without cancellation.
    eta: standard deviation η of the noise added; None adds none.
    z: unit noise [B, ...], with eta.
  """
  x = x + (process.signal(pred.clean, s) - process.signal(pred.clean, t)) + (root - process.sigma(t)) * pred.eps
  return x if eta is None else x + eta * z


def noise_ratio(process: Gaussian, t, s) -> Array:
  """r of equation (3): the noise level at s over that at t; 0 at α_t = 0."""
  return process.alpha(t) * process.sigma(s) / (process.alpha(s) * process.sigma(t))


def reconstruct(process: Process, pred: Prediction, x: Array, t) -> Array:
  """x̂_0 by equation (6), [B, H, W, C]: what both estimates at (x, t) say of the image; t a scalar or [B]."""
  t = as_time(t)
  fade = process.signal(pred.clean, t) - process.signal(pred.clean, jnp.zeros_like(t))
  return process.image(x - fade - like(process.sigma(t), x) * pred.eps)


def refitted(process: Process, pred: Prediction, x: Array, t, limit) -> Prediction:
  """`pred` with the image of equation (6), clipped to [−limit, limit], in the place of its own.

  Free parameters of φ̂ and the estimated noise stay as they are.
  """
  return pred._replace(clean=process.recode(pred.clean, jnp.clip(reconstruct(process, pred, x, t), -limit, limit)))


def _sample(denoise, process, x, grid, keys, trajectory, rule, refit=None):
  """Runs (1) over the grid; rule(pred, t, s) -> (√(σ_s² − η²), η or None)."""
  x, grid = loop.prepare(x, grid, keys)
  process.check_times(grid)

  def step(x, index, t, s):
    pred = denoise(x, t)
    if refit is not None:
      pred = refitted(process, pred, x, t, refit)
    root, eta = rule(pred, t, s)
    z = None if eta is None else normal(keys, index, x.shape[1:], x.dtype)
    return transition(process, pred, x, t, s, root, eta, z)

  return loop.run(step, lambda *args: process.image(step(*args)), x, grid, trajectory)


def ddim(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key | None = None,
  *,
  eta: float = 0.0,
  trajectory: bool = False,
):
  """DDIM, equations (1) and (2): N evaluations; deterministic at eta = 0, DDPM's posterior at eta = 1.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0.
    keys: [B] PRNG keys, one an image; needed unless eta is 0.
    eta: share of DDPM's noise, in [0, 1].
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, or keys are missing.
  """
  deterministic = isinstance(eta, int | float) and eta == 0
  if not deterministic:
    loop.need_keys("ddim with eta > 0", keys)

  def rule(pred, t, s):
    if deterministic:
      return process.sigma(s), None
    r = noise_ratio(process, t, s)
    share = (1 - r) * (1 + r)  # 1 − r²
    return process.sigma(s) * jnp.sqrt(1 - eta**2 * share), process.sigma(s) * eta * jnp.sqrt(share)

  return _sample(denoise, process, x, grid, keys, trajectory, rule)


def ddpm(
  denoise: Denoise,
  process: Gaussian,
  x: Array,
  grid: Array,
  keys: Key,
  *,
  variance: str = "posterior",
  trajectory: bool = False,
):
  """Ancestral sampling of DDPM, equations (1), (3) and (5), on any grid: N evaluations.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0.
    keys: [B] PRNG keys, one an image.
    variance: of the noise added to the posterior mean (none in the last step): "posterior" η²; "upper"
      β = σ_t² − (α_t/α_s)²σ_s², the upper bound of Ho et al.; "learned" what the network says between the two.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, keys are missing, `variance` is
      unknown, or it is "learned" and the predictions have no log_variance.
  """
  if variance not in VARIANCES:
    raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {variance!r}")
  loop.need_keys("ddpm", keys)

  def rule(pred, t, s):
    r = noise_ratio(process, t, s)
    root = process.sigma(s) * r
    if variance == "learned":
      if pred.log_variance is None:
        raise ValueError("ddpm with variance='learned' needs a Prediction with log_variance, got None")
      log_variance = losses.learned_log_variance(process, pred.log_variance, t, s)
      return root, jnp.where(s > 0, jnp.exp(0.5 * log_variance), 0)
    scale = jnp.where(s > 0, process.sigma(t), 0) if variance == "upper" else process.sigma(s)
    return root, scale * jnp.sqrt((1 - r) * (1 + r))

  return _sample(denoise, process, x, grid, keys, trajectory, rule)


def decoupled(
  denoise: Denoise,
  process: Process,
  x: Array,
  grid: Array,
  keys: Key,
  *,
  refit: float | None = None,
  trajectory: bool = False,
):
  """Algorithm 2 of Decoupled Diffusion Models, equations (1) and (4), on any grid: N evaluations.

  With exact estimates and small steps it samples the data where m is linear in c. For the exponential and the sine
  attenuation it is the paper's plug-in rule, with a bias that does not vanish with the step.

  Args:
    denoise: the pair of estimates at (x, t).
    process: the process of x and t.
    x: state at grid[0], [B, H, W, C].
    grid: [N+1] times of `process`, decreasing to 0.
    keys: [B] PRNG keys, one an image.
    refit: before every step the estimated image is replaced by that of equation (6), clipped to [−refit, refit], as in
      the published code for pixels (with 1); None takes the estimates as they are. It joins both heads.
    trajectory: also return the states at all grid values.

  Returns:
    x_0 [B, H, W, C]; with trajectory, (x_0, states [N+1, B, H, W, C]).

  Raises:
    ValueError: an argument has the wrong shape, the grid does not decrease to 0, or keys are missing.
  """
  loop.need_keys("decoupled", keys)

  def rule(pred, t, s):
    share = process.sigma(s) / process.sigma(t)
    return process.sigma(s) * share, process.sigma(s) * jnp.sqrt((1 - share) * (1 + share))

  return _sample(denoise, process, x, grid, keys, trajectory, rule, refit)
