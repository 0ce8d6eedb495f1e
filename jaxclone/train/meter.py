"""The speed of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import jax
import numpy as np

from data_pipelines.loader import Loader
from jaxclone.types import Batch, Episode


class Meter:
    """How much audio is trained on, and how much of the time goes by waiting for it.

    Attributes:
        samples: in this process's part of the steps done since the last reading.
    """

    def __init__(self, sample_rate: int):
        self._rate = sample_rate
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self._since, self._waited, self.samples = time.monotonic(), 0.0, 0

    def next(self, loader: Loader) -> Batch | Episode:
        """The next batch, timed."""
        asked = time.monotonic()
        batch = next(loader)
        self._waited += time.monotonic() - asked
        return batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within it does not count."""
        before = time.monotonic()
        yield
        self._since += time.monotonic() - before

    def read(self) -> dict[str, float]:
        """The rates since the last reading; the other processes are taken to do as much."""
        if not self.samples:
            return {}
        elapsed = time.monotonic() - self._since
        seconds = self.samples / self._rate * jax.process_count()
        rates = {
            "audio_seconds_per_second": round(seconds / elapsed, 3),
            "data_wait_fraction": round(self._waited / elapsed, 4),
        }
        self.reset()
        return rates


def samples_of(batch: Batch | Episode) -> int:
    """Samples of recordings in a batch, without its padding."""
    parts = (batch,) if isinstance(batch, Batch) else (batch.support, batch.query)
    return sum(int(np.sum(part.length)) for part in parts)
