"""What the verbs that clone have in common: reading recordings, preparing the place of a result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxclone.audio import io
from jaxclone.config import UsageError
from jaxclone.synthesis.cloner import Cloner
from jaxclone.types import UserError

# Where `jaxclone demo` leaves its models.
DEMO_BUNDLE = Path("runs/demo/bundle")
# Shorter than this, nothing can be told of a voice, and no word can be said.
_MIN_REFERENCE, _MIN_SOURCE = 1.0, 0.1


def read_references(paths: Sequence[Path], sample_rate: int) -> list[np.ndarray]:
    """Recordings of one person, long enough together to know a voice by.

    Raises:
        UserError: one cannot be read, or all of them together are too short.
    """
    waveforms = [io.read(path, sample_rate) for path in dict.fromkeys(paths)]
    name = "the reference " + ", ".join(map(str, paths))
    io.require_seconds(np.concatenate(waveforms), sample_rate, _MIN_REFERENCE, name)
    return waveforms


def read_source(path: Path, sample_rate: int) -> np.ndarray:
    """A recording to convert.

    Raises:
        UserError: it cannot be read or is too short.
    """
    waveform = io.read(path, sample_rate)
    io.require_seconds(waveform, sample_rate, _MIN_SOURCE, f"the source {path}")
    return waveform


def require_steps(steps: int) -> None:
    """Raises a UsageError unless adaptation can take so many steps."""
    if steps < 0:
        raise UsageError(f"--steps is the number of steps of adaptation, 0 or more, got {steps}")


def load_cloner(folders: Sequence[Path]) -> Cloner:
    """The models of these bundles, by default those of the demo.

    Raises:
        UserError: they cannot be read, or no demo was run here.
    """
    if not folders and not DEMO_BUNDLE.is_dir():
        raise UserError(
            f"there are no models in {DEMO_BUNDLE}: name a bundle with --model, or run jaxclone "
            "demo first"
        )
    return Cloner.load(*(folders or (DEMO_BUNDLE,)))


def prepare(out: Path, *suffixes: str) -> None:
    """Makes the folder of a result, so that a bad place is known before the work.

    Raises:
        UsageError: the file's suffix is none of those allowed.
        UserError: the folder cannot be made.
    """
    if out.suffix.lower() not in suffixes:
        raise UsageError(f"{out} must end in {' or '.join(suffixes)}")
    make_folder(out.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder for results.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written: Permission denied")
