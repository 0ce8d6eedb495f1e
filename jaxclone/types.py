"""The vocabulary of shapes that every room shares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Int

# An array on a device or on the host. Use it inside jaxtyping: Float[Array, "b t"]. Its shapes and
# types are checked when tests run; a static checker, which knows neither, takes it as given.
if TYPE_CHECKING:
    Array = Any
else:
    Array = jax.Array | np.ndarray
# A nested container of arrays. Fields of pytree dataclasses carry this type too: JAX rebuilds
# them with shapes, shardings or tracers in place of arrays.
Tree = Any
Metrics = dict[str, Any]


class UserError(ValueError):
    """A mistake of the user's, told in one line; the command line prints it and exits with 1."""


def require_positive(
    config: Any, *names: str, or_zero: bool = False, most: int | None = None
) -> None:
    """Raises a UserError when a field of a configuration is no finite number above zero.

    Args:
        config: a dataclass, in its `__post_init__`.
        names: its fields; each item counts of one that holds several, None is left to pass.
        or_zero: zero will do too.
        most: the largest number that makes sense; None for no such bound.

    >>> from types import SimpleNamespace
    >>> require_positive(SimpleNamespace(seconds=0.0), "seconds", or_zero=True)
    >>> require_positive(SimpleNamespace(seconds=0.0), "seconds")
    Traceback (most recent call last):
    jaxclone.types.UserError: seconds must be above 0, got 0.0
    """
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is None:
                continue
            if abs(number) == math.inf or number != number:
                wanted = "finite"
            elif number < 0 or (number == 0 and not or_zero):
                wanted = "0 or more" if or_zero else "above 0"
            elif most is not None and number > most:
                wanted = f"{most} or less"
            else:
                continue
            raise UserError(f"{name} must be {wanted}, got {number}")


def require_rates(config: Any, *names: str) -> None:
    """Raises a UserError when a field of a configuration is not at least 0 and below 1.

    Args:
        config: a dataclass, in its `__post_init__`.
        names: its fields.

    >>> from types import SimpleNamespace
    >>> require_rates(SimpleNamespace(dropout=1.0), "dropout")
    Traceback (most recent call last):
    jaxclone.types.UserError: dropout must be at least 0 and below 1, got 1.0
    """
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 0 and below 1, got {getattr(config, name)}")


class Batch(struct.PyTreeNode):
    """Examples of one step; the first axis is the (global) batch.

    Attributes:
        waveform: f32[b, samples] in [-1, 1], zero after each example's length.
        length: i32[b] true samples of each example.
        speaker: i32[b] index in the corpus's table of speakers, -1 when unlabelled.
        example: i32[b] a number that no other example of the run has (its place in the stream);
            masks and noise are functions of (seed, step, example).
        f0: f32[b, frames] Hz, 0 where unvoiced; None unless asked for.
        units: i32[b, frames] what each frame is to be recognised as, -1 for nothing; None unless
            asked for.
        reference: f32[b, samples] another recording of the same speaker; None unless asked for.
        reference_length: i32[b] true samples of the reference.
    """

    waveform: Tree
    length: Tree
    speaker: Tree
    example: Tree
    f0: Tree = None
    units: Tree = None
    reference: Tree = None
    reference_length: Tree = None


class Episode(struct.PyTreeNode):
    """One meta-learning step: per task (speaker) a support and a query set.

    Both are `Batch`es with two leading axes [tasks, shots, ...].
    """

    support: Batch
    query: Batch


class Voice(struct.PyTreeNode):
    """What is kept of a person: a few vectors, never the recordings.

    Attributes:
        embedding: f32[d], unit norm.
        log_f0_mean: f32[] mean of the natural log of F0 in Hz over voiced frames.
        log_f0_std: f32[] its standard deviation.
        adapter: parameters that replace the converter's `adapter` collection; {} for none.
        steps: inner steps of adaptation taken (0: the embedding alone).
        reference_seconds: seconds of recording it was made from.
    """

    embedding: Tree
    log_f0_mean: Tree
    log_f0_std: Tree
    adapter: Tree = struct.field(default_factory=dict)
    steps: int = struct.field(pytree_node=False, default=0)
    reference_seconds: float = struct.field(pytree_node=False, default=0.0)


def length_mask(length: Int[Array, "*b"], size: int) -> Bool[Array, "*b {size}"]:
    """True for positions before each length.

    >>> length_mask(jnp.array([1, 3]), 4).astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 1, 0]]
    """
    return jnp.arange(size) < jnp.asarray(length)[..., None]
