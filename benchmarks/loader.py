"""Reading training crops: our loader against torch's DataLoader, same recordings, same run.

    python benchmarks/loader.py [--seconds 14] [--recordings 64] [--repeats 5]

The work: a recording at random, decoded from 16-bit FLAC, cropped at random or padded to 15.6 s,
put into a batch of 16 as f32. Ours reads them from a corpus's ArrayRecord, theirs from a file each
with soundfile; both in the training process, and nothing decoded is kept. Prints one JSON line:
seconds of audio for a second of one core's time (the processor's, not the clock's: other programs
do not count), the ratio of ours to theirs, medians over repetitions that take turns, and the cores
that accelerators would need: those rates are what published PyTorch runs of BASE reach on an H100,
about 10 % of its peak, scaled to 35 % of the peak, and to a v5e chip by its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from data_pipelines import loader
from data_pipelines.build import build
from data_pipelines.loader import CropConfig, make_loader
from data_pipelines.manifest import Row
from jaxclone.audio.spec import jaxclone_16k

RATE, CROP, BATCH = 16_000, 15.6, 16
H100 = 1944 * 35 / 10  # audio-seconds a second
CHIPS = {"h100": H100, "v5e": H100 * 197 / 989}


def recordings(folder: Path, count: int, seconds: float) -> list[Path]:
    """Something that FLAC takes for speech: noise with a spectrum and an envelope that vary."""
    draw = np.random.default_rng(0)
    paths = []
    for i in range(count):
        noise = draw.normal(0, 1, int(RATE * seconds * draw.uniform(0.8, 1.4)))
        smooth = np.convolve(noise, np.hanning(24), "same")
        envelope = np.repeat(draw.uniform(0, 1, len(noise) // 1600 + 1) ** 2, 1600)[: len(noise)]
        waveform = 0.3 * smooth * envelope / np.abs(smooth).max()
        paths.append(folder / f"{i}.flac")
        soundfile.write(paths[-1], waveform, RATE, subtype="PCM_16")
    return paths


class Crops(torch.utils.data.Dataset):
    """A random crop of each file."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        waveform, _ = soundfile.read(self.paths[index], dtype="float32")
        size = int(CROP * RATE)
        start = int(torch.randint(max(1, len(waveform) - size + 1), ()))
        piece = torch.from_numpy(waveform[start : start + size])
        return torch.nn.functional.pad(piece, (0, size - len(piece))), len(piece)


def jaxclone(corpus: Path) -> Iterator[float]:
    """Seconds of audio in each batch."""
    # Without reading ahead, which would be counted while the other's turn is timed.
    config = CropConfig(str(corpus), batch_size=BATCH, crop_seconds=CROP, prefetch=0)
    for batch in make_loader(config, jaxclone_16k(), 0):
        yield float(batch.length.sum()) / RATE


def with_torch(paths: list[Path]) -> Iterator[float]:
    """Seconds of audio in each batch."""
    while True:
        for _, lengths in torch.utils.data.DataLoader(
            Crops(paths), BATCH, shuffle=True, drop_last=True
        ):
            yield float(lengths.sum()) / RATE


def main() -> None:
    """Times the two in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recordings", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=14.0)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    loader._CACHE_BYTES = 0  # nor does the other keep anything
    torch.set_num_threads(1)  # as each worker of a DataLoader does; more would spin in between
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = recordings(folder, options.recordings, options.seconds)
        rows = [Row(str(path), "") for path in paths]
        build(rows, folder / "corpus", jaxclone_16k(), shards=4, f0=False, workers=1)
        contestants = {"jaxclone": jaxclone(folder / "corpus"), "torch": with_torch(paths)}
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for repeat in range(options.repeats + 1):
            for name, batches in contestants.items():
                start = time.process_time()
                seconds = sum(next(batches) for _ in range(options.batches))
                if repeat:  # the first ones open the files
                    rates[name].append(seconds / (time.process_time() - start))
    ours = statistics.median(rates["jaxclone"])
    result = {
        "benchmark": "loader",
        "audio_seconds_per_core_second": {
            name: round(statistics.median(found)) for name, found in rates.items()
        },
        "over_torch": round(
            statistics.median(a / b for a, b in zip(rates["jaxclone"], rates["torch"])), 3
        ),
        "cores_for": {chip: round(rate / ours, 2) for chip, rate in CHIPS.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
