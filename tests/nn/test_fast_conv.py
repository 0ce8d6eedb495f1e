"""The convolution with fewer multiplications is the convolution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.nn.conv import conv1d
from jaxclone.nn.fast_conv import FACTORS, bilinear, fast_conv1d, kernel_factors, prepare
from jaxclone.nn.weight_norm import WeightNormConv, fold

# taps, samples, dilation, padding
SHAPES = [
    (3, 40, 1, (1, 1)),
    (3, 3, 1, (0, 0)),
    (4, 31, 2, (3, 0)),
    (5, 60, 6, (12, 12)),
    (7, 100, 12, (36, 36)),
    (11, 75, 5, (25, 25)),
    (11, 1, 1, (5, 5)),
    (16, 50, 1, (0, 7)),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_are_those_of_the_convolution(shape):
    taps, samples, dilation, padding = shape
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, samples, 8)).astype(np.float32)
    kernel = (rng.normal(size=(taps, 8, 12)) / np.sqrt(8 * taps)).astype(np.float32)

    def plain(x, kernel):
        return conv1d(x, kernel, 1, dilation, 1, padding)

    def fast(x, kernel):
        return fast_conv1d(x, kernel_factors(kernel), taps, dilation, padding)

    def evaluate(conv):
        y, pull_back = jax.vjp(conv, x, kernel)
        return y, pull_back(jnp.cos(y))

    expected, got = jax.jit(lambda: evaluate(plain))(), jax.jit(lambda: evaluate(fast))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-5), expected, got)


@pytest.mark.parametrize("taps", range(3, 17))
def test_the_matrices_lose_no_digits_and_most_multiplications(taps: int):
    way = bilinear(taps)
    (m, products), size = way.outputs.shape, way.window.shape[1]
    assert size == m + taps - 1
    assert m >= taps - 1
    assert products / (m * taps) < 0.5
    window, kernel = np.random.default_rng(0).normal(size=(2, size)).astype(np.float32)
    kernel = kernel[:taps]
    y = way.outputs @ ((way.kernel @ kernel) * (way.window @ window))
    expected = np.correlate(window.astype(np.float64), kernel.astype(np.float64))
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_a_layer_uses_the_factors_that_its_kernel_was_prepared_with():
    x = jax.random.normal(jax.random.key(0), (1, 30, 8))
    layer = WeightNormConv(8, 7, dilation=2)
    params = fold(layer.init(jax.random.key(1), x)["params"])
    ready = prepare(params)
    assert FACTORS in ready
    assert FACTORS not in params
    expected = layer.apply({"params": params}, x)
    np.testing.assert_allclose(layer.apply({"params": ready}, x), expected, atol=1e-5)
    doubled = layer.apply({"params": ready | {FACTORS: 2 * ready[FACTORS]}}, x)
    bias = params["bias"]
    np.testing.assert_allclose(doubled - bias, 2 * (expected - bias), atol=1e-5)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": (3, 3)}, {"groups": 2}])
def test_a_layer_that_the_factors_do_not_fit_convolves(options):
    x = jax.random.normal(jax.random.key(0), (1, 30, 8))
    layer = WeightNormConv(8, 7, **options)
    params = fold(layer.init(jax.random.key(1), x)["params"])
    got = layer.apply({"params": params | {FACTORS: kernel_factors(jnp.ones((7, 8, 8)))}}, x)
    np.testing.assert_array_equal(got, layer.apply({"params": params}, x))
