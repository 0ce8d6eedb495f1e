"""Griffin-Lim and the inverse of the mel filterbank against librosa's."""

from __future__ import annotations

import csv
from pathlib import Path

import jax
import librosa
import numpy as np
import pytest

from jaxclone.audio import griffin_lim as module
from jaxclone.audio import io, spectral
from jaxclone.audio.griffin_lim import griffin_lim_of
from jaxclone.audio.spec import AudioSpec, hifigan_22k, jaxclone_16k

SPEECH = Path(__file__).parents[3] / "shared" / "data" / "speech"
CORPORA = ("ljspeech", "vctk", "librispeech")
SPECS = {"16k": jaxclone_16k(), "22k": hifigan_22k()}


def recording(rate: int) -> np.ndarray:
    """A second of real speech where there is some, of a gliding voice elsewhere."""
    if (SPEECH / "manifest.tsv").exists():
        with (SPEECH / "manifest.tsv").open(encoding="utf-8") as file:
            rows = csv.DictReader(file, delimiter="\t")
            path = next(row["path"] for row in rows if row["corpus"] == "ljspeech")
        return io.read(SPEECH / path, rate)[: 2 * rate]
    t = np.arange(2 * rate) / rate
    phase = 2 * np.pi * (130 * t + 20 * np.sin(2 * np.pi * t))
    voice = sum(np.cos(k * phase) / k for k in range(1, 25)) * (np.sin(6 * np.pi * t) > -0.5)
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.1 * voice + 1e-3 * noise).astype(np.float32)


def recordings(rate: int) -> list[np.ndarray]:
    """A second each of three real voices where there are some."""
    if not (SPEECH / "manifest.tsv").exists():
        return []
    with (SPEECH / "manifest.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    paths = [next(row["path"] for row in rows if row["corpus"] == name) for name in CORPORA]
    return [io.read(SPEECH / path, rate)[rate // 2 : rate // 2 + rate] for path in paths]


def voice(rate: int, pitch: float, breath: float) -> np.ndarray:
    """A second of gliding harmonics in syllables, with breath."""
    t = np.arange(rate) / rate
    phase = 2 * np.pi * (pitch * t + 20 * np.sin(2 * np.pi * t))
    tones = sum(np.cos(k * phase) / k for k in range(1, 25)) * (np.sin(6 * np.pi * t) > -0.5)
    noise = np.random.default_rng(0).standard_normal(rate)
    return (0.1 * tones + breath * noise).astype(np.float32)


def signals(rate: int) -> np.ndarray:
    """Real voices and made-up ones: f32[n, rate]."""
    made = [voice(rate, pitch, breath) for pitch, breath in ((110, 1e-3), (210, 0.02))]
    return np.stack([*recordings(rate), *made])


def convergence(waveform: np.ndarray, truth: np.ndarray, spec: AudioSpec) -> float:
    """Spectral convergence in dB, away from the edges, which librosa does not reflect."""
    made = np.asarray(spectral.magnitude(waveform, spec))[8:-8]
    truth = truth[8:-8]
    return float(20 * np.log10(np.linalg.norm(made - truth) / np.linalg.norm(truth)))


@pytest.mark.parametrize("spec", [jaxclone_16k(), hifigan_22k()], ids=["16k", "22k"])
@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_converges_no_worse_than_librosa(spec: AudioSpec, momentum: float):
    truth = np.asarray(spectral.magnitude(recording(spec.sample_rate), spec))
    ours = griffin_lim_of(truth, spec, jax.random.key(0), iterations=32, momentum=momentum)
    theirs = librosa.griffinlim(
        truth.T,
        n_iter=32,
        hop_length=spec.hop_length,
        n_fft=spec.n_fft,
        center=False,
        momentum=momentum,
        random_state=0,
    )
    pad = (spec.n_fft - spec.hop_length) // 2
    theirs = theirs[pad : pad + ours.shape[-1]]
    # Two random starts differ by some tenths of a decibel.
    assert convergence(ours, truth, spec) < convergence(theirs, truth, spec) + 0.3
    assert convergence(ours, truth, spec) < -13


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_inverse_of_the_filterbank_is_nearer_than_librosas(spec: AudioSpec):
    filters = spectral.mel_filterbank(spec)
    truth = np.asarray(spectral.magnitude(signals(spec.sample_rate), spec))
    mel = np.maximum(truth @ filters.T, spec.floor)
    ours = np.asarray(spectral.mel_to_magnitude(np.log(mel), spec))
    theirs = [
        librosa.feature.inverse.mel_to_stft(
            one.T,
            sr=spec.sample_rate,
            n_fft=spec.n_fft,
            power=1.0,
            fmin=spec.fmin,
            fmax=spec.fmax,
        ).T
        for one in mel
    ]
    assert (ours >= 0).all()
    for found, other, magnitude, target in zip(ours, theirs, truth, mel):
        error, their_error = (
            np.linalg.norm(x @ filters.T - target) / np.linalg.norm(target) for x in (found, other)
        )
        assert error < min(1e-3, their_error)
        assert np.linalg.norm(found - magnitude) < np.linalg.norm(other - magnitude)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_from_the_same_phases_it_gets_as_far_as_librosa(
    spec: AudioSpec, momentum: float, monkeypatch
):
    # Random starts lie decibels apart, so both begin with what librosa draws.
    pad = (spec.n_fft - spec.hop_length) // 2
    differences = []
    for magnitude in np.asarray(spectral.magnitude(signals(spec.sample_rate), spec)):
        drawn = np.random.RandomState(0).random(size=magnitude.T.shape).T
        start = (2 * np.pi * drawn).astype(np.float32)
        monkeypatch.setattr(module, "_first_phases", lambda *_, start=start: start)
        ours = griffin_lim_of(magnitude, spec, jax.random.key(0), iterations=32, momentum=momentum)
        theirs = librosa.griffinlim(
            magnitude.T,
            n_iter=32,
            hop_length=spec.hop_length,
            n_fft=spec.n_fft,
            center=False,
            momentum=momentum,
            random_state=0,
        )[pad : pad + len(ours)]
        reached = (convergence(np.asarray(x), magnitude, spec) for x in (ours, theirs))
        differences.append(np.subtract(*reached))
    # They part at the edges, which librosa does not reflect.
    assert np.mean(differences) < 0.2
    assert max(differences) < 0.8
