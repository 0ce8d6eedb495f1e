"""The speed of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines.loader import Loader
from jaxclone.types import Batch, Episode

# Dense bf16 operations a second of a device, by the beginning of its kind, longest first (the
# makers' data sheets: cloud.google.com/tpu/docs, nvidia.com/h100; without sparsity).
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
}


def peak_flops(kind: str) -> float | None:
    """Of a device, by its `device_kind`; None where it is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("cpu")
    (989000000000000.0, None)
    """
    return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)


class Meter:
    """How much audio is trained on, and how much of the time goes by waiting for it."""

    def __init__(self, sample_rate: int, devices: Sequence[Any], flops: float | None = None):
        """Begins to count.

        Args:
            sample_rate: of the audio.
            devices: of all processes.
            flops: of a step over all devices; None where that is not known.
        """
        self._rate = sample_rate
        self._devices = len(devices)
        self._flops = flops
        self._peak = peak_flops(devices[0].device_kind)
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self._since, self._waited = time.monotonic(), 0.0
        self._samples, self._steps = 0, 0

    def count(self, samples: int) -> None:
        """A step is done, with so many samples in this process's part of its batch."""
        self._samples += samples
        self._steps += 1

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

        "mfu", the operations that the model needs over those that the devices could do, is there
        where both are known.
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
            could = self._peak * self._devices * elapsed
            rates["mfu"] = round(self._flops * self._steps / could, 4)
        self.reset()
        return rates


def samples_of(batch: Batch | Episode) -> int:
    """Samples of recordings in a batch, without its padding."""
    parts = (batch,) if isinstance(batch, Batch) else (batch.support, batch.query)
    return sum(int(np.sum(part.length)) for part in parts)
