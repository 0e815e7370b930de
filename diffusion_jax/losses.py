"""Distances between images, weights of noise levels, iDDPM's bound. A loss is one number an example, [B].

    EDM:    λ(σ)·‖D(y + σε; σ) − y‖²,  λ(σ) = (σ² + σ_data²)/(σ·σ_data)²                 (1)
    iDDPM:  log Σ = w·log β + (1 − w)·log β̃,  w = (v + 1)/2                              (2)
            β = σ_t² − (α_t/α_s)²σ_s² = σ_t²·(1 − r²),  β̃ = (σ_s/σ_t)²β,  r = n_s/n_t    (3)
            KL(N(μ̃, β̃) ‖ N(μ, Σ)) = ½[Δ + e^(−Δ) − 1 + (μ̃ − μ)²/Σ],  Δ = log(Σ/β̃)        (4)
            μ̃ − μ = α_s(1 − r²)(x_0 − x̂_0)                                               (5)
            s = 0:  −log ∫ N(x; x̂_0, Σ) dx over the bin of x_0, of 256 in [−1, 1],
                    the first and last of which reach to ∓∞                              (6)

    dual:   λ^ε·‖ε_θ − ε‖² + λ^x·‖x_θ − x_0‖² + λ^μ·L^μ                                  (7)
            L^μ = ‖μ̃ − r·μ_x − (1 − r)·μ_ε‖² = a²‖x_0 − x̂_0‖²,  a = α_s(1 − r_ts²)        (8)
            x_0 − x̂_0 = r·(x_0 − x_θ) + (1 − r)·n_t·(ε_θ − ε)                            (9)

    DDM:    λ_1·‖φ_θ − φ‖² + λ_2·‖ε_θ − ε‖²;  (λ_1, λ_2) = (1, 1), (1/t, 1/(1 − t + 10⁻⁴)), (e^t, e^(1−t))
                                                                                        (10)

n = σ/α is the noise level, r_ts the r of (3). In (8) and (9) only r, the network's third head, learns. Distances are
summed over pixels and channels, as in the papers, but in (7) and (10), where they are averaged; the mean over the batch
is taken once, in training. Sources: Karras et al. 2022; Nichol & Dhariwal 2021, eq. 15, 16; (6) from Ho et al. 2020;
(7) to (9) from Benny & Wolf 2022, eq. 17 to 20; (10) from Huang et al., eq. 10 and Table 5.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from diffusion_jax.process import Gaussian, as_time
from diffusion_jax.types import Array, like


def _pixels(x: Array) -> Array:
  return x.reshape(x.shape[0], -1)


def inner(a: Array, b: Array) -> Array:
  """⟨a, b⟩ of images [B, ...]; [B]."""
  return jnp.sum(_pixels(a * b), axis=-1)


def squared_norm(a: Array) -> Array:
  """‖a‖² of images [B, ...]; [B]."""
  return jnp.sum(_pixels(a) ** 2, axis=-1)


def squared_error(a: Array, b: Array) -> Array:
  """‖a − b‖² of images [B, ...]; [B]."""
  return squared_norm(a - b)


def absolute_error(a: Array, b: Array) -> Array:
  """‖a − b‖_1 of images [B, ...]; [B]."""
  return jnp.sum(jnp.abs(_pixels(a - b)), axis=-1)


def pseudo_huber(a: Array, b: Array, c: float | None = None) -> Array:
  """√(‖a − b‖² + c²) − c over the whole image vector of D numbers; [B]. Default c = .00054·√D (DDDM, Section 3)."""
  if c is None:
    c = 0.00054 * _pixels(a).shape[-1] ** 0.5
  return pseudo(squared_error(a, b), c)


def pseudo(distance: Array, c: float) -> Array:
  """√(d + c²) − c of distances d >= 0: d/(2c) where d is far below c², √d where it is far above. Of d's shape.

  d is a squared distance, or LPIPS, a sum of squares. Where it is 0 with gradient 0, so is this, for every c >= 0.
  """
  least = float(jnp.finfo(distance.dtype).tiny)  # c² of a tiny c is no number of float32; 0 would have no derivative
  return distance / (jnp.sqrt(distance + max(c**2, least)) + c)  # the same without cancellation


def edm_weight(sigma: Array, sigma_data: float = 0.5) -> Array:
  """λ(σ) of equation (1), which is 1/c_out²; of σ's shape."""
  return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def inverse_variance_weight(sigma: Array) -> Array:
  """λ(σ) = 1/σ², the VP, VE and iDDPM columns of EDM's Table 1."""
  return 1 / sigma**2


def _reverse_variance(process: Gaussian, t, s) -> tuple[Array, Array, Array]:
  """log β̃, log(β/β̃) and 1 − r² of equation (3), each of t's and s's shape.

  At s = 0, where β̃ = 0, iDDPM's clipping: β̃ is that of the step 2t -> t, at most β/2 (a chain may end before 2t).
  """
  first = s == 0
  s = jnp.where(first, t, s)
  r = process.noise_level(s) / process.noise_level(jnp.where(first, 2 * t, t))
  r = jnp.where(first, jnp.minimum(r, 0.5**0.5), r)
  share = (1 - r) * (1 + r)
  log_gap = jnp.where(first, -jnp.log(share), 2 * jnp.log(process.sigma(t) / process.sigma(s)))
  return jnp.log(share) + 2 * jnp.log(process.sigma(s)), log_gap, share


def learned_log_variance(process: Gaussian, v: Array, t, s) -> Array:
  """log Σ of a learned reverse step t -> s, equation (2).

  Args:
    process: the process of t and s.
    v: `Prediction.log_variance` [B, ...]: −1 stands for β̃, the posterior's variance, and 1 for β.
    t: time of the state, scalar or [B].
    s: time to go to, scalar or [B], 0 <= s < t. Finite at s = 0 too, with β̃ of the step 2t -> t.

  Returns:
    [B, ...].
  """
  log_posterior, log_gap, _ = _reverse_variance(process, as_time(t), as_time(s))
  return like(log_posterior, v) + 0.5 * (v + 1) * like(log_gap, v)


def variational_bound(process: Gaussian, clean_pred: Array, log_variance: Array, x0: Array, t, s) -> Array:
  """One term of the variational bound, in nats summed over pixels: equation (4), or (6) where s = 0; [B].

  For bits a dimension, as iDDPM reports it, divide by H·W·C·ln 2. Gradients reach `log_variance` alone: the mean is
  stopped, as in iDDPM. The state x_t drops out of (5), so it is not asked for.

  Args:
    process: the process of t and s.
    clean_pred: `Prediction.clean` at (x_t, t), [B, ...].
    log_variance: `Prediction.log_variance` there, v of equation (2), [B, ...].
    x0: images [B, ...]; in (6), 8-bit ones as 2k/255 − 1, k = 0..255.
    t: time of the state, scalar or [B].
    s: time of the step's end, scalar or [B], 0 <= s < t.
  """
  t, s = as_time(t), as_time(s)
  log_posterior, log_gap, share = _reverse_variance(process, t, s)
  delta = 0.5 * (log_variance + 1) * like(log_gap, x0)
  mean = process.decode(jax.lax.stop_gradient(clean_pred))
  # (μ̃ − μ)²/β̃, by α_s²(1 − r²)²/β̃ = (1 − r²)/n_s²; s = t stands for s = 0, where (6) is taken.
  squared = like(share / process.noise_level(jnp.where(s == 0, t, s)) ** 2, x0) * (x0 - mean) ** 2
  divergence = 0.5 * (delta + jnp.expm1(-delta) + squared * jnp.exp(-delta))
  last = like(s == 0, x0)
  log_std = jnp.where(last, 0.5 * (like(log_posterior, x0) + delta), 0)  # elsewhere any: bins may be too fine for Σ
  return jnp.sum(_pixels(jnp.where(last, -_log_bin(x0, mean, log_std), divergence)), axis=-1)


def _log_bin(x: Array, mean: Array, log_std: Array) -> Array:
  """log of the mass that N(mean, e^(2·log_std)) gives x's bin of equation (6)."""
  scale = jnp.exp(-log_std)
  side = jnp.where(x > mean, -1, 1)  # by symmetry, to the tail below the mean, where Φ keeps its digits
  centre, half = side * (x - mean) * scale, scale / 255
  upper, lower = log_ndtr(centre + half), log_ndtr(centre - half)
  # The outermost bins have one edge; they are told by a threshold that rounding does not move.
  open_below = jnp.where(side > 0, x < -254 / 255, x > 254 / 255)
  open_above = jnp.where(side > 0, x > 254 / 255, x < -254 / 255)
  inside = jnp.where(open_above, 0, upper) + jnp.log(-jnp.expm1(lower - jnp.where(open_above, 0, upper)))
  return jnp.where(open_below, upper, inside)


class DualTerms(NamedTuple):
  """L^ε, L^x and L^μ of equation (7), each [B]."""

  eps: Array
  x: Array
  mean: Array


def dual_terms(
  process: Gaussian, eps_head: Array, x_head: Array, logit: Array, x0: Array, eps: Array, t, s, relative: bool = False
) -> DualTerms:
  """The three losses of Dynamic Dual-Output Diffusion, equations (7) to (9), averaged over pixels and channels.

  L^ε reaches `eps_head` alone, L^x `x_head` alone, L^μ `logit` alone. The state x_t drops out of (9), which has no
  division by a small α.

  Args:
    process: the process of t and s.
    eps_head: ε_θ at (x_t, t), [B, H, W, C].
    x_head: x_θ there, [B, H, W, C].
    logit: r = sigmoid(logit) there, [B, H, W, 1].
    x0: images [B, H, W, C].
    eps: the noise in x_t, [B, H, W, C].
    t: time of the state, scalar or [B].
    s: time of the reverse step's end, scalar or [B], 0 <= s < t.
    relative: divide L^μ of each image by that of ε_θ alone and of x_θ alone, summed. It has nearly the same best r at
      each t and weighs all t alike, where a² of (8) falls from 1 to 2e-8 along DDPM's chain (not in the paper).
  """
  t, s = as_time(t), as_time(s)
  above = process.noise_level(t)
  fall = process.noise_level(s) / above
  scale = process.alpha(s) * (1 - fall) * (1 + fall)
  eps_error, x_error = eps_head - eps, x_head - x0
  eps_part = like(scale * above, x0) * jax.lax.stop_gradient(eps_error)
  x_part = like(scale, x0) * jax.lax.stop_gradient(x_error)
  mixed = jax.nn.sigmoid(-logit) * eps_part - jax.nn.sigmoid(logit) * x_part
  mean_square = lambda a: jnp.mean(_pixels(a) ** 2, axis=-1)
  mean = mean_square(mixed)
  if relative:
    mean /= jnp.maximum(mean_square(eps_part) + mean_square(x_part), jnp.finfo(mean.dtype).tiny)
  return DualTerms(mean_square(eps_error), mean_square(x_error), mean)


DECOUPLED_WEIGHTS = {
  "ones": lambda t: (jnp.ones_like(t), jnp.ones_like(t)),
  "inverse": lambda t: (1 / t, 1 / (1 - t + 1e-4)),
  "exponential": lambda t: (jnp.exp(t), jnp.exp(1 - t)),
}  # (λ_1, λ_2) of equation (10), of t's shape


class DecoupledTerms(NamedTuple):
  """Both parts of equation (10) before their weights, each [B]."""

  phi: Array
  eps: Array


def decoupled_terms(
  phi_head: Array, eps_head: Array, phi: Array, eps: Array, distance: Callable = squared_error
) -> DecoupledTerms:
  """The losses of Decoupled Diffusion Models, equation (10), over the number of values in an image.

  Args:
    phi_head: φ_θ [B, H, W, k·C].
    eps_head: ε_θ [B, H, W, C].
    phi: φ, of φ_θ's shape.
    eps: the noise in x_t, of ε_θ's shape.
    distance: squared_error, the paper's ℓ2, or absolute_error, its ℓ1.
  """
  return DecoupledTerms(distance(phi_head, phi) / eps[0].size, distance(eps_head, eps) / eps[0].size)
