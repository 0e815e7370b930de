"""Integrals of the polynomial through a solver's estimates, which all multistep and singlestep solvers are made of.

    p(0) = f,  p(r_j) = f_j, j = 1, …, n;   p(r) = f + r·q(r)                            (1)
    ∫p dμ = f·M_0 + Σ_j q[r_1, …, r_j]·∫ r·(r − r_1)⋯(r − r_{j−1}) dμ                    (2)
    M_k = ∫ r^k dμ,  of which the integrals of (2) are sums                              (3)
    μ = e^{z(1 − r)}dr on [0, 1]:  M_k = k!·φ_{k+1}(z),  z·M_k = k·M_{k−1} − 1,  z·M_0 = e^z − 1    (4)

q[…] are Newton's divided differences: each further estimate adds one term to (2), so that a solver which has no history
yet takes the first of them. φ are the functions of exponential integrators (Hochbruck & Ostermann 2010, §2).
"""

import math

import jax.numpy as jnp

from diffusion_jax.types import Array

_SERIES = 24  # terms of M_k = Σ_j z^j·k!/(j + k + 1)!, below float64's resolution for |z| <= 2


def exponential_moments(z, count: int) -> list[Array]:
  """[M_0, ..., M_count] of equation (4), each of the shape of z; without cancellation, 1/(k + 1) at z = 0."""
  z = jnp.asarray(z)
  small = jnp.abs(z) <= 2
  near, far = jnp.where(small, z, 0), jnp.where(small, 3, z)
  moments, recursive = [], jnp.expm1(far) / far
  for k in range(count + 1):
    if k:
      recursive = (k * recursive - 1) / far
    coefficients = [math.factorial(k) / math.factorial(j + k + 1) for j in reversed(range(_SERIES))]
    moments.append(jnp.where(small, jnp.polyval(jnp.asarray(coefficients, z.dtype), near), recursive))
  return moments


def correction(moments: list[Array], nodes: list[Array], values: list[Array], f: Array, known) -> Array:
  """∫(p − f)dμ, the sum of equation (2).

  Args:
    moments: [M_0, ..., M_n] scalars, n at least the number of nodes.
    nodes: [r_1, ..., r_n] scalars, distinct and none of them 0 as far as they are known.
    values: [f_1, ..., f_n], each [B, ...].
    f: p(0) [B, ...].
    known: how many of the nodes count, from the first; the others may hold anything. May be traced.
  """
  nodes = [jnp.where(j < known, r, -1e3 * (j + 1)) for j, r in enumerate(nodes)]
  column = [(value - f) / r for value, r in zip(values, nodes)]  # q at the nodes
  total, basis = jnp.zeros_like(f), [1.0]  # coefficients of (r − r_1)⋯(r − r_{j−1}), the lowest power first
  for j, r in enumerate(nodes):
    integral = sum(c * moments[k + 1] for k, c in enumerate(basis))
    total = total + jnp.where(j < known, integral, 0) * column[0]
    basis = [a - r * b for a, b in zip([0.0, *basis], [*basis, 0.0])]
    column = [(b - a) / (nodes[i + j + 1] - nodes[i]) for i, (a, b) in enumerate(zip(column, column[1:]))]
  return total
