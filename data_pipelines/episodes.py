"""Support and query sets of one speaker, for meta-learning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.transforms import Take


def draw_episode(
    rng: np.random.Generator,
    recordings: Sequence[Take],
    support: int,
    query: int,
    hop_length: int,
) -> tuple[list[Take], list[Take]]:
    """Where the support and the query crops of one speaker come from.

    With two recordings or more, none serves both sets; within a set, one serves twice only when
    there are fewer than crops. A single recording is cut in two, on a frame.

    Args:
        rng: random numbers of this episode.
        recordings: the speaker's, whole; at least one.
        support: crops to adapt on.
        query: crops to measure on.
        hop_length: samples of a frame.
    """
    if len(recordings) == 1:
        (take,) = recordings
        middle = take.high * support // (support + query) // hop_length * hop_length
        ours = [Take(take.record, 0, middle)]
        theirs = [Take(take.record, middle, take.high)]
    else:
        shuffled = [recordings[i] for i in rng.permutation(len(recordings))]
        share = round(len(recordings) * support / (support + query))
        share = min(max(share, 1), len(recordings) - 1)
        ours, theirs = shuffled[:share], shuffled[share:]
    return _repeat(ours, support), _repeat(theirs, query)


def _repeat(takes: Sequence[Take], count: int) -> list[Take]:
    """The first `count` of the takes over and over."""
    return [takes[i % len(takes)] for i in range(count)]
