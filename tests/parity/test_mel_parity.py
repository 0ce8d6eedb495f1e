"""The mel against librosa and against the published HiFi-GAN definition written in torch."""

from __future__ import annotations

import csv
from pathlib import Path

import jax
import librosa
import numpy as np
import pytest

from jaxclone.audio import io, spectral
from jaxclone.audio.spec import (
    AudioSpec,
    hifigan_22k,
    jaxclone_16k,
    jaxclone_24k,
    melgan_22k,
)

SPEECH = Path(__file__).parents[3] / "shared" / "data" / "speech"
SPECS = {
    "hifigan_22k": hifigan_22k(),
    "melgan_22k": melgan_22k(),
    "jaxclone_16k": jaxclone_16k(),
    "jaxclone_24k": jaxclone_24k(),
}


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
    return in_base(np.maximum(mel, spec.floor), spec).T


def in_base(mel: np.ndarray, spec: AudioSpec) -> np.ndarray:
    return np.log(mel) if spec.log == "ln" else np.log10(mel)


def by_torch(x: np.ndarray, spec: AudioSpec, precision: str = "float64") -> np.ndarray:
    """The published mels: HiFi-GAN's (jik876/hifi-gan `meldataset.py`), and MelGAN's
    (descriptinc/melgan-neurips `Audio2Mel`), which adds nothing to the power.
    """
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, precision)
    filters = librosa.filters.mel(
        sr=spec.sample_rate, n_fft=spec.n_fft, n_mels=spec.n_mels, fmin=spec.fmin, fmax=spec.fmax
    )
    side = (spec.n_fft - spec.hop_length) // 2
    signal = torch.nn.functional.pad(
        torch.from_numpy(x).to(dtype)[None, None], (side, side), mode="reflect"
    )
    spectrum = torch.stft(
        signal[0],
        spec.n_fft,
        hop_length=spec.hop_length,
        win_length=spec.win_length,
        window=torch.hann_window(spec.win_length, dtype=dtype),
        center=False,
        onesided=True,
        return_complex=True,
    )
    power = torch.view_as_real(spectrum).pow(2).sum(-1)
    melgan = spec == melgan_22k()
    mel = torch.from_numpy(filters).to(dtype) @ torch.sqrt(power + (0 if melgan else 1e-9))
    mel = torch.clamp(mel, min=1e-5)
    return (torch.log10(mel) if melgan else torch.log(mel))[0].numpy().T


def assert_published(ours: np.ndarray, x: np.ndarray, spec: AudioSpec) -> None:
    """Within 1e-4 of the exact mel. Next to the floor of a loud frame single precision does not
    reach that, neither ours nor that of the published function: few bins, and close to its error.
    """
    exact = by_torch(x, spec)
    assert ours.shape == exact.shape == (len(x) // spec.hop_length, spec.n_mels)
    error = np.abs(ours - exact)
    theirs = np.abs(by_torch(x, spec, "float32") - exact)
    assert np.quantile(error, 0.997) <= 1e-4
    assert error.max() <= max(1e-4, 4 * theirs.max())


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("signal", ["noise", "chirp", "harmonics", "librispeech", "emodb", "vctk"])
def test_log_mel_equals_librosa_and_hifigan(signal: str, name: str, jitted: bool):
    spec = SPECS[name]
    kinds = ("noise", "chirp", "harmonics")
    x = synthetic(signal, spec.sample_rate) if signal in kinds else real(signal, spec.sample_rate)
    function = jax.jit(spectral.log_mel, static_argnums=1) if jitted else spectral.log_mel
    ours = np.asarray(function(x, spec))

    assert_published(ours, x, spec)

    # librosa has no 1e-9 under the square root: in bins of digital silence that is the mel itself,
    # so the two are compared as magnitudes there, as logarithms everywhere else.
    reference = by_librosa(x, spec)
    base = np.e if spec.log == "ln" else 10.0
    np.testing.assert_allclose(base**ours, base**reference, atol=1e-4)
    loud = base**reference > 0.1
    assert loud.any()
    np.testing.assert_allclose(ours[loud], reference[loud], atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_twenty_real_clips_have_the_published_mel(name: str, recordings: Path):
    spec = SPECS[name]
    with (recordings / "manifest.tsv").open(encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file, delimiter="\t")]
    paths = paths[:: len(paths) // 20][:20]
    assert len(paths) == 20
    function = jax.jit(spectral.log_mel, static_argnums=1)
    for path in paths:
        x = np.zeros(2 * spec.sample_rate, np.float32)  # of one length: one program
        clip = io.read(recordings / path, spec.sample_rate)[: len(x)]
        x[: len(clip)] = clip
        assert_published(np.asarray(function(x, spec)), x, spec)


@pytest.mark.parametrize("name", SPECS)
def test_stft_equals_librosa(name: str):
    spec = SPECS[name]
    x = synthetic("harmonics", spec.sample_rate)
    padded = np.pad(x, (spec.n_fft - spec.hop_length) // 2, mode="reflect")
    theirs = librosa.stft(padded, n_fft=spec.n_fft, hop_length=spec.hop_length, center=False).T
    np.testing.assert_allclose(spectral.stft(x, spec), theirs, atol=1e-4)
