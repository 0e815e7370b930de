"""Exact answers, computed in float64 NumPy apart from the library: schedules, denoisers, and what a sampler must give.

For data N(m, s²I) the best denoiser is affine in x, so every sampler maps a Gaussian to a Gaussian, and mean and
variance follow an affine recursion. Nothing here calls diffusion_jax, but `gaussian_denoise` and `mixture_denoise`,
which only take α and σ from a process.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate

from diffusion_jax.types import Prediction, like

# --- schedules: t -> (α, σ, α', σ'), derivatives by hand ---------------------------------------------------------


def edm(t):
  return 1.0, t, 0.0, 1.0


def ve(t):
  return 1.0, np.sqrt(t), 0.0, 0.5 / np.sqrt(t) if t > 0 else np.inf


def vp(t, beta_d=19.9, beta_min=0.1):
  log_alpha = -0.25 * beta_d * t**2 - 0.5 * beta_min * t
  alpha, sigma = np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha))
  d_alpha = alpha * (-0.5 * beta_d * t - 0.5 * beta_min)
  return alpha, sigma, d_alpha, -alpha * d_alpha / sigma if sigma > 0 else np.inf


def decoupled(t):
  return 1 - t, np.sqrt(t), -1.0, 0.5 / np.sqrt(t) if t > 0 else np.inf


def _chain(alpha_bar):
  """Schedule of a chain ᾱ_1..ᾱ_T: log SNR linear between the integers, the noise level linear below 1."""
  log_snr = np.log(alpha_bar) - np.log1p(-alpha_bar)

  def schedule(t):
    if t < 1:
      slope = np.exp(-0.5 * log_snr[0])
      n, dn = t * slope, slope
    else:
      i = min(int(np.floor(t)), len(log_snr) - 1)
      d_log_snr = log_snr[i] - log_snr[i - 1]
      n = np.exp(-0.5 * (log_snr[i - 1] + (t - i) * d_log_snr))
      dn = -0.5 * d_log_snr * n
    alpha = (1 + n**2) ** -0.5
    return alpha, n * alpha, -n * dn * alpha**3, dn * alpha**3

  return schedule


ddpm = _chain(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
_f = np.cos((np.arange(4001) / 4000 + 0.008) / 1.008 * np.pi / 2) ** 2
cosine = _chain(np.cumprod(1 - np.minimum(1 - _f[1:] / _f[:-1], 0.999)))

SCHEDULES = {"EDM": edm, "VE": ve, "VP": vp, "DDPM": ddpm, "Cosine": cosine, "Decoupled": decoupled}

# --- samplers on data N(m, s²): one step as x -> a·x + b + c·z ---------------------------------------------------


def _pair(schedule, m, s2, x, t):
  alpha, sigma, _, _ = schedule(t)
  x0 = m + alpha * s2 / (alpha**2 * s2 + sigma**2) * (x - alpha * m)
  return x0, (x - alpha * x0) / sigma


def _velocity(schedule, m, s2, x, t):
  x0, eps = _pair(schedule, m, s2, x, t)
  _, _, d_alpha, d_sigma = schedule(t)
  return d_alpha * x0 + d_sigma * eps


def euler_step(schedule, m, s2, x, t, s, jump):
  if s == 0 and jump:
    return _pair(schedule, m, s2, x, t)[0], 0.0
  return x + (s - t) * _velocity(schedule, m, s2, x, t), 0.0


def heun_step(schedule, m, s2, x, t, s, jump, alpha=1.0):
  if s == 0:
    return euler_step(schedule, m, s2, x, t, s, jump)
  d = _velocity(schedule, m, s2, x, t)
  mid = t + alpha * (s - t)
  d_mid = _velocity(schedule, m, s2, x + alpha * (s - t) * d, mid)
  return x + (s - t) * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d_mid), 0.0


def posterior_step(schedule, m, s2, x, t, s, eta2):
  """x_s = α_s·x̂_0 + √(σ_s² − η²)·ε̂ + η·z, the textbook form."""
  x0, eps = _pair(schedule, m, s2, x, t)
  alpha, sigma, _, _ = schedule(s)
  return alpha * x0 + np.sqrt(max(sigma**2 - eta2, 0)) * eps, np.sqrt(eta2)


def euler_maruyama_step(schedule, m, s2, x, t, s):
  """dx = (f·x − g²·score)dt + g dw with f = α'/α, g² = (σ²)' − 2fσ²; the flow's step where f is infinite."""
  alpha, sigma, d_alpha, d_sigma = schedule(t)
  x0, eps = _pair(schedule, m, s2, x, t)
  if s == 0:
    return x0, 0.0
  if alpha == 0:
    return euler_step(schedule, m, s2, x, t, s, False)
  f = d_alpha / alpha
  g2 = 2 * sigma * d_sigma - 2 * f * sigma**2
  return x + (s - t) * (f * x + g2 * eps / sigma), np.sqrt((t - s) * g2)


def predictor_step(schedule, m, s2, x, t, s):
  """The chain x_t = a·x_s + b·z reversed: x_s = x_t − (a − 1)x_t + b²·score + b·z."""
  x0, eps = _pair(schedule, m, s2, x, t)
  if s == 0:
    return x0, 0.0
  (a_t, s_t), (a_s, s_s) = schedule(t)[:2], schedule(s)[:2]
  a = a_t / a_s
  b2 = s_t**2 - a**2 * s_s**2
  return x - (a - 1) * x - b2 * eps / s_t, np.sqrt(b2)


def corrected_moments(schedule, m, s2, mean, v, t, s, snr, steps):
  """Mean and variance after Langevin steps x + ε·score + √(2ε)·z, ε = 2a²(r‖z‖/‖score‖)², in many dimensions.

  There ‖z‖² is D, and ‖score‖² is D·(v + (mean − αm)²)/V², V = α²s² + σ², so that each step is affine too.
  """
  alpha, sigma = schedule(t)[:2]
  total = alpha**2 * s2 + sigma**2
  for _ in range(steps):
    step = 2 * (alpha / schedule(s)[0] * snr) ** 2 * total**2 / (v + (mean - alpha * m) ** 2)
    mean, v = mean - step * (mean - alpha * m) / total, (1 - step / total) ** 2 * v + 2 * step
  return mean, v


def predictor_corrector_moments(schedule, m, s2, grid, mean, v, snr, steps):
  """Mean and variance of the whole sampler's result, in many dimensions."""
  for t, s in zip(grid[:-1], grid[1:]):
    mean, v = corrected_moments(schedule, m, s2, mean, v, t, s, snr, steps)
    at_0, noise = predictor_step(schedule, m, s2, 0.0, t, s)
    slope = predictor_step(schedule, m, s2, 1.0, t, s)[0] - at_0
    mean, v = slope * mean + at_0, slope**2 * v + noise**2
  return mean, v


def dpdm_step(schedule, m, s2, x, t, s):
  """x_s = α_s·x̂_0 + σ_s·z: fresh noise around the estimate."""
  alpha, sigma = schedule(s)[:2]
  return alpha * _pair(schedule, m, s2, x, t)[0], sigma


def eta2_ddpm(schedule, t, s):
  (a_t, s_t), (a_s, s_s) = schedule(t)[:2], schedule(s)[:2]
  return (s_s / s_t) ** 2 * (s_t**2 - (a_t / a_s) ** 2 * s_s**2)


def eta2_decoupled(schedule, t, s):
  s_t, s_s = schedule(t)[1], schedule(s)[1]
  return (s_s / s_t) ** 2 * (s_t**2 - s_s**2)


def affine(name, schedule, m, s2, grid, jump=False, **options):
  """The map of a whole sampler: x_N = a·x_0 + b + N(0, v). Returns (a, b, v)."""

  def step(x, t, s):
    if name == "euler":
      return euler_step(schedule, m, s2, x, t, s, jump)
    if name == "heun":
      return heun_step(schedule, m, s2, x, t, s, jump, **options)
    if name == "ddim":
      return posterior_step(schedule, m, s2, x, t, s, options.get("eta", 0.0) ** 2 * eta2_ddpm(schedule, t, s))
    if name == "dpdm":
      return dpdm_step(schedule, m, s2, x, t, s)
    if name == "euler_maruyama":
      return euler_maruyama_step(schedule, m, s2, x, t, s)
    if name == "predictor_corrector":  # without corrections
      return predictor_step(schedule, m, s2, x, t, s)
    rule = {"ddpm": eta2_ddpm, "decoupled": eta2_decoupled}[name]
    return posterior_step(schedule, m, s2, x, t, s, rule(schedule, t, s))

  a, b, v = 1.0, 0.0, 0.0
  for t, s in zip(grid[:-1], grid[1:]):
    at_0, noise = step(0.0, t, s)
    slope = step(1.0, t, s)[0] - at_0
    a, b, v = slope * a, slope * b + at_0, slope**2 * v + noise**2
  return a, b, v


def affine_inverse(schedule, m, s2, grid, jump, **options):
  """The map of an inversion from x_0 to grid[0] as (a, b), x -> a·x + b."""
  t = grid[-2]

  def first(x):
    x0, eps = _pair(schedule, m, s2, schedule(t)[0] * x, t)
    if jump:
      return x + schedule(t)[0] * x0 - x0 + schedule(t)[1] * eps
    return x + t * (schedule(t)[2] * x0 + schedule(t)[3] * eps)

  def inverse(x):
    x = first(x)
    for t, s in zip(grid[-2:0:-1], grid[-3::-1]):
      x = heun_step(schedule, m, s2, x, t, s, jump, **options)[0]
    return x

  return inverse(1.0) - inverse(0.0), inverse(0.0)


# --- the flow of a mixture of Gaussians on the line ------------------------------------------------------------------

MIXTURE = (np.array([-0.9, 0.2, 1.0]), np.array([0.3, 0.5, 0.2]), 0.25)  # means, weights, standard deviation


def _mixture_mean(xp, x, alpha, sigma, mixture):
  means, weights, std = mixture
  variance = alpha**2 * std**2 + sigma**2
  diff = x[..., None] - alpha * means
  logits = xp.log(weights) - diff**2 / (2 * variance)
  w = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
  return xp.sum(w * (means + alpha * std**2 / variance * diff), axis=-1) / xp.sum(w, axis=-1)


def mixture_flow(schedule, mixture, x, t, s):
  """The probability flow from x [n] at t to s, to 1e-11."""

  def velocity(t, x):
    alpha, sigma, d_alpha, d_sigma = schedule(t)
    x0 = _mixture_mean(np, x, alpha, sigma, mixture)
    return d_alpha * x0 + d_sigma * (x - alpha * x0) / sigma

  return scipy.integrate.solve_ivp(velocity, (t, s), x, method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]


def scalar_mixture_denoise(process, mixture):
  """The best Denoise for images whose pixels are independent draws of the mixture."""

  def denoise(x, t):
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0 = _mixture_mean(jnp, x, alpha, sigma, mixture)
    return Prediction(process.encode(None, x0), (x - alpha * x0) / sigma)

  return denoise


# --- exact denoisers for the library's samplers -------------------------------------------------------------------


def gaussian_denoise(process, m, s2):
  """The best Denoise for data N(m, s²I) in a Gaussian process (clean is what `encode` makes of x̂_0)."""

  def denoise(x, t):
    alpha, sigma = like(process.alpha(t), x), like(process.sigma(t), x)
    x0 = m + alpha * s2 / (alpha**2 * s2 + sigma**2) * (x - alpha * m)
    eps = sigma * (x - alpha * m) / (alpha**2 * s2 + sigma**2)
    return Prediction(process.encode(None, x0), eps)

  return denoise


def correlated_denoise(process, mean, covariance):
  """The best Denoise for images of D pixels, of law N(mean [D], covariance [D, D])."""
  size = len(mean)

  def denoise(x, t):
    alpha, sigma = process.alpha(t), process.sigma(t)
    gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(size))
    x0 = (mean + (x.reshape(-1, size) - alpha * mean) @ gain.T).reshape(x.shape)
    return Prediction(process.encode(None, x0), (x - like(alpha, x) * x0) / like(sigma, x))

  return denoise


def mixture_denoise(process, means, weights, std):
  """The best Denoise for a mixture Σ_k w_k·N(m_k, std²I) of images m_k [K, H, W, C]."""

  def denoise(x, t):
    t = jnp.broadcast_to(t, x.shape[:1])
    alpha, sigma = like(process.alpha(t), x), like(process.sigma(t), x)
    variance = alpha**2 * std**2 + sigma**2
    diff = x[:, None] - jnp.expand_dims(alpha, 1) * means  # [B, K, H, W, C]
    logits = jnp.log(weights) - jnp.sum(diff**2, axis=(2, 3, 4)) / (2 * variance.reshape(-1, 1))
    w = jax.nn.softmax(logits, axis=1)[:, :, None, None, None]  # of jnp.max XLA may make a derivative 0/0
    x0 = jnp.sum(w * (means + jnp.expand_dims(alpha * std**2 / variance, 1) * diff), axis=1)
    return Prediction(process.encode(None, x0), (x - alpha * x0) / sigma)

  return denoise
