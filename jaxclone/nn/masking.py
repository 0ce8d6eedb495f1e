"""Which frames are masked, and which of them serve as negatives, from a key for each example."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Int
from scipy.special import gammaln

from jaxclone.nn.layers import Keys
from jaxclone.types import Array, Tree, UserError

# In utterances of fewer frames none is masked.
FEWEST_FRAMES = 3


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Spans of frames to mask.

    Attributes:
        start_probability: spans over frames; spans may overlap.
        span: frames of a span.
        min_spans: at least so many in an utterance.
    """

    start_probability: float = 0.065
    span: int = 10
    min_spans: int = 2

    def __post_init__(self) -> None:
        if not (0 < self.start_probability < 1 and self.span >= 1):
            raise UserError(
                "masking needs 0 < start_probability < 1 and span >= 1, got "
                f"{self.start_probability} and {self.span}"
            )


@struct.dataclass
class MaskedFrames:
    """The masked frames of a batch, and a list of the frames to compare: those, or all.

    Attributes:
        mask: bool[b, f].
        index: i32[b, m] the frames to compare of each example in order; m is the most that an
            example of f frames can have, the rest of the list is 0.
        valid: bool[b, m] which entries of the list are frames.
    """

    mask: Tree
    index: Tree
    valid: Tree

    def all_compared(self, length: Int[Array, " b"]) -> MaskedFrames:
        """The same frames masked, and a list of all frames.

        Args:
            length: true frames.
        """
        frames = jnp.broadcast_to(jnp.arange(self.mask.shape[1]), self.mask.shape)
        valid = frames < length[:, None]
        return MaskedFrames(self.mask, jnp.where(valid, frames, 0), valid)

    @property
    def hidden(self) -> Bool[Array, "b m"]:
        """Which entries of the list are masked frames."""
        return self.valid & jnp.take_along_axis(self.mask, self.index, axis=1)


def mask_spans(
    keys: Keys, length: Int[Array, " b"], size: int, config: MaskingConfig
) -> MaskedFrames:
    """Masks spans that start at random places, until a given number of frames is masked.

    The published code draws a random number of spans (start_probability times the frames, rounded
    up or down at random), so that the number of masked frames differs with their overlaps, and then
    unmasks frames at random until all examples of the batch have as many as the one with the
    fewest. Here spans are placed one after the other until the *expected* number of frames of that
    process is masked; the last one is cut short. So all examples of one length have the same
    number, it needs no rounding at random, and an example's mask depends on its key and its length
    alone: neither on its neighbours in the batch nor on padding.

    Args:
        keys: one an example.
        length: true frames; none after them is masked.
        size: frames of the padded batch.
        config: spans.
    """
    table = _masked_counts(size, config)
    count = jnp.asarray(table)[length]
    starts = jnp.maximum(length - config.span + 1, 1)

    # The order in which starts are drawn is that of random numbers at each place; a frame is
    # masked when the first of the spans that cover it is.
    order = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys)
    order = jnp.where(jnp.arange(size) < starts[:, None], order, jnp.inf)
    arrival = jax.lax.reduce_window(
        order, jnp.inf, jax.lax.min, (1, config.span), (1, 1), ((0, 0), (config.span - 1, 0))
    )
    rank = jnp.argsort(jnp.argsort(arrival, stable=True))  # frames of one span in order of time
    mask = rank < count[:, None]

    capacity = int(table.max())
    index = jnp.argsort(~mask, stable=True)[:, :capacity]
    valid = jnp.arange(capacity) < count[:, None]
    return MaskedFrames(mask, jnp.where(valid, index, 0), valid)


def sample_negatives(keys: Keys, valid: Bool[Array, "b m"], n: int) -> Int[Array, "b m {n}"]:
    """For each masked frame, n of the other masked frames of its utterance, with replacement.

    Args:
        keys: one an example.
        valid: which entries of the list of masked frames hold one; they come first.
        n: negatives of each.

    Returns:
        places in the list, uniform over the valid ones, never the frame itself; 0 where the list
        holds none.
    """
    size = valid.shape[1]
    others = valid.sum(1)[:, None, None] - 1
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (size, n)))(keys)
    place = jnp.minimum((uniform * others).astype(jnp.int32), others - 1)
    place += place >= jnp.arange(size)[:, None]  # step over itself
    return jnp.where(valid[..., None], place, 0)


@functools.cache
def _masked_counts(size: int, config: MaskingConfig) -> np.ndarray:
    """For each length up to `size`, the expected number of frames under spans; i32[size + 1].

    At least two or none: a lone masked frame has no negatives.
    """
    counts = np.zeros(size + 1, np.int32)
    for length in range(FEWEST_FRAMES, size + 1):
        places = max(length - config.span + 1, 1)
        spans = min(max(config.start_probability * length, config.min_spans), places)
        frame = np.arange(length)
        covering = np.minimum(frame, places - 1) - np.maximum(frame - config.span + 1, 0) + 1
        free = np.maximum(places - covering, 0)
        # Free if all spans start at other places: C(free, spans) / C(places, spans).
        with np.errstate(invalid="ignore"):
            log_p = (
                gammaln(free + 1)
                - gammaln(np.maximum(free - spans, 0) + 1)
                - gammaln(places + 1)
                + gammaln(places - spans + 1)
            )
        expected = (1 - np.where(free < spans, 0.0, np.exp(log_p))).sum()
        counts[length] = np.clip(round(expected), 2, length - 1)
    counts.setflags(write=False)
    return counts
