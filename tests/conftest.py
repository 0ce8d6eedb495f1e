"""What every test shares; pyproject.toml asks for the import hook that checks signatures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

# For this process and those that tests start: the CPU, whose results the tolerances are made for,
# no network, no windows.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

SAMPLE_RATE = 16_000
CHECKOUT = Path(__file__).resolve().parent.parent


def _vowels(seconds: float, pitch: float, seed: int) -> np.ndarray:
    """Harmonics of a gliding pitch under moving formants, with syllables and a little breath."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    f0 = pitch * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time))
    phase = 2 * np.pi * np.cumsum(f0) / SAMPLE_RATE
    formants = [
        (base * (1 + 0.25 * np.sin(2 * np.pi * rate * time)), width)
        for base, rate, width in [(600, 1.1, 120), (1500, 1.7, 200), (2600, 0.9, 300)]
    ]
    wave = 0.003 * rng.standard_normal(len(time))
    for harmonic in range(1, int(4000 / pitch)):
        gain = sum(1 / (1 + ((harmonic * f0 - peak) / width) ** 2) for peak, width in formants)
        wave += gain / harmonic**0.5 * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 3 * time) + 0.7, 0, 1)
    wave = wave * syllables
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


@pytest.fixture(scope="session")
def speech() -> np.ndarray:
    """f32[32000]: two seconds at 16 kHz of something with pitch, formants, syllables and pauses."""
    return _vowels(2.0, pitch=140.0, seed=0)


@pytest.fixture(scope="session")
def speakers() -> dict[str, list[np.ndarray]]:
    """Three recordings (f32[samples] at 16 kHz, 1 to 2 s) of each of four different pitches."""
    return {
        f"pitch{pitch}": [_vowels(1.0 + 0.5 * take, pitch, 10 * pitch + take) for take in range(3)]
        for pitch in (90, 130, 180, 240)
    }


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings beside the checkout; a test that needs it skips without."""
    folder = CHECKOUT.parent / "shared" / "data" / "speech"
    if not (folder / "manifest.tsv").is_file():
        pytest.skip("the real recordings are not beside this checkout")
    return folder
