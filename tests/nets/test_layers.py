"""The CPU's convolution against XLA's own: values, gradients, their layout; and its barrier. Codes of places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets import layers


@pytest.mark.parametrize("padding, cached", [(1, 2**19), (2, 2**19), (1, 6 * 6 * 5 * 3)])
def test_cpu_convolution_has_the_derivatives_of_the_plain_one(padding, cached, monkeypatch):
  monkeypatch.setattr(layers, "_CACHED", cached)  # the last: parts of three images and of one
  x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))

  def derivatives(conv):
    loss = lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel, padding)))
    return (
      conv(x, kernel, padding),
      jax.grad(loss, (0, 1))(x, kernel),
      jax.vmap(lambda x: jax.grad(loss, 1)(x[None], kernel))(x),
      jax.jvp(jax.grad(loss, 1), (x, kernel), (x, kernel))[1],
      jax.jvp(lambda *args: conv(*args, padding), (x, kernel), (x, kernel))[1],
    )

  for got, plain in zip(*map(jax.tree.leaves, map(derivatives, (layers.conv3x3_cpu, layers.conv3x3)))):
    np.testing.assert_allclose(got, plain, atol=1e-5 * np.abs(plain).max())


def test_gradients_are_convolutions_in_the_fast_layout():
  x, kernel = jnp.ones((4, 6, 6, 3)), jnp.ones((3, 3, 3, 5))
  gradient = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(layers.conv3x3_cpu(x, kernel))), (0, 1))
  found = jax.jit(gradient).lower(x, kernel).as_text().split("stablehlo.convolution")[1:]
  assert len(found) == 3
  assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in operation for operation in found)


def test_a_cotangent_computed_once_is_the_same_cotangent():
  x, emb = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jax.nn.silu(jnp.linspace(-40, 4, 10).reshape(2, 5))
  once = lambda x: jnp.sum(jnp.sin(layers.backward_once(x, emb)))
  plain = lambda x: jnp.sum(jnp.sin(x))
  for derivative in (jax.grad, jax.hessian, lambda f: lambda x: jax.jvp(f, (x,), (x,))):
    np.testing.assert_array_equal(*map(jnp.asarray, (derivative(once)(x), derivative(plain)(x))))


@pytest.mark.parametrize("channels", [8, 18])
def test_codes_of_places_match_best_at_equal_places(channels):
  """Their products are the closed form Σ_{k ≤ n} cos kθ = sin((n + ½)θ)/(2 sin ½θ) − ½ of rows, and of columns."""
  fine, coarse = layers.pixel_centers(8, 6), layers.pixel_centers(4, 3)
  i, j = np.divmod(np.arange(48), 6)
  np.testing.assert_allclose(fine, np.stack([(2 * i + 1) / 16, (2 * j + 1) / 12], -1), rtol=1e-6)  # row by row
  codes, queries = (np.asarray(layers.place_codes(places, channels)) for places in (fine, coarse))
  assert codes.shape == (48, channels)

  theta, n = np.pi * (coarse[:, None] - fine).astype(np.float64), channels // 4
  np.testing.assert_allclose(
    queries @ codes.T, (np.sin((n + 0.5) * theta) / (2 * np.sin(theta / 2)) - 0.5).sum(-1), atol=1e-4
  )
  np.testing.assert_array_equal((codes @ codes.T).argmax(1), np.arange(48))
  for query, place in zip(queries @ codes.T, coarse):  # of a larger pixel: the four pixels within it, all alike
    best = np.argsort(query)[-4:]
    assert np.abs(fine[best] - place).max(0) == pytest.approx([1 / 16, 1 / 12])
    assert np.ptp(query[best]) < 1e-4
