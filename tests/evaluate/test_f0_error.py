"""F0 error: values that are known, and pairs that have none."""

from __future__ import annotations

import numpy as np
import pytest

from jaxclone.audio.spec import jaxclone_16k
from jaxclone.evaluate.pitch import f0_error

SPEC = jaxclone_16k()


def voice(hz: float, bend: float = 0.2, seconds: float = 1.0) -> np.ndarray:
    """A voice whose F0 moves by a share `bend` around hz, over a timbre that moves too."""
    t = np.arange(int(16_000 * seconds)) / 16_000
    frequency = hz * (1 + bend * np.sin(2 * np.pi * t / seconds))
    phase = 2 * np.pi * np.cumsum(frequency) / 16_000
    bright = 0.2 + 0.8 * t / seconds
    return (0.05 * sum(np.cos(k * phase) * bright ** (k - 1) for k in range(1, 20))).astype("f4")


@pytest.mark.parametrize("align", [True, False])
def test_same_has_no_error(align: bool):
    score = f0_error(voice(150), voice(150), SPEC, align)
    assert score["rmse_cents"] == 0
    assert score["voicing_error"] == 0
    assert score["correlation"] == pytest.approx(1)


def test_a_fifth_is_seven_hundred_cents():
    score = f0_error(voice(120), voice(180), SPEC, align=False)
    assert score["rmse_cents"] == pytest.approx(702, abs=15)
    assert score["correlation"] > 0.99


def test_contrary_melody():
    score = f0_error(voice(150), voice(150, bend=-0.2), SPEC, align=False)
    assert score["correlation"] < -0.95
    assert score["rmse_cents"] > 300


def test_alignment_undoes_tempo():
    slow = voice(150, seconds=1.4)
    aligned, straight = (f0_error(voice(150), slow, SPEC, align) for align in (True, False))
    assert aligned["rmse_cents"] < 0.4 * straight["rmse_cents"]
    assert aligned["correlation"] > 0.95


def test_voicing():
    noise = 0.05 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    score = f0_error(voice(150), noise, SPEC, align=False)
    assert score["voicing_error"] > 0.9
    assert f0_error(noise, noise, SPEC, align=False) == {"voicing_error": 0.0}
    half = np.concatenate([voice(150)[:8_000], noise[8_000:]])
    assert f0_error(voice(150), half, SPEC, False)["voicing_error"] == pytest.approx(0.5, abs=0.05)
