"""From a corpus folder to batches: an order that is a function of (seed, step)."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class CropConfig:
    """Fixed-length crops of single recordings.

    Attributes:
        corpus: folder written by `jaxclone data build`.
        split: which part of it.
        batch_size: examples a step, over all hosts.
        crop_seconds: length of a crop; shorter recordings are padded and masked.
        buckets: when not empty, whole recordings in batches of similar length instead of crops:
            each bucket's length in seconds.
        reference_seconds: when above 0, each example also carries a crop of this length of another
            recording of its speaker.
        f0: also carry the F0 of each frame.
        labelled: leave out recordings of unknown speakers.
        workers: processes that read ahead; 0 reads in this one.
        prefetch: batches read ahead.
    """

    corpus: str = ""
    split: str = "train"
    batch_size: int = 16
    crop_seconds: float = 2.0
    buckets: tuple[float, ...] = ()
    reference_seconds: float = 0.0
    f0: bool = False
    labelled: bool = False
    workers: int = 0
    prefetch: int = 8


@dataclasses.dataclass(frozen=True)
class EpisodeConfig:
    """Support and query crops by speaker, for meta-learning.

    Attributes:
        corpus: folder written by `jaxclone data build`.
        split: which part of it.
        batch_size: speakers (tasks) a step, over all hosts.
        support: crops a speaker to adapt on.
        query: crops a speaker to measure on, of other recordings than the support's.
        crop_seconds: length of a crop.
        workers: processes that read ahead; 0 reads in this one.
        prefetch: batches read ahead.
    """

    corpus: str = ""
    split: str = "train"
    batch_size: int = 8
    support: int = 5
    query: int = 5
    crop_seconds: float = 2.0
    workers: int = 0
    prefetch: int = 8
