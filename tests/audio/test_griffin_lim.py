"""Waveforms from spectrograms alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxclone.audio import spectral
from jaxclone.audio.griffin_lim import griffin_lim, griffin_lim_of
from jaxclone.audio.spec import AudioSpec, hifigan_22k, jaxclone_16k

SPECS = [
    jaxclone_16k(),
    hifigan_22k(),
    AudioSpec(n_fft=512, hop_length=128, win_length=512, log="log10"),
]


def voice(rate: int, hz: float) -> np.ndarray:
    t = np.arange(rate) / rate
    phase = 2 * np.pi * (hz * t + 20 * t**2)
    noise = np.random.default_rng(0).standard_normal(rate)
    return (0.1 * sum(np.cos(k * phase) / k for k in range(1, 20)) + 1e-3 * noise).astype("f4")


@pytest.mark.parametrize("spec", SPECS, ids=["16k", "22k", "log10"])
def test_log_mel_comes_back(spec: AudioSpec):
    x = np.stack([voice(spec.sample_rate, hz) for hz in (110, 190)])
    mel = spectral.log_mel(x, spec)
    y = griffin_lim(mel, spec, jax.random.key(0))
    assert y.shape == (2, mel.shape[1] * spec.hop_length)
    unit = np.log(10) if spec.log == "log10" else 1.0
    error = np.abs(spectral.log_mel(y, spec) - mel)[:, 2:-2].mean() * unit
    assert error < 0.35


def test_more_iterations_are_better():
    spec = jaxclone_16k()
    truth = spectral.magnitude(voice(16_000, 140), spec)

    def error(iterations: int) -> float:
        y = griffin_lim_of(truth, spec, jax.random.key(0), iterations)
        return float(np.linalg.norm(spectral.magnitude(y, spec) - truth))

    few, more, many = error(0), error(4), error(32)
    assert many < 0.8 * more < 0.8 * few


def test_key_decides():
    spec = jaxclone_16k()
    mel = spectral.log_mel(voice(16_000, 140), spec)
    first, again, other = (griffin_lim(mel, spec, jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_silence_stays_silent():
    spec = jaxclone_16k()
    y = griffin_lim(spectral.log_mel(np.zeros(16_000, np.float32), spec), spec, jax.random.key(0))
    assert np.abs(y).max() < 1e-3


def test_padding_changes_nothing():
    spec = jaxclone_16k()
    frames = (50, 21, 4)
    mels = [
        spectral.log_mel(voice(16_000, hz)[: n * 320], spec)
        for hz, n in zip((110, 140, 190), frames)
    ]
    batch = np.full((3, 50, 80), 1.0, np.float32)
    for row, mel in zip(batch, mels):
        row[: len(mel)] = mel
    key = jax.random.key(0)
    # Momentum blows up what rounding makes of it, so that only a few steps can be compared.
    together = griffin_lim(batch, spec, key, 8, length=np.array(frames))
    for got, mel, n in zip(together, mels, frames):
        np.testing.assert_allclose(got[: n * 320], griffin_lim(mel, spec, key, 8), atol=1e-4)
        assert not got[n * 320 :].any()
