"""The inner and the outer gradient against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.adapt.maml import adapt, meta_loss


def loss(x, target):
    return jnp.sum((x - target) ** 2)


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_of_a_quadratic(first_order):
    support, query, rate, steps = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]), 0.1, 3
    x = jnp.array(0.7)

    def outer(x):
        _, after = meta_loss(
            loss, x, support, query, steps=steps, learning_rate=rate, first_order=first_order
        )
        return after.sum()

    # Each step multiplies the distance to the support's target by 1 - 2 rate.
    shrink = (1 - 2 * rate) ** steps
    adapted = support + (x - support) * shrink
    np.testing.assert_allclose(outer(x), jnp.sum((adapted - query) ** 2), rtol=1e-6)
    chain = 1.0 if first_order else shrink
    expected = jnp.sum(2 * (adapted - query) * chain)
    np.testing.assert_allclose(jax.grad(outer)(x), expected, rtol=1e-5)


def test_no_steps_and_no_rate_leave_the_start():
    start = {"w": jnp.array([1.0, 2.0])}
    for steps, rate in ((0, 0.1), (5, 0.0)):
        end = adapt(lambda p: jnp.sum(p["w"] ** 2), start, steps=steps, learning_rate=rate)
        np.testing.assert_array_equal(end["w"], start["w"])


def test_meta_learned_start_adapts_better_than_a_random_one():
    # Tasks are lines through the origin with slopes around 3; two points tell the slope.
    key = jax.random.key(0)
    slopes = 3.0 + 0.5 * jax.random.normal(key, (32,))
    xs = jnp.linspace(-1, 1, 4)
    data = jax.vmap(lambda s: jnp.stack([xs, s * xs]))(slopes)

    def line_loss(w, points):
        return jnp.mean((w * points[0] - points[1]) ** 2)

    def outer(w):
        return meta_loss(line_loss, w, data, data, steps=2, learning_rate=0.1)[1].mean()

    slope = jax.jit(jax.grad(outer))
    w = jnp.array(0.0)
    for _ in range(50):
        w = w - 0.5 * slope(w)
    assert abs(float(w) - 3.0) < 0.3
    assert float(outer(w)) < 0.05 * float(outer(jnp.array(0.0)))
