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
    """How much audio is trained on, and how much of the time goes by waiting for it."""

    def __init__(self, sample_rate: int, devices: int, peak: float | None = None):
        """Begins to count.

        Args:
            sample_rate: of the audio.
            devices: of all processes, how many.
            peak: operations that they do in a second at most; None where that is not known.
        """
        self._rate = sample_rate
        self._devices = devices
        self._peak = peak
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self._since, self._waited = time.monotonic(), 0.0
        self._samples, self._flops = 0, 0.0

    def count(self, samples: int, flops: float = 0.0) -> None:
        """A step is done.

        Args:
            samples: in this process's part of its batch.
            flops: operations that the model needs for the whole batch.
        """
        self._samples += samples
        self._flops += flops

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
        """The rates since the last reading; the other processes are taken to do as much.

        "mfu", the operations that the model needs over those that the devices could have done, is
        there where both are known.
        """
        if not self._samples:
            return {}
        elapsed = time.monotonic() - self._since
        rate = self._samples / self._rate * jax.process_count() / elapsed
        rates = {
            "audio_seconds_per_second": round(rate, 3),
            "audio_seconds_per_second_per_device": round(rate / self._devices, 3),
            "data_wait_fraction": round(self._waited / elapsed, 4),
        }
        if self._flops and self._peak:
            rates["mfu"] = round(self._flops / (self._peak * elapsed), 4)
        self.reset()
        return rates


def samples_of(batch: Batch | Episode) -> int:
    """Samples of recordings in a batch, without its padding."""
    parts = (batch,) if isinstance(batch, Batch) else (batch.support, batch.query)
    return sum(int(np.sum(part.length)) for part in parts)
