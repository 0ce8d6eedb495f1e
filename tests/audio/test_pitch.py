"""F0: right, aligned to the frames of the spec, and of their number."""

from __future__ import annotations

import csv
from pathlib import Path

import librosa
import numpy as np
import pytest

from jaxclone.audio import io, pitch
from jaxclone.audio.spec import AudioSpec, hifigan_22k, jaxclone_16k

SPEECH = Path(__file__).parents[3] / "shared" / "data" / "speech"


def harmonics(frequency: np.ndarray, rate: int) -> np.ndarray:
    """A pulse-like tone whose instantaneous frequency is given for each sample."""
    phase = 2 * np.pi * np.cumsum(frequency) / rate
    return (0.05 * sum(np.sin(k * phase) for k in range(1, 12))).astype(np.float32)


@pytest.mark.parametrize("spec", [jaxclone_16k(), hifigan_22k()], ids=["16k", "22k"])
@pytest.mark.parametrize("extra", [0, 1, 150, 255])
def test_one_value_a_frame(spec: AudioSpec, extra: int):
    t = 40 * spec.hop_length + extra
    f0 = pitch.f0(harmonics(np.full(t, 150.0), spec.sample_rate), spec)
    assert f0.shape == (40,)
    assert f0.dtype == np.float32
    assert np.median(f0) == pytest.approx(150, rel=1e-3)


@pytest.mark.parametrize("spec", [jaxclone_16k(), hifigan_22k()], ids=["16k", "22k"])
@pytest.mark.parametrize("slope", [120.0, -120.0])
def test_chirp_is_aligned_to_the_centres_of_frames(spec: AudioSpec, slope: float):
    rate, hop = spec.sample_rate, spec.hop_length
    t = np.arange(2 * rate) / rate
    f0 = pitch.f0(harmonics(220 + slope * (t - 1), rate), spec)
    centre = (np.arange(len(f0)) + 0.5) * hop / rate
    inner = slice(10, -10)
    assert (f0[inner] > 0).all()
    # An error of time shows as an error of frequency: slope Hz for each second.
    late = (f0 - (220 + slope * (centre - 1)))[inner] / slope
    assert abs(np.median(late)) < 0.1 * hop / rate


def test_onset_of_voicing_is_aligned():
    spec = jaxclone_16k()
    x = harmonics(np.full(2 * 16_000, 180.0), 16_000)
    x[:16_000] = 1e-4 * np.random.default_rng(0).standard_normal(16_000)
    f0 = pitch.f0(x, spec)
    assert abs(int(np.argmax(f0 > 0)) - 50) <= 2


def test_noise_and_silence_are_unvoiced():
    spec = jaxclone_16k()
    assert not pitch.f0(np.zeros(16_000, np.float32), spec).any()
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    assert np.mean(pitch.f0(noise, spec) > 0) < 0.05
    assert pitch.f0(np.ones(10, np.float32), spec).shape == (0,)
    assert pitch.f0(np.ones(400, np.float32), spec).shape == (1,)


@pytest.mark.parametrize("corpus", ["cmu_arctic", "ljspeech"])
def test_agrees_with_pyin_on_speech(corpus: str):
    if not (SPEECH / "manifest.tsv").exists():
        pytest.skip("the real recordings are not here")
    with (SPEECH / "manifest.tsv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["corpus"] == corpus]
    spec = jaxclone_16k()
    x = io.read(SPEECH / rows[0]["path"], spec.sample_rate)[:64_000]
    ours = pitch.f0(x, spec)
    # Frames of pyin are centred on multiples of the hop: half a hop in front makes them ours. Its
    # usual 2048 samples are too long for F0 that moves.
    theirs, voiced, _ = librosa.pyin(
        np.pad(x, (spec.hop_length // 2, spec.hop_length)),
        fmin=60,
        fmax=500,
        sr=spec.sample_rate,
        frame_length=1024,
        hop_length=spec.hop_length,
    )
    theirs, voiced = theirs[1 : len(ours) + 1], voiced[1 : len(ours) + 1]
    both = voiced & (ours > 0)
    error = np.abs(ours[both] / theirs[both] - 1)
    assert both.sum() > 30
    assert np.median(error) < 0.01
    assert np.mean(error > 0.2) < 0.05
    assert np.mean(voiced == (ours > 0)) > 0.75


def test_noise_and_hum_do_not_unvoice():
    spec = jaxclone_16k()
    t = np.arange(32_000) / 16_000
    x = harmonics(np.full(32_000, 130.0), 16_000)
    rng = np.random.default_rng(0)
    hum = 0.02 * np.sin(2 * np.pi * 50 * t) + 0.02 * rng.standard_normal(32_000)
    f0 = pitch.f0((x + hum).astype(np.float32), spec)
    assert np.mean(np.abs(f0 / 130 - 1) < 0.02) > 0.95


def test_long_recordings_are_read_in_pieces():
    spec = AudioSpec(sample_rate=8_000, n_fft=256, hop_length=80, win_length=256)
    t = np.arange(8 * 8_000) / 8_000
    f0 = pitch.f0(harmonics(120 + 80 * t / 8, 8_000), spec)
    centre = (np.arange(len(f0)) + 0.5) * 0.01
    assert len(f0) == 800
    np.testing.assert_allclose(f0[3:-3], (120 + 10 * centre)[3:-3], rtol=2e-3)


@pytest.mark.parametrize("hz", [70, 97.3, 231.7, 480.1])
def test_accuracy(hz: float):
    f0 = pitch.f0(harmonics(np.full(16_000, hz), 16_000), jaxclone_16k())
    np.testing.assert_allclose(f0[3:-3], hz, rtol=1e-3)


def test_stats():
    f0 = np.array([0, 100, 200, 0, 400], np.float32)
    mean, std = pitch.log_f0_stats(f0)
    assert np.exp(mean) == pytest.approx(200)
    assert std == pytest.approx(np.std(np.log([100, 200, 400])))
    assert pitch.log_f0_stats(np.zeros(9, np.float32)) == (0.0, 1.0)
    assert pitch.log_f0_stats(np.zeros(0, np.float32)) == (0.0, 1.0)
    assert pitch.log_f0_stats(np.full(3, 150, np.float32))[1] == 1e-3
