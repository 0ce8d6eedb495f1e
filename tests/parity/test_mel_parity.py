"""The mel against librosa and against the published HiFi-GAN definition written in torch."""

from __future__ import annotations

import csv
from pathlib import Path

import jax
import librosa
import numpy as np
import pytest

from jaxclone.audio import io, spectral
from jaxclone.audio.spec import AudioSpec, hifigan_22k, jaxclone_16k

SPEECH = Path(__file__).parents[3] / "shared" / "data" / "speech"
SPECS = {"hifigan_22k": hifigan_22k(), "jaxclone_16k": jaxclone_16k()}


def synthetic(kind: str, rate: int) -> np.ndarray:
    """Each with a noise floor: 80 dB below a pure tone, f32 leaves nothing but its own rounding."""
    t = np.arange(int(1.3 * rate)) / rate
    noise = np.random.default_rng(1).standard_normal(len(t))
    if kind == "noise":
        x = 0.1 * noise
    elif kind == "chirp":
        x = 0.2 * np.sin(2 * np.pi * (80 * t + 1500 * t**2)) + 2e-3 * noise
    else:
        tones = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 30))
        x = 0.1 * tones * (np.sin(2 * np.pi * 3 * t) > 0) + 1e-3 * noise
    return x.astype(np.float32)


def real(corpus: str, rate: int) -> np.ndarray:
    if not (SPEECH / "manifest.tsv").exists():
        pytest.skip("the real recordings are not here")
    with (SPEECH / "manifest.tsv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        path = next(row["path"] for row in rows if row["corpus"] == corpus)
    return io.read(SPEECH / path, rate)[: 4 * rate]


def by_librosa(x: np.ndarray, spec: AudioSpec) -> np.ndarray:
    padded = np.pad(x, (spec.n_fft - spec.hop_length) // 2, mode="reflect")
    spectrum = librosa.stft(
        padded,
        n_fft=spec.n_fft,
        hop_length=spec.hop_length,
        win_length=spec.win_length,
        center=False,
    )
    mel = librosa.feature.melspectrogram(
        S=np.abs(spectrum),
        sr=spec.sample_rate,
        n_fft=spec.n_fft,
        power=1.0,
        n_mels=spec.n_mels,
        fmin=spec.fmin,
        fmax=spec.fmax,
    )
    return np.log(np.maximum(mel, spec.floor)).T


def by_torch(x: np.ndarray, spec: AudioSpec) -> np.ndarray:
    """The mel of the HiFi-GAN authors (jik876/hifi-gan meldataset.py), at double precision."""
    torch = pytest.importorskip("torch")
    filters = librosa.filters.mel(
        sr=spec.sample_rate, n_fft=spec.n_fft, n_mels=spec.n_mels, fmin=spec.fmin, fmax=spec.fmax
    )
    side = (spec.n_fft - spec.hop_length) // 2
    signal = torch.nn.functional.pad(
        torch.from_numpy(x).double()[None, None], (side, side), mode="reflect"
    )
    spectrum = torch.stft(
        signal[0],
        spec.n_fft,
        hop_length=spec.hop_length,
        win_length=spec.win_length,
        window=torch.hann_window(spec.win_length, dtype=torch.float64),
        center=False,
        onesided=True,
        return_complex=True,
    )
    power = torch.view_as_real(spectrum).pow(2).sum(-1)
    mel = torch.from_numpy(filters).double() @ torch.sqrt(power + 1e-9)
    return torch.log(torch.clamp(mel, min=1e-5))[0].numpy().T


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("signal", ["noise", "chirp", "harmonics", "librispeech", "emodb", "vctk"])
def test_log_mel_equals_librosa_and_hifigan(signal: str, name: str, jitted: bool):
    spec = SPECS[name]
    kinds = ("noise", "chirp", "harmonics")
    x = synthetic(signal, spec.sample_rate) if signal in kinds else real(signal, spec.sample_rate)
    function = jax.jit(spectral.log_mel, static_argnums=1) if jitted else spectral.log_mel
    ours = np.asarray(function(x, spec))

    theirs = by_torch(x, spec)
    assert ours.shape == theirs.shape == (len(x) // spec.hop_length, spec.n_mels)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)

    # librosa has no 1e-9 under the square root: in bins of digital silence that is the mel itself,
    # so the two are compared as magnitudes there, as logarithms everywhere else.
    reference = by_librosa(x, spec)
    np.testing.assert_allclose(np.exp(ours), np.exp(reference), atol=1e-4)
    loud = reference > np.log(0.1)
    assert loud.any()
    np.testing.assert_allclose(ours[loud], reference[loud], atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_stft_equals_librosa(name: str):
    spec = SPECS[name]
    x = synthetic("harmonics", spec.sample_rate)
    padded = np.pad(x, (spec.n_fft - spec.hop_length) // 2, mode="reflect")
    theirs = librosa.stft(padded, n_fft=spec.n_fft, hop_length=spec.hop_length, center=False).T
    np.testing.assert_allclose(spectral.stft(x, spec), theirs, atol=1e-4)
