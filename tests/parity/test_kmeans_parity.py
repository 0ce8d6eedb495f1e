"""k-means against scikit-learn's on the same data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.models.kmeans import (
    gather_sums,
    initialise,
    move,
    nearest,
    plus_plus,
    update,
)

cluster = pytest.importorskip("sklearn.cluster")

N, WIDTH, CLUSTERS = 6_000, 10, 25


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Forty overlapping clouds of different sizes and widths, away from the origin."""
    random = np.random.default_rng(0)
    middle = 3 * random.standard_normal((40, WIDTH)) + 5
    cloud = random.integers(40, size=N) * random.integers(1, 3, size=N) % 40
    spread = random.uniform(0.3, 1.5, 40)[cloud, None]
    return (middle[cloud] + spread * random.standard_normal((N, WIDTH))).astype(np.float32)


def inertia(x: np.ndarray, centres: np.ndarray) -> float:
    return float(np.square(x[:, None] - np.asarray(centres)[None]).sum(-1).min(1).sum())


def test_lloyd_from_the_same_centres(vectors):
    start = vectors[:CLUSTERS]
    theirs = cluster.KMeans(CLUSTERS, init=start, n_init=1, max_iter=12, tol=0, algorithm="lloyd")
    theirs.fit(vectors.astype(np.float64))
    assert theirs.n_iter_ == 12, "not yet at rest: each of the twelve steps is compared"
    step = jax.jit(lambda c: move(c, gather_sums(c, vectors, jnp.ones(N, bool))))
    centres = start
    for _ in range(12):
        centres = step(centres)
    np.testing.assert_allclose(centres, theirs.cluster_centers_, atol=1e-4)
    labels, distance = nearest(jnp.asarray(vectors), centres)
    assert (np.asarray(labels) == theirs.predict(vectors.astype(np.float64))).mean() > 0.999
    assert float(distance.sum()) == pytest.approx(inertia(vectors, centres), rel=1e-4)


def test_one_mini_batch_after_another(vectors):
    """The same batches from the same centres: `partial_fit`."""
    theirs = cluster.MiniBatchKMeans(
        CLUSTERS, init=vectors[:CLUSTERS], n_init=1, reassignment_ratio=0.0
    )
    state = initialise(
        rng.root(0),
        jnp.asarray(vectors[:100]),
        jnp.ones(100, bool),
        CLUSTERS,
        1,
    ).replace(centres=jnp.asarray(vectors[:CLUSTERS]))
    step = jax.jit(update, static_argnums=3)
    for batch in np.split(vectors, 10):
        theirs.partial_fit(batch.astype(np.float64))
        state = step(state, batch, jnp.ones(len(batch), bool), 0.1)
    np.testing.assert_allclose(state.centres, theirs.cluster_centers_, atol=1e-4)
    assert (int(state.step), int(state.counts.sum())) == (10, N)


def test_first_centres_cost_as_little(vectors):
    valid = jnp.ones(N, bool)
    ours = jax.jit(plus_plus, static_argnums=3)
    costs = [inertia(vectors, ours(rng.root(i), vectors, valid, CLUSTERS)) for i in range(10)]
    theirs = [
        inertia(vectors, cluster.kmeans_plusplus(vectors, CLUSTERS, random_state=i)[0])
        for i in range(10)
    ]
    assert np.mean(costs) == pytest.approx(np.mean(theirs), rel=0.05)


def test_vectors_that_do_not_count(vectors):
    """Rows that only fill up a batch are neither chosen nor averaged."""
    valid = np.arange(N) < 5000
    spoilt = np.where(valid[:, None], vectors, 1e4).astype(np.float32)
    state = initialise(rng.root(1), jnp.asarray(spoilt), jnp.asarray(valid), CLUSTERS, 2)
    assert np.abs(state.centres).max() < 100
    after = update(state, jnp.asarray(spoilt), jnp.asarray(valid), 0.1)
    alone = update(state, jnp.asarray(vectors[:5000]), jnp.ones(5000, bool), 0.1)
    np.testing.assert_allclose(after.centres, alone.centres, atol=1e-4)
    assert float(after.cost) == pytest.approx(float(alone.cost), rel=1e-5)


def test_fewer_vectors_than_clusters():
    x = jnp.arange(6.0).reshape(3, 2)
    state = initialise(rng.root(0), x, jnp.ones(3, bool), 5, 1)
    assert np.isfinite(state.centres).all()
    assert {tuple(row) for row in np.asarray(state.centres).tolist()} == {
        tuple(row) for row in x.tolist()
    }
