"""MFCC against Kaldi's convention as others have written it: transformers, scipy and librosa."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import scipy.fft

from jaxclone.audio.mfcc import MfccConfig, mfcc

audio_utils = pytest.importorskip("transformers.audio_utils")


def reference(waveform: np.ndarray) -> np.ndarray:
    """Filters and spectrogram by transformers, cosines by scipy, derivatives by librosa."""
    filters = audio_utils.mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=23,
        min_frequency=20,
        max_frequency=8000,
        sampling_rate=16_000,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    mel = audio_utils.spectrogram(
        waveform.astype(np.float64),
        audio_utils.window_function(400, "povey", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=1.1920928955078125e-07,
        remove_dc_offset=True,
    )
    cepstra = scipy.fft.dct(mel, axis=0, norm="ortho")[:13]
    cepstra *= (1 + 11 * np.sin(np.pi * np.arange(13) / 22))[:, None]
    first = librosa.feature.delta(cepstra, width=5, mode="nearest")
    second = librosa.feature.delta(first, width=5, mode="nearest")
    return np.concatenate([cepstra, first, second]).T


@pytest.mark.parametrize("samples", [32_000, 16_123, 1_200])
def test_cepstra_and_derivatives(speech, samples):
    want = reference(speech[:samples])
    got = mfcc(speech[:samples], MfccConfig())
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=5e-3, rtol=1e-4)
    assert np.abs(want).max() > 10
