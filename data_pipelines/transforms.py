"""Cutting recordings: where a crop starts, and what it holds."""

from __future__ import annotations

import dataclasses

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


def generator(seed: int, number: int) -> np.random.Generator:
    """The random numbers of one example: a function of the run's seed and the example's number."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))


def crop_start(rng: np.random.Generator, take: Take, size: int, hop_length: int) -> int:
    """A random first sample for a crop of `size` in a stretch, `take.low` when it is shorter.

    Crops start on frames, so that what is known by frame (F0) is cut in step.

    >>> crop_start(generator(0, 0), Take(0, 640, 1000), 2000, 320)
    640
    """
    spare = max(0, take.high - take.low - size) // hop_length
    return take.low + hop_length * int(rng.integers(spare + 1))


def elsewhere(
    rng: np.random.Generator, n_samples: int, start: int, size: int, hop_length: int
) -> int:
    """Where a second crop of a recording starts, [start, start + size) being taken.

    Anywhere without overlap if there is room, else at the end that is farther from `start`.

    >>> elsewhere(generator(0, 0), 5000, 0, 3000, 1000)
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
