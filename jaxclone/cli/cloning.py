"""What the verbs that clone have in common: reading recordings, preparing the place of a result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxclone.audio import io
from jaxclone.config import UsageError
from jaxclone.types import UserError

# Shorter than this, nothing can be told of a voice, and no word can be said.
_MIN_REFERENCE, _MIN_SOURCE = 1.0, 0.1


def read_references(paths: Sequence[Path], sample_rate: int) -> list[np.ndarray]:
    """Recordings of one person, long enough together to know a voice by.

    Raises:
        UserError: one cannot be read, or all of them together are too short.
    """
    waveforms = [io.read(path, sample_rate) for path in paths]
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


def prepare(out: Path, *suffixes: str) -> None:
    """Makes the folder of a result, so that a bad place is known before the work.

    Raises:
        UserError: the folder cannot be made, or the file's suffix is none of those allowed.
    """
    if out.suffix.lower() not in suffixes:
        raise UserError(f"{out} must end in {' or '.join(suffixes)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
