from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.nn.conv import conv1d

# taps, stride, dilation, groups, padding
SHAPES = [
    (1, 1, 1, 1, (0, 0)),
    (3, 1, 1, 1, (1, 1)),
    (5, 1, 6, 1, (12, 12)),
    (4, 1, 2, 2, (3, 0)),
    (5, 3, 1, 1, (2, 2)),
    (7, 4, 1, 4, (3, 3)),
    (3, 2, 3, 2, (0, 5)),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("within_loop", [False, True])
def test_result_and_gradients_are_those_of_lax(shape, within_loop: bool):
    taps, stride, dilation, groups, padding = shape
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 23, 8))
    kernel = jax.random.normal(keys[1], (taps, 8 // groups, 12))

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride,),
            [padding],
            rhs_dilation=(dilation,),
            feature_group_count=groups,
            dimension_numbers=("NWC", "WIO", "NWC"),
        )

    def ours(x, kernel):
        return conv1d(x, kernel, stride, dilation, groups, padding)

    def evaluate(conv):
        def run(x, kernel):
            y, pull_back = jax.vjp(conv, x, kernel)
            return y, pull_back(jnp.cos(y))

        if not within_loop:
            return jax.jit(run)(x, kernel)
        return jax.jit(lambda *args: jax.lax.cond(args[0][0, 0, 0] < 100, run, run, *args))(
            x, kernel
        )

    for expected, got in zip(jax.tree.leaves(evaluate(plain)), jax.tree.leaves(evaluate(ours))):
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-5)
