"""Pieces cover a recording and join without a seam."""

import numpy as np
import pytest

from jaxclone.synthesis.chunks import overlap_add, windows


@pytest.mark.parametrize("length", [1, 5, 6, 7, 10, 11, 37, 100])
def test_joining_the_pieces_of_a_signal_gives_the_signal(length):
    signal = np.random.default_rng(0).normal(size=(length, 2)).astype(np.float32)
    pieces = [signal[a:b] for a, b in windows(length, 6, 2)]
    joined = overlap_add(pieces, length, 6, 2)
    np.testing.assert_allclose(joined, signal, atol=1e-6)


def test_a_step_between_pieces_is_faded():
    pieces = [np.zeros((60, 1), np.float32), np.ones((60, 1), np.float32)]
    joined = overlap_add(pieces, 100, 60, 20)
    assert np.abs(np.diff(joined[:, 0])).max() < 0.06
