"""The filter bank: what goes in comes out, and each band holds its own frequencies."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxclone.audio.pqmf import _filters, join_bands, reach, split_bands
from jaxclone.types import UserError


def decibels(error: np.ndarray, of: np.ndarray) -> float:
    return 20 * np.log10(np.std(error) / np.std(of))


@pytest.mark.parametrize("bands", [2, 4, 8])
def test_joined_bands_are_the_waveform_to_90_db(bands: int, speech: np.ndarray) -> None:
    noise = np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    inside = slice(reach(bands), -reach(bands))
    for waveform in (speech, noise):
        parts = jax.jit(split_bands, static_argnums=1)(waveform, bands)
        assert parts.shape == (len(waveform) // bands, bands)
        again = np.asarray(jax.jit(join_bands)(parts))
        assert decibels((again - waveform)[inside], waveform) < -90


def test_bands_come_back_from_the_waveform_that_they_make() -> None:
    """So the bands that a generator spoke can be compared behind its waveform."""
    parts = np.random.default_rng(1).standard_normal((2, 500, 4)).astype(np.float32)
    again = np.asarray(split_bands(join_bands(parts), 4))
    inside = slice(reach(4) // 4, -reach(4) // 4)
    assert decibels((again - parts)[:, inside], parts) < -90


def test_a_band_holds_its_frequencies_alone() -> None:
    time = np.arange(16_000) / 16_000
    for band in range(4):
        tone = np.sin(2 * np.pi * (1000 + 2000 * band) * time).astype(np.float32)
        energy = np.square(np.asarray(split_bands(tone, 4))[50:-50]).mean(0)
        others = np.delete(energy, band)
        assert 10 * np.log10(others.max() / energy[band]) < -55


def test_joining_is_the_transpose_of_splitting() -> None:
    random = np.random.default_rng(2)
    waveform = random.standard_normal(160).astype(np.float32)
    parts = random.standard_normal((40, 4)).astype(np.float32)
    assert np.vdot(split_bands(waveform, 4), parts) == pytest.approx(
        np.vdot(waveform, join_bands(parts)), rel=1e-4
    )


def test_a_sample_depends_on_no_more_than_the_reach() -> None:
    parts = np.zeros((200, 4), np.float32)
    parts[100] = 1.0
    touched = np.flatnonzero(np.abs(np.asarray(join_bands(parts))) > 1e-7)
    assert touched.min() >= 400 - reach(4)
    assert touched.max() < 404 + reach(4)


def test_filters_are_even_in_number_and_long() -> None:
    assert _filters(4).shape == (64, 4)
    with pytest.raises(UserError, match="an even number of bands, not 3"):
        split_bands(np.zeros(300, np.float32), 3)
    with pytest.raises(UserError, match="401 samples do not divide into 4 bands"):
        split_bands(np.zeros(401, np.float32), 4)
