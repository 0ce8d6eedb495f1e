"""Levels of recordings, of their speech and of frames."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxclone.audio import loudness
from jaxclone.audio.spec import jaxclone_16k


def noise(n: int, level: float = 0.05) -> np.ndarray:
    return level * np.random.default_rng(0).standard_normal(n).astype(np.float32)


def test_rms_db():
    t = np.arange(16_000) / 16_000
    assert loudness.rms_db(np.sin(2 * np.pi * 100 * t).astype("f4")) == pytest.approx(
        -3.01, abs=0.01
    )
    assert loudness.rms_db(np.zeros(100, np.float32)) == -100
    assert loudness.rms_db(np.zeros(0, np.float32)) == -100


def test_pauses_do_not_count():
    speech = noise(512 * 30)
    paused = np.concatenate([noise(512 * 60, 1e-4), speech, np.zeros(512 * 90, np.float32)])
    assert loudness.active_db(paused) == pytest.approx(loudness.active_db(speech), abs=0.01)
    assert loudness.rms_db(paused) < loudness.rms_db(speech) - 7


@pytest.mark.parametrize("level", [1e-4, 0.05, 3.0])
def test_normalise_reaches_the_level(level: float):
    y = loudness.normalise(noise(16_000, level))
    assert y.dtype == np.float32
    assert loudness.active_db(y) == pytest.approx(-24, abs=0.01)
    again = loudness.normalise(y)
    np.testing.assert_allclose(again, y, rtol=1e-4)


def test_normalise_never_clips():
    x = noise(16_000)
    x[100] = 0.9
    y = loudness.normalise(x, -6.0)
    assert np.abs(y).max() == pytest.approx(0.99)
    assert loudness.active_db(y) < -6.5


def test_normalise_leaves_silence():
    assert not loudness.normalise(np.zeros(1000, np.float32)).any()


def test_frame_db():
    spec = jaxclone_16k()
    x = np.concatenate([np.full(8_000, 0.1), np.zeros(8_000)]).astype(np.float32)
    db = jax.jit(loudness.frame_db, static_argnums=1)(np.stack([x, 10 * x]), spec)
    assert db.shape == (2, 50)
    np.testing.assert_allclose(db[0, :22], -20, atol=0.01)
    np.testing.assert_allclose(db[1, :22], 0, atol=0.01)
    np.testing.assert_allclose(db[:, 28:], -100)
    assert np.isfinite(jax.grad(lambda w: loudness.frame_db(w, spec).sum())(x)).all()
