"""Fitting k-means to vectors in files, over all devices of a mesh, a mini-batch at a time.

Which vectors a step sees is a function of (seed, step), and all that is carried on is a few
numbers a centre: a fit that stops goes on from its last saved state as if it had not.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from data_pipelines.transforms import generator
from jaxclone import rng
from jaxclone.models.kmeans import KMeansConfig, KMeansState, initialise, update
from jaxclone.sharding.mesh import activate, batch_parts, batch_sharding, replicated
from jaxclone.types import Array, UserError

# Updates between two saved states.
_KEEP_EVERY = 500


class Table:
    """Rows of several matrices as of one; `table[places]` reads some, in memory or in files."""

    def __init__(self, parts: Sequence[Float[np.ndarray, "_ d"]]):
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.width = parts[0].shape[1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, places: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
        rows = np.empty((len(places), self.width), np.float32)
        part = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(part):
            here = part == number
            rows[here] = self._parts[number][places[here] - self._starts[number]]
        return rows


def fit_kmeans(
    table: Table,
    clusters: int,
    config: KMeansConfig,
    seed: int,
    mesh: Mesh,
    state: KMeansState | None = None,
    keep: Callable[[KMeansState, bool], object] = lambda state, done: None,
) -> KMeansState:
    """Finds centres; every process must call it with the same arguments.

    Args:
        table: vectors, the same in every process, each of which reads the rows of its devices.
        clusters: centres.
        config: how they are found.
        seed: of the choices.
        mesh: devices that a batch is divided over.
        state: where an earlier fit stopped; None to begin.
        keep: called with the state on the host, now and then and when it is done.

    Returns:
        the last state, on the host.

    Raises:
        UserError: the table has fewer rows than centres, or the state is not of such.
    """
    n = len(table)
    if n < clusters:
        raise UserError(
            f"there are {n} features to find {clusters} centres of: in a new run folder (--out), "
            "give more recordings, a larger share of them with targets.fraction, or ask for fewer "
            "units"
        )
    if state is not None and state.centres.shape != (clusters, table.width):
        raise UserError(
            f"centres of shape {state.centres.shape} do not fit {clusters} of width {table.width}"
        )
    size = min(config.batch_size, n)
    last = max(1, config.epochs * n // size)
    place, whole = batch_sharding(mesh), replicated(mesh)

    def put(drawn: Int[np.ndarray, " m"]) -> tuple[Array, Array]:
        """Rows on the devices, filled up to a number that the devices divide."""
        parts = batch_parts(mesh)
        counts: Bool[np.ndarray, " m"] = np.arange(-(-len(drawn) // parts) * parts) < len(drawn)
        drawn = np.pad(np.sort(drawn), (0, len(counts) - len(drawn)))

        def read(index: Any) -> np.ndarray:
            return table[drawn[index[0]]]

        rows = jax.make_array_from_callback((len(drawn), table.width), place, read)
        return rows, jax.make_array_from_callback(counts.shape, place, lambda index: counts[index])

    def begin(x: Array, valid: Array) -> KMeansState:
        return initialise(rng.stream(rng.root(seed), "kmeans"), x, valid, clusters, config.inits)

    def done(state: KMeansState) -> bool:
        return int(state.step) >= last or 0 < config.patience <= int(state.stale)

    bar = tqdm(
        desc=f"{clusters} centres of {n} vectors",
        total=last,
        initial=0 if state is None else int(state.step),
        unit="step",
        file=sys.stderr,
        disable=jax.process_index() != 0,
        dynamic_ncols=True,
    )
    with activate(mesh), bar:
        if state is None:
            sample = config.sample_size(clusters)
            start = generator(seed, "kmeans/start", 0)
            drawn = np.arange(n) if n <= sample else start.integers(n, size=sample)
            state = jax.jit(begin, out_shardings=whole)(*put(drawn))
        else:
            state = jax.device_put(state, whole)
        step = jax.jit(
            functools.partial(update, smoothing=min(1.0, 2 * size / (n + 1))), out_shardings=whole
        )
        while not done(state):
            drawn = generator(seed, "kmeans/batch", int(state.step)).integers(n, size=size)
            state = step(state, *put(drawn))
            bar.update()
            bar.set_postfix_str(f"mean squared distance {float(state.cost):.4g}")
            if int(state.step) % _KEEP_EVERY == 0:
                keep(_on_host(state), False)
    state = _on_host(state)
    keep(state, True)
    return state


def _on_host(state: KMeansState) -> KMeansState:
    return jax.tree.map(np.asarray, state)
