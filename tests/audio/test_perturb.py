"""Disguised voices: pitch, formants and timbre move, time does not."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxclone.audio import pitch, spectral
from jaxclone.audio.perturb import PerturbConfig, perturb
from jaxclone.audio.spec import AudioSpec, jaxclone_16k
from jaxclone.types import UserError

SPEC = jaxclone_16k()
RATE = SPEC.sample_rate
NONE = PerturbConfig(formants=0.0, pitch=0.0, eq_db=0.0)
run = jax.jit(perturb, static_argnums=(2, 3))


def vowel(hz: float = 130.0, formant: float = 1500.0, seconds: float = 1.0) -> np.ndarray:
    """Harmonics under one resonance, in two syllables."""
    t = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * (hz * t + 4 * np.sin(2 * np.pi * t))
    out = 1e-4 * np.random.default_rng(0).standard_normal(len(t))
    for k in range(1, int(7_000 / hz)):
        out += np.cos(k * phase) / (1 + ((k * hz - formant) / 200) ** 2)
    return (0.1 * out * (np.sin(4 * np.pi * t / seconds) > -0.5)).astype(np.float32)


def many(config: PerturbConfig, x: np.ndarray, n: int = 8) -> np.ndarray:
    return np.asarray(run(jax.random.split(jax.random.key(1), n), np.stack([x] * n), SPEC, config))


def f0_ratio(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    before, after = pitch.f0(x, SPEC), pitch.f0(y, SPEC)
    both = (before > 0) & (after > 0)
    assert both.sum() > 0.8 * (before > 0).sum()
    return after[both] / before[both]


def resonance(x: np.ndarray) -> float:
    """Hz, where the mean magnitude has its peak, smoothed over the harmonics."""
    mean = np.asarray(spectral.magnitude(x, SPEC)).mean(0)
    smooth = np.convolve(mean, np.hanning(31), "same")
    return float(np.argmax(smooth) * RATE / SPEC.n_fft)


def level(x: np.ndarray) -> np.ndarray:
    return np.log(np.convolve(x**2, np.ones(320) / 320, "same")[::80] + 1e-6)


@pytest.mark.parametrize("samples", [RATE, RATE + 123])
def test_zero_strength_is_the_identity(samples: int):
    x = np.stack([vowel(seconds=1.1)[:samples], vowel(90, seconds=1.1)[:samples]])
    y = run(jax.random.split(jax.random.key(0)), x, SPEC, NONE)
    np.testing.assert_allclose(y, x, atol=1e-5)


def test_pitch_moves_by_one_factor_a_key():
    x = vowel()
    ratios = [f0_ratio(y, x) for y in many(PerturbConfig(formants=0.0, eq_db=0.0), x)]
    middle = np.array([np.median(r) for r in ratios])
    assert (middle > 1 / 1.41).all()
    assert (middle < 1.41).all()
    assert middle.max() > 1.15
    assert middle.min() < 0.87
    for ratio, centre in zip(ratios, middle):
        assert np.mean(np.abs(ratio / centre - 1) < 0.03) > 0.9


def test_formants_stay_when_pitch_moves():
    x = vowel()
    for y in many(PerturbConfig(formants=0.0, eq_db=0.0), x):
        assert resonance(y) == pytest.approx(resonance(x), rel=0.12)


def test_formants_move_and_pitch_stays():
    x = vowel()
    made = many(PerturbConfig(pitch=0.0, eq_db=0.0), x)
    ratios = np.array([resonance(y) / resonance(x) for y in made])
    assert ratios.max() > 1.1
    assert ratios.min() < 0.9
    assert (ratios > 0.7).all()
    assert (ratios < 1.4).all()
    for y in made:
        assert np.median(f0_ratio(y, x)) == pytest.approx(1, abs=0.01)


def test_equaliser_is_one_smooth_filter():
    x = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    for y in many(PerturbConfig(formants=0.0, pitch=0.0, eq_db=4.0), x):
        gain = 20 * np.log10(
            np.asarray(spectral.magnitude(y, SPEC)) / np.asarray(spectral.magnitude(x, SPEC))
        )
        middle = np.median(gain[3:-3], axis=0)
        assert middle.max() - middle.min() > 3
        assert np.abs(np.diff(middle)).max() < 1
        assert np.median(np.abs(gain[3:-3] - middle)) < 0.5


def test_time_stays():
    x = vowel()
    for y in many(PerturbConfig(), x):
        assert y.shape == x.shape
        lags = range(-12, 13)
        likeness = [np.corrcoef(np.roll(level(y), lag), level(x))[0, 1] for lag in lags]
        assert max(likeness) > 0.9
        assert abs(lags[int(np.argmax(likeness))]) * 80 / RATE <= 0.01


def test_key_alone_decides():
    x = vowel()
    keys = jax.random.split(jax.random.key(1), 4)
    batch = run(keys, np.stack([x, 0.5 * x, vowel(200), x]), SPEC, PerturbConfig())
    alone = run(keys[3:], x[None], SPEC, PerturbConfig())
    np.testing.assert_allclose(batch[3], alone[0], atol=1e-5)
    assert np.abs(batch[3] - batch[0]).max() > 0.01


def test_padding_changes_nothing():
    x = vowel(seconds=0.6)
    padded = np.pad(x, (0, 9_000))
    key = jax.random.split(jax.random.key(2), 1)
    alone = run(key, x[None], SPEC, PerturbConfig())[0]
    y = run(key, padded[None], SPEC, PerturbConfig())[0]
    np.testing.assert_allclose(y[: len(x)], alone, atol=1e-5)
    assert np.abs(y[len(x) + 1_600 :]).max() < 1e-6


def test_silence_stays_silent():
    y = many(PerturbConfig(), np.zeros(RATE, np.float32))
    np.testing.assert_array_equal(y, 0)


def test_other_frames():
    spec = AudioSpec(sample_rate=22_050, hop_length=256, n_fft=512, win_length=512)
    x = vowel()[None]
    y = run(jax.random.split(jax.random.key(0), 1), x, spec, NONE)
    np.testing.assert_allclose(y, x, atol=1e-5)


def test_refuses_what_it_cannot_do():
    with pytest.raises(UserError) as error:
        PerturbConfig(pitch=1.5)
    assert str(error.value) == (
        "PerturbConfig needs pitch and formants of at least 0 and below 1, got 1.5 and 0.3"
    )
