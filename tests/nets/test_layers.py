"""The CPU's convolution against XLA's own: values, gradients, gradients an example, gradients of gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets import layers


@pytest.mark.parametrize("padding", [1, 2])
def test_cpu_convolution_has_the_derivatives_of_the_plain_one(padding):
  x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))

  def derivatives(conv):
    loss = lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel, padding)))
    return (
      conv(x, kernel, padding),
      jax.grad(loss, (0, 1))(x, kernel),
      jax.vmap(lambda x: jax.grad(loss, 1)(x[None], kernel))(x),
      jax.jvp(jax.grad(loss, 1), (x, kernel), (x, kernel))[1],
    )

  for got, plain in zip(*map(jax.tree.leaves, map(derivatives, (layers.conv3x3_cpu, layers.conv3x3)))):
    np.testing.assert_allclose(got, plain, atol=1e-5 * np.abs(plain).max())
