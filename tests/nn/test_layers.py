"""Dropout by example."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxclone import rng
from jaxclone.nn.layers import dropout, split_keys

KEYS = rng.per_example(rng.root(0), jnp.arange(4))
X = jnp.ones((4, 50, 20))


def test_dropout_keeps_the_mean():
    y = dropout(X, 0.25, KEYS)
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(y.mean(), 1, atol=0.03)


def test_dropout_belongs_to_the_example():
    y = dropout(X, 0.25, KEYS)
    assert (y[0] != y[1]).any()
    np.testing.assert_array_equal(dropout(X[2:], 0.25, KEYS[2:]), y[2:])


def test_no_keys_no_dropout():
    assert dropout(X, 0.25, None) is X
    assert split_keys(None, 3) == (None, None, None)
