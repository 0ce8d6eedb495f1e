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
    assert f0.shape == (40,) and f0.dtype == np.float32
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
    assert np.mean(pitch.f0(noise, spec) > 0) < 0.2
    assert pitch.f0(np.ones(10, np.float32), spec).shape == (0,)
    assert pitch.f0(np.ones(400, np.float32), spec).shape == (1,)


@pytest.mark.parametrize("speaker", ["F", "M"])
def test_agrees_with_pyin_on_speech(speaker: str):
    if not (SPEECH / "manifest.tsv").exists():
        pytest.skip("the real recordings are not here")
    with (SPEECH / "manifest.tsv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["corpus"] == "cmu_arctic"]
    path = next(row["path"] for row in rows if row["gender"] == speaker)
    spec = jaxclone_16k()
    x = io.read(SPEECH / path, spec.sample_rate)
    ours = pitch.f0(x, spec)
    # Frames of pyin are centred on multiples of the hop: half a hop in front makes them ours.
    theirs, voiced, _ = librosa.pyin(
        np.pad(x, (spec.hop_length // 2, spec.hop_length)),
        fmin=60,
        fmax=500,
        sr=spec.sample_rate,
        hop_length=spec.hop_length,
    )
    theirs, voiced = theirs[1 : len(ours) + 1], voiced[1 : len(ours) + 1]
    both = voiced & (ours > 0)
    assert both.sum() > 30
    assert np.median(np.abs(ours[both] / theirs[both] - 1)) < 0.01
    assert np.mean(voiced == (ours > 0)) > 0.8


def test_stats():
    f0 = np.array([0, 100, 200, 0, 400], np.float32)
    mean, std = pitch.log_f0_stats(f0)
    assert np.exp(mean) == pytest.approx(200)
    assert std == pytest.approx(np.std(np.log([100, 200, 400])))
    assert pitch.log_f0_stats(np.zeros(9, np.float32)) == (0.0, 1.0)
    assert pitch.log_f0_stats(np.zeros(0, np.float32)) == (0.0, 1.0)
    assert pitch.log_f0_stats(np.full(3, 150, np.float32))[1] == 1e-3
