"""The STFT and the mel: lengths, inverse, masks, gradients."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.audio import spectral
from jaxclone.audio.spec import AudioSpec, hifigan_22k, jaxclone_16k
from jaxclone.types import UserError

SPECS = {
    "hifigan_22k": hifigan_22k(),
    "jaxclone_16k": jaxclone_16k(),
    "short_window": AudioSpec(n_fft=512, hop_length=128, win_length=400, log="log10"),
    "centred": AudioSpec(n_fft=512, hop_length=128, win_length=512, filters="htk", center=True),
}


def noise(*shape: int) -> np.ndarray:
    return 0.3 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("extra", [0, 1, 127])
def test_frame_count_is_samples_over_hop(name: str, extra: int):
    spec = SPECS[name]
    t = 12 * spec.hop_length + extra
    spectrum = spectral.stft(noise(t), spec)
    assert spectrum.shape == (12, spec.n_fft // 2 + 1)
    assert spectral.log_mel(noise(2, 3, t), spec).shape == (2, 3, spec.n_frames(t), spec.n_mels)


@pytest.mark.parametrize("name", SPECS)
def test_istft_inverts_stft(name: str):
    spec = SPECS[name]
    x = noise(2, 20 * spec.hop_length + 5)
    y = spectral.istft(spectral.stft(x, spec), spec)
    assert y.shape == (2, 20 * spec.hop_length)
    np.testing.assert_allclose(y, x[:, : y.shape[-1]], atol=2e-5)


def test_frame_is_centred_on_half_a_hop():
    spec = jaxclone_16k()
    for i in (5, 11):
        impulse = np.zeros(20 * spec.hop_length, np.float32)
        impulse[i * spec.hop_length + spec.hop_length // 2] = 1.0
        energy = spectral.magnitude(impulse, spec).sum(-1)
        assert int(jnp.argmax(energy)) == i
        np.testing.assert_allclose(energy[i - 1], energy[i + 1], rtol=1e-3)


@pytest.mark.parametrize("name", SPECS)
def test_length_makes_padding_invisible(name: str):
    spec = SPECS[name]
    hop = spec.hop_length
    lengths = [30 * hop, 7 * hop + 13, 4 * hop + 1]
    batch = np.zeros((3, 30 * hop), np.float32)
    for row, n in zip(batch, lengths, strict=True):
        row[:n] = noise(n)
    mels = spectral.log_mel(batch, spec, np.array(lengths))
    silence = np.log(spec.floor) if spec.log == "ln" else np.log10(spec.floor)
    for mel, row, n in zip(mels, batch, lengths, strict=True):
        alone = spectral.log_mel(row[:n], spec)
        np.testing.assert_allclose(mel[: n // hop], alone, atol=1e-5)
        np.testing.assert_allclose(mel[n // hop :], silence, atol=1e-5)


def test_nothing_after_the_length_is_seen():
    spec = jaxclone_16k()
    x, length = noise(16_000), jnp.array(9_000)
    other = np.where(np.arange(16_000) < 9_000, x, 7.0).astype(np.float32)
    a, b = (spectral.log_mel(w, spec, length) for w in (x, other))
    np.testing.assert_array_equal(a, b)
    assert np.isfinite(spectral.log_mel(x, spec, jnp.array(3))).all()


@pytest.mark.parametrize("level", [0.0, 1e-8, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_finite(level: float, masked: bool):
    spec = jaxclone_16k()
    x = level * noise(2, 4_000)
    length = jnp.array([4_000, 0]) if masked else None
    grad = jax.grad(lambda w: jnp.sum(spectral.log_mel(w, spec, length)))(x)
    assert np.isfinite(grad).all()
    assert bool(jnp.any(grad != 0)) == (level == 1.0)


def test_gradient_matches_finite_differences():
    spec = AudioSpec(n_fft=64, hop_length=16, win_length=64, n_mels=8)
    x, direction = noise(256), noise(2, 256)[1]

    def loss(w):
        return jnp.mean(spectral.log_mel(w, spec))

    step = 1e-2
    numeric = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(x), direction), numeric, rtol=2e-2)


def test_too_short_is_one_clear_line():
    with pytest.raises(UserError) as error:
        spectral.log_mel(np.zeros(48, np.float32), jaxclone_16k())
    assert str(error.value) == (
        "48 samples are too short for a spectrogram: at least 353 are needed (22 ms at 16000 Hz)"
    )
    assert spectral.log_mel(noise(353), jaxclone_16k()).shape == (1, 80)


@pytest.mark.parametrize("name", SPECS)
def test_mel_to_magnitude_gives_the_mel_back(name: str):
    spec = SPECS[name]
    x = noise(20 * spec.hop_length)
    mel = spectral.log_mel(x, spec)
    power = spectral.mel_to_magnitude(mel, spec)
    assert (power >= 0).all()
    back = jnp.maximum(power @ spectral.mel_filterbank(spec).T, spec.floor)
    back = jnp.log(back) if spec.log == "ln" else jnp.log10(back)
    np.testing.assert_allclose(back, mel, atol=0.02)


def test_whole_band_for_the_loss_is_another_spec():
    spec = hifigan_22k()
    assert not spectral.mel_filterbank(spec)[:, 400:].any()
    assert spectral.mel_filterbank(dataclasses.replace(spec, fmax=None))[:, 400:].any()


def test_compiles_once_a_shape():
    traced = []

    @jax.jit
    def mel(x):
        traced.append(x.shape)
        return spectral.log_mel(x, jaxclone_16k())

    for _ in range(3):
        mel(noise(2, 4_000))
    assert len(traced) == 1
