"""From recordings to a corpus: resampled, levelled, analysed and packed once."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines import corpus
from data_pipelines.manifest import Row, write_manifest
from data_pipelines.sources import SPLITS
from jaxclone.audio import io, loudness, pitch
from jaxclone.audio.spec import AudioSpec
from jaxclone.files import whole_folder
from jaxclone.types import UserError

# From the path of a row and a sample rate to a mono waveform, raising UserError.
Reader = Callable[[str, int], np.ndarray]
# One record a group: a record is read without its neighbours.
_WRITER_OPTIONS = "group_size:1"
# Below this many recordings, starting processes takes longer than they save.
_WORTH_PROCESSES = 32
# Packages whose version can change what is built.
_PACKAGES = ("numpy", "soundfile", "soxr", "array_record")


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        folder: the corpus.
        recordings: number in each split.
        seconds: of speech in each split.
        skipped: (path, reason) of each recording that could not be used.
    """

    folder: Path
    recordings: dict[str, int]
    seconds: dict[str, float]
    skipped: tuple[tuple[str, str], ...]


def build(
    rows: Sequence[Row],
    out: str | Path,
    spec: AudioSpec,
    *,
    shards: int = 4,
    f0: bool = True,
    overwrite: bool = False,
    workers: int | None = None,
    read: Reader = io.read,
    on_progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Builds a corpus from recordings.

    Each is resampled to the spec's rate, scaled to one level of speech, and stored as 16-bit FLAC
    with its F0. Phones are taken from `<recording>.phones.json` beside it, where there is one: a
    list of [symbol, start, end] in seconds. A recording that cannot be used is skipped and named
    in the report. What is written depends on the rows alone, not on the number of processes, and
    the folder appears whole or not at all: until then, one that it replaces stays.

    Args:
        rows: of `sources.find_recordings`, with their splits (`sources.split_rows`); a row
            without one goes to "train".
        out: the corpus folder.
        spec: how sound becomes frames.
        shards: files a split.
        f0: also analyse F0.
        overwrite: replace a corpus that is already in `out`.
        workers: processes; None for one a CPU core.
        read: reads a row's path at a sample rate; other processes get a copy of it.
        on_progress: called with (recordings done, recordings in all).

    Raises:
        UserError: `out` exists, no recording is usable, one is listed twice, or a split has an
            odd name.
    """
    out = Path(out)
    _require_free(out, overwrite)
    if not rows:
        raise UserError("there are no recordings to build a corpus of")
    rows = _in_order(rows)
    with whole_folder(out) as partial:
        record = functools.partial(_record, spec, f0, read)
        report = _write(rows, partial, spec, shards, f0, workers, record, on_progress)
        _require_free(out, overwrite)  # still
    return dataclasses.replace(report, folder=out)


def _require_free(out: Path, overwrite: bool) -> None:
    """Raises a UserError when a corpus may not be put there."""
    if out.exists() and not (overwrite and (out / corpus.INFO).is_file()):
        raise UserError(f"{out} already exists: choose another folder or remove it")


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows sorted by split and path."""
    counts = collections.Counter(row.path for row in rows)
    path, count = counts.most_common(1)[0]
    if count > 1:
        raise UserError(f"{path} is listed {count} times")
    rows = [dataclasses.replace(row, split=row.split or "train") for row in rows]
    for row in rows:
        if not re.fullmatch(r"\w+", row.split):
            raise UserError(f"{row.path}: {row.split!r} is no name for a split")
    known = {split: place for place, split in enumerate(SPLITS)}
    return sorted(rows, key=lambda r: (known.get(r.split, len(known)), r.split, r.path))


def _write(
    rows: list[Row],
    folder: Path,
    spec: AudioSpec,
    shards: int,
    f0: bool,
    workers: int | None,
    record_of: Callable[[Row], tuple[bytes, int] | str],
    on_progress: Callable[[int, int], None] | None,
) -> BuildReport:
    sizes = collections.Counter(row.split for row in rows)
    # A record's shard follows from its place among the rows of its split, whatever is skipped.
    n_shards = {split: min(shards, size) for split, size in sizes.items()}
    # What the corpus calls a recording has no folder of this machine in it.
    base = os.path.commonpath([os.path.dirname(os.path.abspath(row.path)) for row in rows])
    table: list[Row] = []
    skipped: list[tuple[str, str]] = []
    place: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        writers = {
            (split, shard): stack.enter_context(
                contextlib.closing(
                    ArrayRecordWriter(
                        str(folder / corpus.shard_name(split, shard, count)), _WRITER_OPTIONS
                    )
                )
            )
            for split, count in n_shards.items()
            for shard in range(count)
        }
        results = stack.enter_context(_results(rows, record_of, workers))
        for done, (row, result) in enumerate(zip(rows, results, strict=True), start=1):
            shard = place[row.split] * n_shards[row.split] // sizes[row.split]
            place[row.split] += 1
            name = os.path.relpath(os.path.abspath(row.path), base)
            if isinstance(result, str):
                skipped.append((_printable(name), _printable(result)))
            else:
                record, n_samples = result
                writers[row.split, shard].write(record)
                table.append(
                    dataclasses.replace(
                        row,
                        path=name,
                        seconds=n_samples / spec.sample_rate,
                        sample_rate=spec.sample_rate,
                        extra={**row.extra, "samples": str(n_samples)},
                    )
                )
            if on_progress is not None:
                on_progress(done, len(rows))
    if not table:
        reason = skipped[0][1]
        raise UserError(f"none of the {len(rows)} recordings can be used; the first: {reason}")
    write_manifest(table, folder / corpus.MANIFEST)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    info = corpus.info_of(spec, table, n_shards, skipped, f0, versions)
    (folder / corpus.INFO).write_text(json.dumps(info, indent=1, ensure_ascii=False), "utf-8")
    return BuildReport(
        folder=folder,
        recordings={split: part["recordings"] for split, part in info["splits"].items()},
        seconds={split: part["seconds"] for split, part in info["splits"].items()},
        skipped=tuple(skipped),
    )


@contextlib.contextmanager
def _results(
    rows: list[Row], function: Callable[[Row], tuple[bytes, int] | str], workers: int | None
) -> Iterator[Iterator[tuple[bytes, int] | str]]:
    """The function's result for each row in their order, computed by several processes."""
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(rows) < _WORTH_PROCESSES:
        yield map(function, rows)
        return
    # Spawned, since the parent may hold the threads of JAX, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    # An interrupt is for this process, which stops the others in its own time.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=ignore)
    try:
        yield pool.map(function, rows, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


def _record(spec: AudioSpec, with_f0: bool, read: Reader, row: Row) -> tuple[bytes, int] | str:
    """The record of a recording and its number of samples, or why it has none."""
    if row.problem:
        return row.problem
    try:
        waveform = loudness.normalise(read(row.path, spec.sample_rate))
        io.require_seconds(waveform, spec.sample_rate, 1 / spec.frame_rate, row.path)
        # A recording may be so quiet that nothing of it is left in 16 bits.
        io.check(io.to_16_bits(waveform) / 32768.0, row.path)
        phones = _phones(Path(row.path), spec.sample_rate, len(waveform))
    except UserError as error:
        return str(error)
    track = pitch.f0(waveform, spec) if with_f0 else None
    return corpus.pack_record(row, waveform, track, phones, spec.sample_rate), len(waveform)


def _phones(recording: Path, sample_rate: int, n_samples: int) -> corpus.Phones | None:
    path = recording.with_suffix(".phones.json")
    if not path.is_file():
        return None
    try:
        timed = json.loads(path.read_text(encoding="utf-8"))
        phones = [
            (
                str(symbol),
                min(round(start * sample_rate), n_samples),
                min(round(end * sample_rate), n_samples),
            )
            for symbol, start, end in timed
        ]
        "".join(symbol for symbol, _, _ in phones).encode()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise UserError(f"{path} is not a list of [symbol, start, end]") from None
    for symbol, start, end in phones:
        if not 0 <= start <= end:
            raise UserError(f"{path}: {symbol!r} starts before 0 or ends before it starts")
    return phones


def _printable(text: str) -> str:
    r"""A text with the name of a file, in which bytes that are not UTF-8 are spelled out.

    >>> _printable("caf\udce9.wav")
    'caf\\xe9.wav'
    """
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
