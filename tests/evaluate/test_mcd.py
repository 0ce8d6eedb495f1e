"""Mel-cepstral distortion: what it must and must not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from jaxclone.evaluate.mcd import ALPHA, ORDER, mcd, mcd_of, mel_cepstrum
from jaxclone.types import UserError

RATE = 16_000


def vowel(formants: tuple[float, ...], hz: float = 120.0, seconds: float = 0.6) -> np.ndarray:
    """Harmonics of a falling voice under resonances of 90 Hz width."""
    t = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * (hz * t - 10 * t**2)
    out = 1e-4 * np.random.default_rng(0).standard_normal(len(t))
    for k in range(1, int(7_500 / hz)):
        gain = sum(1 / (1 + ((k * hz - f) / 90) ** 2) for f in formants) + 1e-3
        out += 0.05 * gain * np.cos(k * phase)
    return out.astype(np.float32)


AH, EE = vowel((700, 1200, 2600)), vowel((300, 2300, 3000))


def test_same_is_zero():
    assert mcd(AH, AH, RATE) == 0.0
    assert mel_cepstrum(AH, RATE).shape == (121, ORDER + 1)


def test_other_timbre_is_far_and_other_pitch_is_near():
    far = mcd(AH, EE, RATE)
    near = mcd(AH, vowel((700, 1200, 2600), hz=135.0), RATE)
    assert far > 8
    assert near < 0.5 * far


def test_symmetric():
    assert mcd(AH, EE, RATE) == pytest.approx(mcd(EE, AH, RATE), rel=1e-6)


@pytest.mark.parametrize("gain", [0.01, 3.0])
def test_level_does_not_matter(gain: float):
    assert mcd(AH, (gain * AH).astype(np.float32), RATE) < 0.01


def test_tempo_does_not_matter():
    word = np.concatenate([AH, EE])
    slow = np.concatenate([AH, AH[-2_000:], EE, EE[-4_000:]])
    assert mcd(word, slow, RATE) < 0.15 * mcd(AH, EE, RATE)


def test_value_by_hand():
    a, b = np.zeros((5, ORDER + 1)), np.zeros((5, ORDER + 1))
    b[:, 0] = 7.0  # the energy does not count
    assert mcd_of(a, b) == 0.0
    b[:, 3] = 0.2
    assert mcd_of(a, b) == pytest.approx(10 / np.log(10) * np.sqrt(2 * 0.2**2))


def test_first_coefficient_is_the_mean_log_amplitude():
    gain = np.exp(0.7)
    difference = mel_cepstrum(gain * AH, RATE) - mel_cepstrum(AH, RATE)
    np.testing.assert_allclose(difference[:, 0], 0.7, atol=0.01)
    np.testing.assert_allclose(difference[:, 1:], 0, atol=0.01)


def test_digital_silence_is_finite():
    silence = np.zeros(RATE, np.float32)
    assert mcd(silence, silence, RATE) == 0.0
    assert mcd(AH, silence, RATE) < 40
    # Silence of which one half is exact and the other is not.
    padded = np.concatenate([AH, np.zeros(3_200, np.float32)])
    assert np.isfinite(mcd(padded, AH, RATE))


def test_pauses_can_be_left_out():
    pause = 1e-5 * np.random.default_rng(1).standard_normal(RATE).astype(np.float32)
    first, second = np.concatenate([AH, pause]), np.concatenate([EE, pause])
    assert mcd(first, second, RATE) < 0.6 * mcd(AH, EE, RATE)
    assert mcd(first, second, RATE, drop_silence_db=40.0) == pytest.approx(
        mcd(AH, EE, RATE), rel=0.15
    )


def test_refuses():
    with pytest.raises(UserError) as error:
        mcd(AH, AH, 12_345)
    rates = ", ".join(map(str, ALPHA))
    assert str(error.value) == f"MCD is defined here at {rates} Hz, not at 12345 Hz"
    with pytest.raises(UserError) as error:
        mcd(AH, np.zeros(48, np.float32), RATE)
    assert str(error.value) == "MCD needs at least 5 ms of sound, got 48 samples"
