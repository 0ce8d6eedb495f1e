"""Long recordings in pieces of one size, joined without a seam."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float


def windows(length: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of pieces that cover `length`, each sharing `overlap` with the one before.

    >>> list(windows(10, 6, 2)), list(windows(5, 6, 2))
    ([(0, 6), (4, 10)], [(0, 5)])
    """
    start = 0
    while True:
        yield start, min(start + size, length)
        if start + size >= length:
            return
        start += size - overlap


def overlap_add(
    pieces: Sequence[Float[np.ndarray, "_ m"]], length: int, size: int, overlap: int
) -> Float[np.ndarray, "length m"]:
    """Joins the pieces of `windows`, fading linearly from one to the next where they overlap."""
    result = np.zeros((length, pieces[0].shape[1]), np.float32)
    weight = np.zeros((length, 1), np.float32)
    for (start, stop), piece in zip(windows(length, size, overlap), pieces, strict=True):
        fade = np.ones((stop - start, 1), np.float32)
        ramp = ((np.arange(overlap) + 0.5) / overlap)[:, None].astype(np.float32)
        if start > 0:
            n = min(overlap, len(fade))
            fade[:n] *= ramp[:n]
        if stop < length:
            fade[-overlap:] *= ramp[::-1]
        result[start:stop] += fade * piece
        weight[start:stop] += fade
    return result / weight
