"""Cutting recordings: where a crop starts, and what it holds."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Shaped


@dataclasses.dataclass(frozen=True)
class Take:
    """A stretch of a recording that a crop may be taken from.

    Attributes:
        record: index in the corpus.
        low: first sample.
        high: last sample + 1.
    """

    record: int
    low: int
    high: int


def stream_seed(seed: int, name: str, bits: int = 31) -> int:
    """The seed of a named random stream: no two names share one, nor do two seeds."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - bits)


def generator(seed: int, name: str, number: int) -> np.random.Generator:
    """Random numbers that are a function of the run's seed, what they are for, and a number.

    >>> draws = {
    ...     generator(0, name, n).integers(10**9) for name in ("order", "crop") for n in (0, 1)
    ... }
    >>> len(draws)
    4

    Args:
        seed: of the run.
        name: of the stream: what is drawn.
        number: which draw of the stream this is: of an example, an epoch.
    """
    key = np.array([stream_seed(seed, name, bits=64), number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def crop_start(rng: np.random.Generator, take: Take, size: int, hop_length: int) -> int:
    """A random first sample for a crop of `size` in a stretch, `take.low` when it is shorter.

    Crops start on frames, so that what is known by frame (F0) is cut in step.

    >>> crop_start(generator(0, "crop", 0), Take(0, 640, 1000), 2000, 320)
    640
    """
    spare = max(0, take.high - take.low - size) // hop_length
    return take.low + hop_length * int(rng.integers(spare + 1))


def elsewhere(
    rng: np.random.Generator, n_samples: int, start: int, size: int, hop_length: int
) -> int:
    """Where a second crop of a recording starts, [start, start + size) being taken.

    Anywhere without overlap if there is room, else at the end that is farther from `start`.

    >>> elsewhere(generator(0, "crop", 0), 5000, 0, 3000, 1000)
    2000
    """
    last = max(0, n_samples - size) // hop_length
    free = [i for i in range(last + 1) if abs(i * hop_length - start) >= size]
    if free:
        return hop_length * free[int(rng.integers(len(free)))]
    return 0 if start > last * hop_length - start else last * hop_length


def pad_to(
    array: Shaped[np.ndarray, " n"], size: int, value: int = 0
) -> Shaped[np.ndarray, " {size}"]:
    """Cuts off, or fills up with `value`.

    >>> pad_to(np.array([1, 2, 3]), 5).tolist(), pad_to(np.array([1, 2, 3]), 2).tolist()
    ([1, 2, 3, 0, 0], [1, 2])
    """
    return np.pad(array[:size], (0, max(0, size - len(array))), constant_values=value)
