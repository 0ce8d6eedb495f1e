"""From a corpus folder to batches: an order that is a function of (seed, step).

A step is described first (`batching`: which recordings) and then read (`readers`: which crops),
both as functions of (seed, step) or (seed, example), so that Grain may read ahead in threads and
processes, and a run may stop at any step and go on with another number of hosts, without a change
in what it sees.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from data_pipelines.batching import Bucketed, Shuffled, Step
from data_pipelines.corpus import Corpus
from data_pipelines.readers import CropReader, EpisodeReader, Recordings
from data_pipelines.units import Units
from jaxclone.audio.spec import AudioSpec
from jaxclone.types import Batch, Episode, UserError, require_positive

# Splits up to this many bytes of 16-bit samples are decoded once and kept.
_CACHE_BYTES = 1 << 29
# Beyond these, memory or processes run out before anything is said: they are slips of the hand.
_MOST_SECONDS, _MOST, _MOST_AHEAD = 3600, 100_000_000, 10_000


@dataclasses.dataclass(frozen=True)
class CropConfig:
    """Fixed-length crops of single recordings.

    Attributes:
        corpus: folder written by `jaxclone data build`.
        split: which part of it.
        batch_size: examples a step, over all hosts; see `batch_seconds`.
        crop_seconds: length of a crop; shorter recordings are padded and masked.
        buckets: when not empty, whole recordings in batches of similar length instead of crops:
            each bucket's length in seconds. Longer recordings are cropped to the longest.
        batch_seconds: when above 0, seconds of audio a step, padding included, in place of a number
            of examples: each bucket has as many as fill them, rounded down to a multiple of
            `batch_size`, which is what devices and micro-batches share out.
        reference_seconds: when above 0, each example also carries a crop of this length of another
            recording of its speaker.
        f0: also carry the F0 of each frame.
        units: also carry the unit of each frame, of the units of this name
            (`data_pipelines.units`); "" for none.
        labelled: leave out recordings of unknown speakers.
        workers: processes that read ahead; 0 reads in this one.
        prefetch: batches read ahead.
    """

    corpus: str = ""
    split: str = "train"
    batch_size: int = 16
    crop_seconds: float = 2.0
    buckets: tuple[float, ...] = ()
    batch_seconds: float = 0.0
    reference_seconds: float = 0.0
    f0: bool = False
    units: str = ""
    labelled: bool = False
    workers: int = 0
    prefetch: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "crop_seconds", "buckets", most=_MOST_SECONDS)
        require_positive(self, "reference_seconds", or_zero=True, most=_MOST_SECONDS)
        require_positive(self, "batch_seconds", or_zero=True, most=_MOST)
        require_positive(self, "batch_size", most=_MOST)
        require_positive(self, "workers", "prefetch", or_zero=True, most=_MOST_AHEAD)
        if self.batch_seconds and not self.buckets:
            raise UserError("batch_seconds goes with buckets: give their lengths too")
        if self.batch_seconds and not self.rows(max(self.buckets)):
            raise UserError(
                f"batch_seconds {self.batch_seconds:g} is less than batch_size {self.batch_size} "
                f"times the longest of buckets, {max(self.buckets):g} s"
            )

    def rows(self, seconds: float) -> int:
        """Examples of a step whose examples are so long.

        >>> data = CropConfig(batch_size=8, buckets=(2.0, 15.0), batch_seconds=300.0)
        >>> data.rows(2.0), data.rows(15.0)
        (144, 16)
        """
        if not self.batch_seconds:
            return self.batch_size
        whole = self.batch_seconds / (self.batch_size * seconds)
        return self.batch_size * math.floor(whole * (1 + 1e-9))  # 0.9 / 0.3 is less than 3


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
        f0: also carry the F0 of each frame.
        workers: processes that read ahead; 0 reads in this one.
        prefetch: batches read ahead.
    """

    corpus: str = ""
    split: str = "train"
    batch_size: int = 8
    support: int = 5
    query: int = 5
    crop_seconds: float = 2.0
    f0: bool = True
    workers: int = 0
    prefetch: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "crop_seconds", most=_MOST_SECONDS)
        require_positive(self, "batch_size", "support", "query", most=_MOST)
        require_positive(self, "workers", "prefetch", or_zero=True, most=_MOST_AHEAD)


def batch_shapes(data: CropConfig | EpisodeConfig, spec: AudioSpec) -> Batch | Episode:
    """The shapes of what a loader of this config gives; of its buckets, if any, the longest."""

    def crops(*lead: int, seconds: float, reference: float = 0.0, units: str = "") -> Batch:
        def shape(dtype: type, *rest: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*lead, *rest), dtype)

        samples = spec.n_samples(seconds)
        frames = spec.n_frames(samples)
        return Batch(
            waveform=shape(np.float32, samples),
            length=shape(np.int32),
            speaker=shape(np.int32),
            example=shape(np.int32),
            f0=shape(np.float32, frames) if data.f0 else None,
            units=shape(np.int32, frames) if units else None,
            reference=shape(np.float32, spec.n_samples(reference)) if reference else None,
            reference_length=shape(np.int32) if reference else None,
        )

    if isinstance(data, EpisodeConfig):
        size = data.batch_size
        return Episode(
            support=crops(size, data.support, seconds=data.crop_seconds),
            query=crops(size, data.query, seconds=data.crop_seconds),
        )
    seconds = max(data.buckets, default=data.crop_seconds)
    rows = data.rows(seconds)
    return crops(rows, seconds=seconds, reference=data.reference_seconds, units=data.units)


class Loader:
    """Iterates over this process's part of each global batch, as arrays of numpy.

    Attributes:
        epoch_size: examples (or speakers) that an epoch has.
    """

    def __init__(
        self,
        order: Shuffled | Bucketed,
        reader: CropReader | EpisodeReader,
        identity: dict[str, Any],
        *,
        folder: Path,
        epoch_size: int,
        process_index: int,
        process_count: int,
        workers: int,
        prefetch: int,
    ):
        self.epoch_size = epoch_size
        self._steps = (
            grain.MapDataset.source(order).map(_Part(process_index, process_count)).map(reader)
        )
        self._identity = identity
        self._folder = folder
        self._workers = workers
        self._prefetch = prefetch
        self._step = 0
        self._iterator: Any = None

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch | Episode:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        if self._workers:
            # Out of the workers' shared memory, which Grain takes back.
            batch = jax.tree.map(np.array, batch)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """What to give to `set_state` to continue behind the last batch: a small dict for JSON.

        It is the same in every process and fits any number of them.
        """
        return {"step": self._step, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called.

        Raises:
            UserError: the state is of another corpus, seed or batch size, so that continuing would
                repeat some examples and leave out others.
        """
        if state.get("corpus") != self._identity["corpus"]:
            raise UserError(
                f"the corpus {self._folder} is not the one that this run was trained on; continue "
                "with that one (it may have moved), or start a new run"
            )
        state = {"batch_seconds": 0.0, **state}  # older ones have none
        for name, mine in self._identity.items():
            if state.get(name) != mine:
                raise UserError(
                    f"cannot continue with this data: the checkpoint's {name} is "
                    f"{state.get(name)!r}, now it is {mine!r}"
                )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stops reading ahead; the next batch starts it again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self) -> Any:
        # One thread: decoding holds the interpreter's lock often enough that more are slower.
        # The buffer is counted in batches, and Grain's default of 500 would be gigabytes.
        options = grain.ReadOptions(
            num_threads=min(1, self._prefetch), prefetch_buffer_size=self._prefetch
        )
        steps = self._steps[self._step :].to_iter_dataset(options)
        if self._workers:
            # Grain's workers read absl flags, which nobody parses here.
            flags.FLAGS.mark_as_parsed()
            ahead = -(-self._prefetch // self._workers)
            steps = steps.mp_prefetch(
                grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=ahead)
            )
        return iter(steps)


def make_loader(
    config: CropConfig | EpisodeConfig,
    spec: AudioSpec,
    seed: int,
    *,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Loader:
    """The loader of a split: without end, in a new order each epoch.

    Rows of the global batch are the same for every number of processes, each having a contiguous
    part. Batches run on from one epoch into the next.

    Args:
        config: what to read; `CropConfig` gives `Batch`es, `EpisodeConfig` `Episode`s.
        spec: the AudioSpec that the corpus must have.
        seed: of the order, crops and choices.
        process_index: which part of the batch is ours; None for this JAX process.
        process_count: parts; None for the number of JAX processes.

    Raises:
        UserError: no such corpus or split, another AudioSpec, nothing that fits the config, or a
            batch size that the processes cannot share.
    """
    if process_index is None or process_count is None:
        process_index, process_count = jax.process_index(), jax.process_count()
    if config.batch_size % process_count:
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared by {process_count} processes"
        )
    if not config.corpus:
        where = "data" if config.split == "train" else "valid"
        raise UserError(f"no corpus is named: add --{where}.corpus FOLDER")
    corpus = Corpus.open(config.corpus, spec)
    records = corpus.indices(config.split)
    if config.f0 and not corpus.has_f0:
        raise UserError(f"{config.corpus} was built without F0: build it again with F0")
    if isinstance(config, EpisodeConfig) or config.labelled:
        records = records[corpus.speaker[records] >= 0]
    if not len(records):
        raise UserError(f"{config.corpus} has no recordings to use in its split {config.split!r}")
    size = _samples(config.crop_seconds, spec, "crop_seconds")
    copies = max(1, config.workers)
    keep = 2 * int(corpus.n_samples[records].sum()) * copies <= _CACHE_BYTES
    units = None
    if isinstance(config, CropConfig) and config.units:
        units = Units(corpus, config.units, config.split)
    recordings = Recordings(corpus, records, config.f0, keep, units)
    seconds = config.batch_seconds if isinstance(config, CropConfig) else 0.0
    # What is validated on is drawn by itself, whatever is trained on.
    order_name, crop_name = (f"{config.split}/{what}" for what in ("order", "crops"))
    order: Shuffled | Bucketed
    reader: CropReader | EpisodeReader
    if isinstance(config, EpisodeConfig):
        items = np.unique(corpus.speaker[records]).astype(np.int64)
        order = Shuffled(items, config.batch_size, seed, order_name)
        reader = EpisodeReader(recordings, seed, crop_name, size, config.support, config.query)
    else:
        items = records
        if config.buckets:
            rows = {_samples(x, spec, "buckets"): config.rows(x) for x in config.buckets}
            order = Bucketed(items, corpus.n_samples[records], rows, seed, order_name)
        else:
            order = Shuffled(items, config.batch_size, seed, order_name)
        reference = config.reference_seconds and _samples(
            config.reference_seconds, spec, "reference_seconds"
        )
        reader = CropReader(recordings, seed, crop_name, size, int(reference))
    return Loader(
        order,
        reader,
        {
            "corpus": corpus.digest,
            "seed": seed,
            "batch_size": config.batch_size,
            "epoch_size": len(items),
            "batch_seconds": seconds,
        },
        folder=corpus.folder,
        epoch_size=len(items),
        process_index=process_index,
        process_count=process_count,
        workers=config.workers,
        prefetch=config.prefetch,
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    """Takes the rows of one process."""

    index: int
    count: int

    def __call__(self, step: Step) -> Step:
        return step.part(self.index, self.count)


def _samples(seconds: float, spec: AudioSpec, name: str) -> int:
    samples = spec.n_samples(seconds)
    if samples < spec.hop_length:
        raise UserError(f"{name}: {seconds:g} s is shorter than one frame")
    return samples
