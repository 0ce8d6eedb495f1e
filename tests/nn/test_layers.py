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


def test_dropout_is_even_and_independent():
    """Shares by example, place and channel vary, and entries go together, as fair coins do."""
    keys = rng.per_example(rng.root(1), jnp.arange(32))
    dropped = np.asarray(dropout(jnp.ones((32, 60, 64)), 0.1, keys) == 0)
    deviation = (dropped - 0.1) / np.sqrt(0.09)
    for axis in range(3):
        rest = tuple(other for other in range(3) if other != axis)
        shares = deviation.mean(rest) * np.sqrt(deviation.size / deviation.shape[axis])
        assert abs(shares.var() - 1) < 0.6
        assert abs(shares).max() < 4.5
        lines = np.moveaxis(deviation, axis, 0).reshape(deviation.shape[axis], -1)
        together = (lines @ lines.T / np.sqrt(lines.shape[1]))[np.triu_indices(len(lines), 1)]
        assert abs(together.var() - 1) < 0.2
        assert abs(together).max() < 5
    flat = deviation.reshape(-1)
    for lag in (1, 2, 3, 16, 64, 128, 60 * 64):
        assert abs((flat[lag:] * flat[:-lag]).mean()) * np.sqrt(flat.size - lag) < 4


def test_dropout_belongs_to_the_example():
    y = dropout(X, 0.25, KEYS)
    assert (y[0] != y[1]).any()
    np.testing.assert_array_equal(dropout(X[2:], 0.25, KEYS[2:]), y[2:])


def test_no_keys_no_dropout():
    assert dropout(X, 0.25, None) is X
    assert split_keys(None, 3) == (None, None, None)
