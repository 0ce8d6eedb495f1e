"""Fitting k-means to files: as good as scikit-learn, the same after a stop and on any mesh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from jaxclone.models.kmeans import KMeansConfig, nearest
from jaxclone.sharding.mesh import MeshConfig, make_mesh
from jaxclone.train.kmeans import Table, fit_kmeans
from jaxclone.types import UserError

CLUSTERS = 20
CONFIG = KMeansConfig(batch_size=501, inits=4, epochs=6, patience=30)


def vectors(n: int) -> np.ndarray:
    """A cloud without clumps, whose clusters cost about the same from every start."""
    random = np.random.default_rng(3)
    return (random.standard_normal((n, 8)) * np.arange(1, 9)).astype(np.float32)


@pytest.fixture(scope="module")
def table() -> Table:
    return Table(np.split(vectors(4_000), [100, 100, 2_500]))


@pytest.fixture(scope="module")
def fitted(table):
    kept = []
    state = fit_kmeans(
        table, CLUSTERS, CONFIG, 5, make_mesh(MeshConfig()), keep=lambda *state: kept.append(state)
    )
    assert [done for _, done in kept] == [True]
    return state


def test_a_table_is_its_parts_one_after_another(table):
    places = np.array([0, 99, 100, 2_499, 2_500, 3_999, 5])
    assert len(table) == 4_000
    np.testing.assert_array_equal(table[places], vectors(4_000)[places])


def test_it_costs_as_little_as_scikit_learns(table, fitted):
    cluster = pytest.importorskip("sklearn.cluster")
    x = vectors(4_000)
    theirs = cluster.MiniBatchKMeans(
        CLUSTERS,
        batch_size=501,
        n_init=4,
        max_iter=6,
        max_no_improvement=30,
        reassignment_ratio=0.0,
        random_state=0,
    ).fit(x)
    cost = float(nearest(x, fitted.centres)[1].sum())
    assert cost == pytest.approx(-theirs.score(x), rel=0.02)


def test_it_goes_on_where_it_stopped(table, fitted, monkeypatch):
    monkeypatch.setattr("jaxclone.train.kmeans._KEEP_EVERY", 7)

    class Stop(Exception):
        pass

    kept = []

    def keep(state, done):
        kept.append(state)
        if len(kept) == 2:
            raise Stop

    mesh = make_mesh(MeshConfig())
    with pytest.raises(Stop):
        fit_kmeans(table, CLUSTERS, CONFIG, 5, mesh, keep=keep)
    assert int(kept[-1].step) == 14
    again = fit_kmeans(table, CLUSTERS, CONFIG, 5, mesh, kept[-1])
    assert int(again.step) == int(fitted.step) > 20
    np.testing.assert_array_equal(again.centres, fitted.centres)


SCRIPT = """
import json, numpy as np, test_kmeans as t
from jaxclone.sharding.hosts import initialise_distributed
from jaxclone.sharding.mesh import MeshConfig, make_mesh
initialise_distributed()
table = t.Table([t.vectors(4_000)])
state = t.fit_kmeans(table, t.CLUSTERS, t.CONFIG, 5, make_mesh(MeshConfig(data=2, fsdp=2)))
print(json.dumps([state.centres.tolist(), int(state.step)]))
"""


def test_any_mesh_gives_the_same_centres(fitted):
    environment = toy.environment(JAXCLONE_CPU_DEVICES="4", JAX_PLATFORMS="cpu")
    environment["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    centres, steps = json.loads(done.stdout)
    assert steps == int(fitted.step)
    np.testing.assert_allclose(centres, fitted.centres, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 2])
def test_fewer_vectors_than_centres(rows):
    with pytest.raises(UserError, match=f"{rows} features to find 3 centres of: in a new"):
        fit_kmeans(Table([np.zeros((rows, 8), "f4")]), 3, CONFIG, 0, make_mesh(MeshConfig()))


def test_centres_of_something_else(table, fitted):
    with pytest.raises(UserError, match="do not fit 3 of width"):
        fit_kmeans(table, 3, CONFIG, 0, make_mesh(MeshConfig()), fitted)
