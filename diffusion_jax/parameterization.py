"""From what a network puts out to the pair of estimates.

A head F is read in one of these ways; with x = x_t, α = α(t), σ = σ(t), r² = α² + σ²:

    x0     ĉ = F                             ε̂ = (x − αF)/σ                             (1)
    eps    ĉ = (x − σF)/α                    ε̂ = F                                      (2)
    v      ĉ = (α·x/r − σF)/r                ε̂ = (σ·x/r + αF)/r,  v = (αε − σx_0)/r     (3)

or, for states x = x_0 + σε of the EDM process, through a preconditioner (Karras et al. 2022, eq. 7 and Table 1)

    D = c_skip·x + c_out·F(c_in·x; c_noise)                                             (4)
    ε̂ = (x − D)/σ = e_skip·x + e_out·F,  e_skip = (1 − c_skip)/σ,  e_out = −c_out/σ     (5)

or from three heads, of noise, image and which of them to trust (Dynamic Dual-Output Diffusion, eq. 15 and 16)

    ĉ = r·x_θ + (1 − r)·(x − σε_θ)/α     ε̂ = r·(x − αx_θ)/σ + (1 − r)·ε_θ               (6)

or from two heads, of φ's parameters and of noise, for the states of a decoupled process (Huang et al.), taken as they
are or, with preconditioning, by

    φ̂ = (F_φ, …, F_φ, (t − 1)·x + t/√(1 + t)·F_φ)   ε̂ = √t·x + √((1 − t)/(1 + t))·F_ε
    F_φ, F_ε = F(x/√(1 + t); ln t)                                                      (7)

in which the last of φ's parameters, −x_0 and more, is alone in having a skip. They need not agree.

Mixing the two images is mixing the two means of any reverse step, DDPM's or DDIM's, since these are affine in ĉ. In (5)
e_skip and e_out are written out without the cancellation of 1 − c_skip at small σ. A preconditioner knows the noise
levels that its networks are trained on; a σ beyond them is moved to the nearest.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import process as process_lib
from diffusion_jax import times
from diffusion_jax.types import Array, Denoise, Prediction, like


def _scales(process: process_lib.Gaussian, x: Array, t):
  t = process_lib.as_time(t)
  return like(process.alpha(t), x), like(process.sigma(t), x)


def from_x0(process: process_lib.Gaussian, head: Array, x: Array, t) -> Prediction:
  """The pair of an image estimate `head` [B, ...] at x_t, equation (1); t > 0."""
  alpha, sigma = _scales(process, x, t)
  return Prediction(process.encode(None, head), (x - alpha * head) / sigma)


def from_eps(process: process_lib.Gaussian, head: Array, x: Array, t) -> Prediction:
  """The pair of a noise estimate `head` [B, ...] at x_t, equation (2); α(t) > 0."""
  alpha, sigma = _scales(process, x, t)
  return Prediction(process.encode(None, (x - sigma * head) / alpha), head)


def from_v(process: process_lib.Gaussian, head: Array, x: Array, t) -> Prediction:
  """The pair of a v estimate `head` [B, ...] at x_t, equation (3); every t (Salimans & Ho 2022 where r = 1)."""
  alpha, sigma = _scales(process, x, t)
  r = jnp.hypot(alpha, sigma)
  alpha, sigma, x = alpha / r, sigma / r, x / r
  return Prediction(process.encode(None, alpha * x - sigma * head), sigma * x + alpha * head)


def v_target(process: process_lib.Gaussian, x0: Array, eps: Array, t) -> Array:
  """What the v head is trained on: (α(t)·ε − σ(t)·x_0)/r, [B, ...]."""
  alpha, sigma = _scales(process, x0, t)
  return (alpha * eps - sigma * x0) / jnp.hypot(alpha, sigma)


def dual(
  process: process_lib.Gaussian,
  eps: Array,
  x0: Array,
  logit: Array,
  x: Array,
  t,
  ratio: Array | None = None,
  log_variance: Array | None = None,
) -> Prediction:
  """The pair of a noise and an image estimate at x_t, equation (6); t > 0.

  Finite where α(t) is 0 or nearly so: the divisor is at least σ/MAX_NOISE_LEVEL. The pair is consistent everywhere.

  Args:
    process: the process of x and t.
    eps: ε_θ [B, H, W, C].
    x0: x_θ [B, H, W, C].
    logit: r = sigmoid(logit), [B, H, W, 1].
    x: x_t [B, H, W, C].
    t: scalar or [B].
    ratio: r in place of the network's, scalar or [B] in [0, 1]: 0 is ε_θ alone, 1 x_θ alone.
    log_variance: of the pair, [B, H, W, C].
  """
  alpha, sigma = _scales(process, x, t)
  r, rest = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
  if ratio is not None:
    r = like(ratio, x)
    rest = 1 - r
  divisor = jnp.maximum(alpha, sigma / process_lib.MAX_NOISE_LEVEL)
  share = alpha / divisor  # 1, but where the divisor is not α
  clean = r * x0 + rest * (x - sigma * eps) / divisor
  noise = r * (x - alpha * x0) / sigma + rest * (share * eps + (1 - share) * x / sigma)
  return Prediction(process.encode(None, clean), noise, log_variance)


DECOUPLED_T_MIN = 1e-4  # the least t that networks of decoupled processes are trained on


def decoupled(
  network: Callable[[Array, Array], tuple[Array, Array]], process: process_lib.Decoupled, preconditioned: bool = True
) -> Denoise:
  """Wraps a network with heads of φ and ε into a Denoise of a decoupled process, equation (7).

  Args:
    network: (c_in·x [B, H, W, C], c_noise [B]) -> F_φ [B, H, W, k·C], F_ε [B, H, W, C].
    process: whose φ the first head is; the sine's one parameter has no skip either, not being of the image's size.
    preconditioned: False takes F as the pair and gives the network x as it is, with c_noise the same.

  Returns:
    denoise(x, t) with t a scalar or [B] in (0, 1]; c_noise is that of DECOUPLED_T_MIN below it. Scalings are in x's
    precision (float32 at least), whatever the network computes in.
  """

  def denoise(x, t):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    process.check_times(t)
    t = jnp.broadcast_to(process_lib.as_time(t), x.shape[:1]).astype(x.dtype)
    c_noise = jnp.log(jnp.maximum(t, DECOUPLED_T_MIN))
    t = like(t, x)
    phi, eps = network(x / jnp.sqrt(1 + t) if preconditioned else x, c_noise)
    phi, eps = phi.astype(x.dtype), eps.astype(x.dtype)
    if preconditioned:
      eps = jnp.sqrt(t) * x + jnp.sqrt((1 - t) / (1 + t)) * eps
      if process.attenuation != "sine":
        free, last = jnp.split(phi, [phi.shape[-1] - x.shape[-1]], -1)
        phi = jnp.concatenate([free, (t - 1) * x + t / jnp.sqrt(1 + t) * last], -1)
    return Prediction(phi, eps)

  return denoise


class Coefficients(NamedTuple):
  """The scalings of equations (4) and (5), each of σ's shape."""

  c_skip: Array
  c_out: Array
  c_in: Array
  c_noise: Array
  e_skip: Array
  e_out: Array


class Preconditioner:
  """A column of Table 1: the coefficients at a noise level, and the noise levels that its networks are trained on.

  Attributes:
    sigma_min: the smallest of them.
    sigma_max: the largest.
  """

  sigma_min: float
  sigma_max: float

  def __call__(self, sigma: Array) -> Coefficients:
    """The coefficients at noise level σ > 0, a scalar or [B]."""
    raise NotImplementedError

  def levels(self) -> np.ndarray | None:
    """The noise levels trained on, [M] decreasing, where they are finitely many; else None."""
    return None


@dataclasses.dataclass(frozen=True)
class EDMPreconditioner(Preconditioner):
  """Table 1, "Ours": network inputs and targets of unit variance for data of standard deviation sigma_data."""

  sigma_data: float = 0.5
  sigma_min: float = 0.0
  sigma_max: float = math.inf

  def __call__(self, sigma):
    total = jnp.hypot(sigma, self.sigma_data)
    return Coefficients(
      c_skip=(self.sigma_data / total) ** 2,
      c_out=sigma * self.sigma_data / total,
      c_in=1 / total,
      c_noise=jnp.log(sigma) / 4,
      e_skip=sigma / total**2,
      e_out=-self.sigma_data / total,
    )


def _noise_prediction(sigma, c_in, c_noise) -> Coefficients:
  one = jnp.ones_like(sigma)
  return Coefficients(one, -sigma, c_in, c_noise, jnp.zeros_like(sigma), one)


@dataclasses.dataclass(frozen=True)
class VPPreconditioner(Preconditioner):
  """Table 1, VP: F estimates the noise, conditioned on (M − 1)·t of the VP process, t in [epsilon_t, 1]."""

  beta_d: float = 19.9
  beta_min: float = 0.1
  num_levels: int = 1000  # M
  epsilon_t: float = 1e-5

  @property
  def sigma_min(self) -> float:
    return self._noise_level(self.epsilon_t)

  @property
  def sigma_max(self) -> float:
    return self._noise_level(1.0)

  def _noise_level(self, t: float) -> float:
    return math.sqrt(max(math.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t), 0.0))  # β_min may be below 0

  def __call__(self, sigma):
    t = process_lib.VP(self.beta_d, self.beta_min).inverse(sigma)
    return _noise_prediction(sigma, 1 / jnp.hypot(sigma, 1.0), (self.num_levels - 1) * t)


@dataclasses.dataclass(frozen=True)
class VEPreconditioner(Preconditioner):
  """Table 1, VE: F estimates the negative noise of the unscaled x, conditioned on ln(σ/2)."""

  sigma_min: float = 0.02
  sigma_max: float = 100.0

  def __call__(self, sigma):
    one = jnp.ones_like(sigma)
    return Coefficients(one, sigma, one, jnp.log(0.5 * sigma), jnp.zeros_like(sigma), -one)


@dataclasses.dataclass(frozen=True)
class IDDPMPreconditioner(Preconditioner):
  """Table 1, iDDPM: F estimates the noise, conditioned on the index M − 1 − j of the trained level u_j nearest to σ."""

  num_levels: int = 1000  # M
  c1: float = 0.001
  c2: float = 0.008

  @property
  def sigma_min(self) -> float:
    return float(self.levels()[-1])

  @property
  def sigma_max(self) -> float:
    return float(self.levels()[0])

  def levels(self):
    return times.iddpm_levels(self.num_levels, self.c1, self.c2)[:-1]

  def __call__(self, sigma):
    levels = jnp.asarray(self.levels(), sigma.dtype)
    c_noise = self.num_levels - 1 - jnp.argmin(jnp.abs(levels - sigma[..., None]), axis=-1)
    return _noise_prediction(sigma, 1 / jnp.hypot(sigma, 1.0), c_noise.astype(sigma.dtype))


@dataclasses.dataclass(frozen=True)
class Unconditioned(Preconditioner):
  """For networks that are given x_t and t of a chain as they are: what they are trained on, t = 1..T, alone."""

  process: process_lib.Discrete

  @property
  def sigma_min(self) -> float:
    return self._noise_level(1.0)

  @property
  def sigma_max(self) -> float:
    return self._noise_level(float(self.process.num_steps))

  def _noise_level(self, t: float) -> float:
    with jax.ensure_compile_time_eval():
      return float(self.process.noise_level(t))  # to the last digit what a grid's end has


def clamp(preconditioner: Preconditioner, sigma):
  """Noise levels moved into the preconditioner's range: with one warning where their values are known, else silently.

  Args:
    preconditioner: whose sigma_min and sigma_max bound them.
    sigma: noise levels > 0 of any shape, a NumPy or JAX array, or traced.
  """
  lo, hi = preconditioner.sigma_min, preconditioner.sigma_max
  if lo == 0 and hi == math.inf:
    return sigma
  if not isinstance(sigma, jax.core.Tracer):
    slack = 1e-6  # of rounding to float32
    if np.any(sigma < lo * (1 - slack)) or np.any(sigma > hi * (1 + slack)):
      warnings.warn(
        f"noise levels {np.min(sigma):.6g} to {np.max(sigma):.6g} are clamped to those that the network was trained "
        f"on, {lo:.6g} to {hi:.6g}",
        stacklevel=2,
      )
  return sigma.clip(lo, hi)


def precondition(
  network: Callable[[Array, Array], Array | tuple[Array, Array]], preconditioner: Preconditioner
) -> Denoise:
  """Wraps a raw network into a Denoise of the EDM process, equations (4) and (5).

  Args:
    network: (c_in·x [B, H, W, C], c_noise [B]) -> F [B, H, W, C], or (F, log_variance) for a learned variance.
    preconditioner: the coefficients at a noise level.

  Returns:
    denoise(x, sigma) with sigma a scalar or [B] > 0. Beyond the preconditioner's range D is that of the nearest level
    in it (`clamp`), and ε̂ = (x − D)/σ still. The network's input and output scalings are in x's precision (float32 at
    least), whatever the network computes in.
  """

  def denoise(x, sigma):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    sigma = process_lib.as_time(sigma)
    known = clamp(preconditioner, sigma)
    shrunk = like(known / sigma, x).astype(x.dtype)  # of ε̂: 1 inside the range
    c = preconditioner(jnp.broadcast_to(known, x.shape[:1]).astype(x.dtype))
    c_skip, c_out, c_in, e_skip, e_out = (like(v, x) for v in (c.c_skip, c.c_out, c.c_in, c.e_skip, c.e_out))
    out = network(c_in * x, c.c_noise)
    f, log_variance = out if isinstance(out, tuple) else (out, None)
    f = f.astype(x.dtype)
    return Prediction(c_skip * x + c_out * f, shrunk * (e_skip * x + e_out * f), log_variance)

  return denoise
