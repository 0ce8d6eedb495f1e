"""Mel-cepstra and their distance against the SPTK toolkit and pymcd.

pymcd is not among the test's dependencies: pip install --no-deps pymcd==0.2.1 fastdtw==0.3.4
"""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import pyworld

from jaxclone.audio import io
from jaxclone.evaluate import mcd as ours

SPEECH = Path(__file__).parents[3] / "shared" / "data" / "speech"


@pytest.fixture(scope="module")
def pysptk():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their imports
        return pytest.importorskip("pysptk")


def envelope(waveform: np.ndarray, rate: int) -> np.ndarray:
    """The power envelope by WORLD, found in one call instead of four, and the documented floor."""
    level = np.sqrt(np.mean(waveform.astype(np.float64) ** 2))
    power = pyworld.wav2world(waveform.astype(np.float64) / level, rate, frame_period=5.0)[1]
    return (power + 1e-10) * level**2


def speech(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Two speakers, of real recordings where there are some."""
    if (SPEECH / "manifest.tsv").exists():
        with (SPEECH / "manifest.tsv").open(encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file, delimiter="\t") if r["corpus"] == "cmu_arctic"]
        paths = {row["speaker"]: row["path"] for row in rows}
        first, second = list(paths.values())[:2]
        return io.read(SPEECH / first, rate)[:rate], io.read(SPEECH / second, rate)[:rate]
    t = np.arange(rate) / rate
    noise = 1e-3 * np.random.default_rng(0).standard_normal(rate)
    voices = (np.sign(np.sin(2 * np.pi * (hz + 20 * t) * t)) for hz in (110, 170))
    return tuple((0.1 * voice + noise).astype(np.float32) for voice in voices)


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000])
def test_mel_cepstrum_equals_sptk(pysptk, rate: int):
    for waveform in speech(rate):
        theirs = pysptk.sp2mc(envelope(waveform, rate), ours.ORDER, ours.ALPHA[rate])
        np.testing.assert_allclose(ours.mel_cepstrum(waveform, rate), theirs, atol=1e-8)


@pytest.mark.parametrize("rate", ours.ALPHA)
def test_alpha_is_that_of_the_mel_scale(pysptk, rate: int):
    assert pysptk.util.mcepalpha(rate) == pytest.approx(ours.ALPHA[rate], abs=0.011)


def test_distance_equals_pymcd(pysptk):
    pytest.importorskip("pymcd")
    from pymcd.mcd import Calculate_MCD

    rate = 22_050
    toolbox = Calculate_MCD("dtw")
    a, b = (
        pysptk.sp2mc(envelope(x, rate), ours.ORDER, ours.ALPHA[rate])[:, 1:] for x in speech(rate)
    )

    # An exact alignment, written out: pymcd's own is approximate.
    distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
    total = np.full((len(a) + 1, len(b) + 1), np.inf)
    total[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            before = min(total[i, j], total[i, j + 1], total[i + 1, j])
            total[i + 1, j + 1] = distance[i, j] + before
    i, j = len(a), len(b)
    path = []
    while i and j:
        path.append((i - 1, j - 1))
        i, j = min([(i - 1, j - 1), (i, j - 1), (i - 1, j)], key=lambda place: total[place])

    frames, cost = toolbox.calculate_mcd_distance(a, b, path[::-1])
    theirs = toolbox.log_spec_dB_const * cost / frames
    assert ours.mcd(*speech(rate), rate) == pytest.approx(theirs, rel=1e-4)
