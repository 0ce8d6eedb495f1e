"""Named random streams: (root key, name, step) -> key.

Every use of randomness names its stream, so that adding one never shifts another, and nothing
random is stored: a resumed or re-sharded run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import zlib

import jax
from jaxtyping import Int, Key

from jaxclone.types import Array


def root(seed: int) -> Key[Array, ""]:
    """The one key of a run."""
    return jax.random.key(seed)


def stream(
    key: Key[Array, ""], name: str, step: int | Int[Array, ""] | None = None
) -> Key[Array, ""]:
    """The key of a named stream, at a step when one is given.

    >>> a, b = stream(root(0), "mask", 3), stream(root(0), "mask", 4)
    >>> bool((jax.random.key_data(a) == jax.random.key_data(b)).all())
    False
    """
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key if step is None else jax.random.fold_in(key, step)


def per_example(key: Key[Array, ""], example: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key an example: what it draws depends on neither its place in the batch nor the mesh."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(example)
