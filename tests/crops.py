"""Reading batches, and telling where their crops are from."""

from __future__ import annotations

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.loader import CropConfig, EpisodeConfig, make_loader
from jaxclone.audio.spec import AudioSpec

SPEC = AudioSpec()


def take(config: CropConfig | EpisodeConfig, steps: int) -> list:
    loader = make_loader(config, SPEC, 0, process_index=0, process_count=1)
    batches = [next(loader) for _ in range(steps)]
    loader.close()
    return batches


def locate(corpus: Corpus, crop: np.ndarray, length: int) -> tuple[int, int]:
    """The recording and the first sample that a crop was taken from."""
    for record in range(len(corpus)):
        waveform = corpus[record]["waveform"]
        for start in range(0, max(1, len(waveform) - length + 1), SPEC.hop_length):
            if np.array_equal(waveform[start : start + length], crop[:length]):
                return record, start
    raise AssertionError("the crop is from no recording, or does not start on a frame")
