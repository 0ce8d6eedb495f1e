"""MFCC: padding, frames, short input, gradients of nothing."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxclone.audio.mfcc import MfccConfig, mfcc
from jaxclone.types import UserError

CONFIG = MfccConfig()


def test_padding_changes_nothing(speech):
    lengths = np.array([16_000, 9_123, 400, 399])
    batch = np.zeros((4, 16_000), np.float32)
    for row, length in zip(batch, lengths):
        row[:length] = speech[:length]
    padded = jax.jit(mfcc, static_argnums=1)(batch, CONFIG, lengths)
    assert padded.shape == (4, 98, 39)
    frames = np.asarray(CONFIG.frame_length(lengths)).tolist()
    assert frames == [98, 55, 1, 0]
    for row, length, n in zip(padded, lengths, frames):
        if n:
            alone = mfcc(speech[:length], CONFIG)
            assert alone.shape == (n, 39)
            np.testing.assert_allclose(row[:n], alone, atol=1e-3)


def test_a_frame_sees_its_samples_alone(speech):
    changed = speech.copy()
    changed[3200] += 0.5  # frames 18 to 20: [2880, 3280), [3040, 3440), [3200, 3600)
    difference = np.abs(mfcc(changed, CONFIG) - mfcc(speech, CONFIG)).max(-1)
    touched = np.flatnonzero(np.abs(mfcc(changed, CONFIG) - mfcc(speech, CONFIG))[:, :13].max(-1))
    assert touched.tolist() == [18, 19, 20]
    assert np.flatnonzero(difference).tolist() == list(range(14, 25))  # deltas of deltas: 4 more


def test_silence_is_finite():
    assert np.isfinite(mfcc(np.zeros(800, np.float32), CONFIG)).all()


def test_too_short():
    with pytest.raises(UserError, match="399 samples are too short for MFCC: 400 are needed"):
        mfcc(np.zeros(399, np.float32), CONFIG)
