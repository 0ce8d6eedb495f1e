"""Log-mel spectrograms: ours against librosa's and a torch one, same clips, same run.

    python benchmarks/mel.py

Prints one JSON line: seconds of audio a second for each, and the ratios of ours to theirs, as the
median over interleaved repetitions.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import jax
import librosa
import numpy as np
import torch

from jaxclone.audio.spec import jaxclone_16k
from jaxclone.audio.spectral import log_mel, mel_filterbank

SECONDS, BATCH, REPEATS = 10, 16, 15


def main() -> None:
    """Times the three in turn."""
    spec = jaxclone_16k()
    clips = np.random.default_rng(0).normal(0, 0.1, (BATCH, SECONDS * spec.sample_rate))
    clips = clips.astype(np.float32)
    pad = (spec.n_fft - spec.hop_length) // 2
    filters = mel_filterbank(spec)
    window = torch.hann_window(spec.win_length)
    torch_filters = torch.from_numpy(np.array(filters))
    ours = jax.jit(lambda x: log_mel(x, spec))

    def with_librosa() -> np.ndarray:
        padded = np.pad(clips, ((0, 0), (pad, pad)), mode="reflect")
        sizes = {"n_fft": spec.n_fft, "hop_length": spec.hop_length, "win_length": spec.win_length}
        magnitude = np.abs(librosa.stft(padded, center=False, **sizes))
        return np.log(np.maximum(filters @ magnitude, spec.floor))

    def with_torch() -> torch.Tensor:
        padded = torch.nn.functional.pad(torch.from_numpy(clips), (pad, pad), mode="reflect")
        spectrum = torch.stft(
            padded, spec.n_fft, spec.hop_length, window=window, center=False, return_complex=True
        )
        return torch.log(torch.clamp(torch_filters @ spectrum.abs(), min=spec.floor))

    contestants: dict[str, Callable[[], object]] = {
        "jaxclone": lambda: ours(clips).block_until_ready(),
        "librosa": with_librosa,
        "torch": with_torch,
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(REPEATS + 2):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if repeat >= 2:  # the first ones compile and warm up
                times[name].append(time.perf_counter() - start)
    rates = {name: SECONDS * BATCH / statistics.median(t) for name, t in times.items()}
    ratios = {
        f"over_{name}": statistics.median(a / b for a, b in zip(times[name], times["jaxclone"]))
        for name in ("librosa", "torch")
    }
    print(json.dumps({"benchmark": "mel", "audio_seconds_per_second": rates, **ratios}))


if __name__ == "__main__":
    main()
