"""Attenuations h of decoupled processes, by their means over [t, 1] (Huang et al., Decoupled Diffusion Models).

    m(φ, t) = −(1 − t)·(mean of h over [t, 1])                                          (1)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array


def _expm1_ratio(z: Array) -> Array:
  """(e^z − 1)/z, 1 at z = 0, with the digits of its derivative."""
  small = jnp.abs(z) < 0.02
  series = 1.0
  for k in (6, 5, 4, 3, 2):
    series = 1 + z / k * series
  safe = jnp.where(small, 1, z)
  return jnp.where(small, series, jnp.expm1(safe) / safe)


def _sinc(z: Array) -> Array:
  """sin(z)/z, 1 at z = 0, with the digits of its derivative."""
  small = jnp.abs(z) < 0.1
  series = 1.0
  for k in (8, 6, 4, 2):
    series = 1 - z**2 / (k * (k + 1)) * series
  safe = jnp.where(small, 1, z)
  return jnp.where(small, series, jnp.sin(safe) / safe)


# Means of h over [t, 1] by equation (1): `part` are φ's parameters, each of the images' shape.


def _constant(part, t):
  (c,) = part
  return c


def _linear(part, t):
  a, c = part
  return 0.5 * a * (1 + t) + c


def _quadratic(part, t):
  a, b, c = part
  return a * (1 + t + t**2) / 3 + 0.5 * b * (1 + t) + c


def _exponential(part, t):
  a, c = part
  return jnp.exp(a * t) * _expm1_ratio(a * (1 - t)) + c


def _sine(part, t):
  (a,) = part  # (cos at − cos a)/a, as a product
  return 0.5 * a * (1 + t) * _sinc(0.5 * a * (1 + t)) * _sinc(0.5 * a * (1 - t))


SINE_SCALE = 0.72  # (1 − cos a)/a stays below .7246: the states of the sine attenuation are those of .72·x_0
_SINE_END = 2.331122370414423  # where it is largest


def solve_sine(x0: Array) -> Array:
  """The a in [−2.331, 2.331] with (1 − cos a)/a = −.72·x_0, for x_0 clipped to [−1, 1]; differentiable."""
  wanted = -SINE_SCALE * jnp.clip(x0, -1, 1)
  rise = lambda a: _sine((a,), 0.0)
  half, sign = jax.lax.stop_gradient(jnp.abs(wanted)), jnp.sign(wanted)

  def bisect(_, bounds):
    low, high = bounds
    middle = 0.5 * (low + high)
    below = rise(middle) < half
    return jnp.where(below, middle, low), jnp.where(below, high, middle)

  low, high = jax.lax.fori_loop(0, 24, bisect, (jnp.zeros_like(half), jnp.full_like(half, _SINE_END)))
  a = sign * 0.5 * (low + high)
  for _ in range(3):  # Newton's steps; the last also carries the derivative of a by x_0
    a = jax.lax.stop_gradient(a)
    value, slope = jax.jvp(rise, (a,), (jnp.ones_like(a),))
    a = a - (value - wanted) / slope
  return a


class Attenuation(NamedTuple):
  """An h_t: its mean over [t, 1], and the number of φ's parameters, all but the last of them free (sine: none is)."""

  mean: Callable[[tuple[Array, ...], Array], Array]
  size: int


ATTENUATIONS = {
  "constant": Attenuation(_constant, 1),
  "linear": Attenuation(_linear, 2),
  "quadratic": Attenuation(_quadratic, 3),
  "exponential": Attenuation(_exponential, 2),
  "sine": Attenuation(_sine, 1),
}
