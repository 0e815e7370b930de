"""Distances by hand, weights by their closed forms, gradients at zero distance."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import losses
from diffusion_jax import parameterization as par

A = jnp.array([[[[1.0], [2.0]]], [[[0.0], [0.0]]]])
B = jnp.array([[[[0.0], [4.0]]], [[[0.0], [0.0]]]])


def test_distances():
  np.testing.assert_allclose(losses.squared_error(A, B), [5, 0])
  np.testing.assert_allclose(losses.absolute_error(A, B), [3, 0])
  np.testing.assert_allclose(losses.pseudo_huber(A, B, 2.0), [np.sqrt(9) - 2, 0])
  c = 0.00054 * np.sqrt(2)
  np.testing.assert_allclose(losses.pseudo_huber(A, B), [np.sqrt(5 + c * c) - c, 0], rtol=1e-6)
  gradient = jax.grad(lambda a: losses.pseudo_huber(a, B).sum())(B)
  np.testing.assert_array_equal(gradient, 0 * B)  # no 0/0 at the minimum


def test_edm_weight_balances_the_networks_output_scale():
  sigma = jnp.geomspace(0.002, 80, 20)
  np.testing.assert_allclose(losses.edm_weight(sigma, 0.7), par.EDMPreconditioner(0.7)(sigma).c_out ** -2, rtol=1e-5)
  np.testing.assert_allclose(losses.inverse_variance_weight(sigma), np.asarray(sigma) ** -2.0, rtol=1e-6)
