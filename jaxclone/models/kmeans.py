"""k-means: the nearest of k centres stands for a vector; the centres are its parameters.

Training is mini-batch k-means (Sculley 2010) from k-means++ centres (Arthur and Vassilvitskii 2007,
with several candidates a centre), the best of several starts, and stops when the smoothed cost no
longer falls: what HuBERT makes its targets with (Hsu et al. 2021 §IV-B; fairseq
`examples/hubert/simple_kmeans/learn_kmeans.py`). Under `jax.jit` the vectors may be divided over
any devices: sums over them are all that is communicated.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int, Key

from jaxclone.types import Array, Tree, UserError


@dataclasses.dataclass(frozen=True)
class KMeansConfig:
    """How centres are found; the defaults are HuBERT's.

    Attributes:
        batch_size: vectors an update.
        inits: starts, of which the one that costs least on the first sample is kept.
        epochs: at most so many times the number of vectors is drawn.
        patience: updates without a lower smoothed cost after which it stops; 0 goes on to the end.
    """

    batch_size: int = 10_000
    inits: int = 20
    epochs: int = 100
    patience: int = 100

    def __post_init__(self) -> None:
        if min(self.batch_size, self.inits, self.epochs) < 1 or self.patience < 0:
            raise UserError(
                "k-means needs at least one vector a batch, one init and one epoch, and no "
                f"negative patience, got {self}"
            )

    def sample_size(self, clusters: int) -> int:
        """Vectors that the first centres are chosen from."""
        return 3 * max(self.batch_size, clusters)


@struct.dataclass
class KMeansState:
    """Where training is.

    Attributes:
        centres: f32[k, d].
        counts: f32[k] vectors that each centre is the mean of.
        step: i32[] updates done.
        cost: f32[] smoothed mean squared distance; infinite before the first update.
        best: f32[] the lowest so far.
        stale: i32[] updates since then.
    """

    centres: Tree
    counts: Tree
    step: Tree
    cost: Tree
    best: Tree
    stale: Tree


@struct.dataclass
class Sums:
    """What a set of vectors says of the centres; that of two sets is the sum of theirs.

    Attributes:
        vectors: f32[k, d] sum of each centre's vectors.
        counts: f32[k] their number.
        cost: f32[] sum of squared distances to the nearest centre.
    """

    vectors: Tree
    counts: Tree
    cost: Tree


def squared_distances(x: Float[Array, "n d"], centres: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """Of each vector to each centre.

    >>> squared_distances(jnp.array([[0.0, 3.0]]), jnp.array([[4.0, 0.0], [0.0, 3.0]])).tolist()
    [[25.0, 0.0]]
    """
    cross = jnp.einsum("nd,kd->nk", x, centres, precision="highest")
    squares = jnp.square(x).sum(-1)[:, None] + jnp.square(centres).sum(-1)
    return jnp.maximum(squares - 2 * cross, 0)


def nearest(
    x: Float[Array, "n d"], centres: Float[Array, "k d"]
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """The nearest centre of each vector, and the squared distance to it."""
    distances = squared_distances(x, centres)
    return distances.argmin(-1), distances.min(-1)


def gather_sums(
    centres: Float[Array, "k d"], x: Float[Array, "n d"], valid: Bool[Array, " n"]
) -> Sums:
    """What the valid ones of some vectors say of the centres."""
    place, distance = nearest(x, centres)
    member = jax.nn.one_hot(place, len(centres)) * valid[:, None]
    return Sums(
        jnp.einsum("nk,nd->kd", member, x, precision="highest"),
        member.sum(0),
        jnp.where(valid, distance, 0).sum(),
    )


def move(centres: Float[Array, "k d"], sums: Sums) -> Float[Array, "k d"]:
    """Lloyd's step: each centre becomes the mean of its vectors; one that has none stays."""
    mean = sums.vectors / jnp.maximum(sums.counts, 1)[:, None]
    return jnp.where(sums.counts[:, None] > 0, mean, centres)


def update(
    state: KMeansState, x: Float[Array, "n d"], valid: Bool[Array, " n"], smoothing: float
) -> KMeansState:
    """One mini-batch: each centre becomes the mean of all vectors that it was ever given.

    Args:
        state: where training is.
        x: vectors of the batch.
        valid: which of them count.
        smoothing: weight of this batch's cost in the smoothed one.
    """
    sums = gather_sums(state.centres, x, valid)
    counts = state.counts + sums.counts
    pull = sums.vectors - sums.counts[:, None] * state.centres
    cost = sums.cost / jnp.maximum(sums.counts.sum(), 1)
    cost = jnp.where(jnp.isinf(state.cost), cost, (1 - smoothing) * state.cost + smoothing * cost)
    better = cost < state.best
    return KMeansState(
        state.centres + pull / jnp.maximum(counts, 1)[:, None],
        counts,
        state.step + 1,
        cost,
        jnp.minimum(cost, state.best),
        jnp.where(better, 0, state.stale + 1),
    )


def initialise(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    valid: Bool[Array, " n"],
    clusters: int,
    inits: int,
) -> KMeansState:
    """The best of several k-means++ starts on a sample.

    Args:
        key: of the choices.
        x: the sample.
        valid: which vectors of it may be chosen; at least one.
        clusters: centres.
        inits: starts.
    """

    def start(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        centres = plus_plus(key, x, valid, clusters)
        return gather_sums(centres, x, valid).cost, centres

    costs, centres = jax.lax.map(start, jax.random.split(key, inits))
    return KMeansState(
        centres[costs.argmin()],
        jnp.zeros(clusters),
        jnp.int32(0),
        jnp.float32(jnp.inf),
        jnp.float32(jnp.inf),
        jnp.int32(0),
    )


def plus_plus(
    key: Key[Array, ""], x: Float[Array, "n d"], valid: Bool[Array, " n"], clusters: int
) -> Float[Array, "{clusters} d"]:
    """Centres far from one another.

    Each is drawn from the vectors in proportion to the squared distance to the nearest centre
    before it; of 2 + ln(k) candidates, the one that leaves the least cost is taken.
    """
    candidates = 2 + int(math.log(clusters))
    first_key, key = jax.random.split(key)
    first = x[_draw(first_key, valid.astype(jnp.float32), 1)[0]]
    centres = jnp.zeros((clusters, x.shape[1])).at[0].set(first)
    distance = jnp.where(valid, squared_distances(x, first[None])[:, 0], 0)

    def add(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centres, distance = carry
        # Where all that is left coincides with a centre, any vector will do.
        weight = jnp.where(distance.sum() > 0, distance, valid.astype(jnp.float32))
        drawn = x[_draw(jax.random.fold_in(key, number), weight, candidates)]
        left = jnp.minimum(squared_distances(x, drawn), distance[:, None])
        best = left.sum(0).argmin()
        return centres.at[number].set(drawn[best]), left[:, best]

    return jax.lax.fori_loop(1, clusters, add, (centres, distance))[0]


def _draw(key: jax.Array, weight: jax.Array, n: int) -> jax.Array:
    """Draws n places with replacement, each in proportion to its weight."""
    edges = jnp.cumsum(weight)
    place = jnp.searchsorted(edges, jax.random.uniform(key, (n,)) * edges[-1], side="right")
    return jnp.minimum(place, len(weight) - 1)
