from __future__ import annotations

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jaxclone.audio.spec import hifigan_22k, jaxclone_16k
from jaxclone.losses.spectral import RESOLUTIONS, mel_l1, multi_resolution_stft

SPEC = jaxclone_16k()
mel_l1 = jax.jit(mel_l1, static_argnums=2)
multi_resolution_stft = jax.jit(multi_resolution_stft, static_argnums=2)


@pytest.fixture
def pair(speech: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    return speech[None], (0.7 * speech + noise)[None]


def test_equal_waveforms_are_at_no_distance(pair):
    truth, _ = pair
    assert float(mel_l1(truth, truth, SPEC)[0]) == 0
    assert float(multi_resolution_stft(truth, truth, SPEC)[0]) < 1e-5


def test_mel_loss_hears_above_the_fmax_of_the_input():
    spec = hifigan_22k()
    time = np.arange(22_050) / spec.sample_rate
    high = (0.5 * np.sin(2 * np.pi * 10_000 * time)).astype(np.float32)[None]
    assert float(mel_l1(high, np.zeros_like(high), spec)[0]) > 0.1


def test_stft_loss_equals_librosa(pair):
    truth, other = pair
    expected = []
    for n_fft, hop, win in RESOLUTIONS:
        magnitudes = []
        for x in (other, truth):
            padded = np.pad(x[0], (n_fft - hop) // 2, mode="reflect")
            spectrum = librosa.stft(
                padded, n_fft=n_fft, hop_length=hop, win_length=win, center=False
            )
            magnitudes.append(np.sqrt(np.abs(spectrum) ** 2 + 1e-9))
        p, t = magnitudes
        frames = truth.shape[1] // hop
        p, t = p[:, :frames], t[:, :frames]
        expected.append(
            np.linalg.norm(t - p) / np.linalg.norm(t) + np.abs(np.log(t) - np.log(p)).mean()
        )
    loss, _ = multi_resolution_stft(other, truth, SPEC)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("distance", [mel_l1, multi_resolution_stft])
def test_padding_does_not_change_the_distance(pair, distance):
    truth, other = (x[:, :16_000] for x in pair)
    alone, _ = distance(other, truth, SPEC)
    padding = ((0, 0), (0, 12_000))
    noise = np.random.default_rng(1).standard_normal(12_000).astype(np.float32)
    padded_other = np.pad(other, padding)
    padded_other[:, 16_000:] = noise  # whatever lies after the length has no part in it
    padded, _ = distance(
        padded_other, np.pad(truth, padding), SPEC, length=jnp.array([16_000], jnp.int32)
    )
    assert float(padded) == pytest.approx(float(alone), rel=1e-5)


@pytest.mark.parametrize("distance", [mel_l1, multi_resolution_stft])
def test_gradients_are_finite_at_silence(pair, distance):
    truth, _ = pair
    silence = np.zeros_like(truth)
    for predicted, target in [(silence, truth), (silence, silence)]:
        gradient = jax.grad(lambda x, t: distance(x, t, SPEC)[0])(jnp.asarray(predicted), target)
        assert np.isfinite(gradient).all()


def test_a_silent_recording_does_not_drown_the_others(pair):
    _, other = pair
    silence = np.zeros_like(other)
    assert float(multi_resolution_stft(0.1 * other, silence, SPEC)[0]) < 100
