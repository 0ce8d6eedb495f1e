"""A built corpus: recordings of one AudioSpec in sharded ArrayRecord, read at random.

A corpus is a folder:

    corpus.json                               AudioSpec, speakers, what is in each split
    manifest.tsv                              a row for each record, in the order of the records
    <split>-00000-of-00004.array_record ...   the records, one group each so that any is read alone

A record is a msgpack map of `audio` (16-bit FLAC), `f0` (little-endian f32 bytes, or nil), `phones`
([symbol, first sample, last sample + 1], or nil), `speaker`, `text`, `language` and `seconds`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Float, Int

from data_pipelines.manifest import Row, read_table
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.types import UserError

FORMAT = 1
INFO = "corpus.json"
MANIFEST = "manifest.tsv"

Phones = list[tuple[str, int, int]]


def shard_name(split: str, shard: int, shards: int) -> str:
    """The file of one shard.

    >>> shard_name("train", 0, 4)
    'train-00000-of-00004.array_record'
    """
    return f"{split}-{shard:05d}-of-{shards:05d}.array_record"


def pack_record(
    row: Row,
    waveform: Float[np.ndarray, " t"],
    f0: Float[np.ndarray, " frames"] | None,
    phones: Phones | None,
    sample_rate: int,
) -> bytes:
    """One recording as the bytes of a record."""
    return msgpack.packb(
        {
            "audio": io.encode_flac(waveform, sample_rate),
            "f0": None if f0 is None else f0.astype("<f4").tobytes(),
            "phones": phones,
            "speaker": row.speaker,
            "text": row.text,
            "language": row.language,
            "seconds": len(waveform) / sample_rate,
        }
    )


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a corpus.

    Attributes:
        name: of the file.
        first: index of its first record.
        count: its records; they follow one another.
    """

    name: str
    first: int
    count: int

    @property
    def records(self) -> Int[np.ndarray, " n"]:
        """The indices of its records."""
        return np.arange(self.first, self.first + self.count)


class Corpus:
    """A built corpus; `corpus[i]` reads record i, alone and in any order.

    Attributes:
        folder: where it lies.
        spec: how its recordings were made.
        speakers: names by speaker index.
        table: the row of each record.
        n_samples: i64[records] the length of each.
        speaker: i32[records] the speaker index of each, -1 when unlabelled.
    """

    def __init__(self, folder: Path, spec: AudioSpec, table: list[Row], info: dict[str, Any]):
        self.folder = folder
        self.spec = spec
        self.table = table
        self.speakers: tuple[str, ...] = tuple(info["speakers"])
        self.n_samples: Int[np.ndarray, " n"] = np.array(
            [int(row.extra["samples"]) for row in table], np.int64
        )
        index = {name: i for i, name in enumerate(self.speakers)}
        self.speaker: Int[np.ndarray, " n"] = np.array(
            [index.get(row.speaker, -1) for row in table], np.int32
        )
        self._info = info
        self._index = index
        self._records = ArrayRecordDataSource(
            [
                str(folder / shard_name(split, shard, part["shards"]))
                for split, part in info["splits"].items()
                for shard in range(part["shards"])
            ]
        )

    @classmethod
    def open(cls, folder: str | Path, spec: AudioSpec | None = None) -> Corpus:
        """Opens a corpus.

        Args:
            folder: written by `data_pipelines.build.build`.
            spec: the AudioSpec that it must have; None for any.

        Raises:
            UserError: the folder is no whole corpus, or of another AudioSpec or format.
        """
        folder = Path(folder)
        path = folder / INFO
        if not path.is_file():
            raise UserError(
                f"{folder} is not a built corpus (it has no {INFO}): make one with "
                f"`jaxclone data build RECORDINGS --out {folder}`"
            )
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            found = AudioSpec(**info["spec"]) if info["format"] == FORMAT else None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read: build the corpus again") from error
        if found is None:
            raise UserError(f"{path} has format {info['format']}, not {FORMAT}: build it again")
        if spec is not None:
            spec.require(found, f"the corpus {folder}")
        missing = [
            name
            for split, part in info["splits"].items()
            for shard in range(part["shards"])
            if not (folder / (name := shard_name(split, shard, part["shards"]))).is_file()
        ]
        if missing:
            raise UserError(f"{folder} is not a whole corpus: {missing[0]} is missing")
        return cls(folder, found, read_table(folder / MANIFEST), info)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One recording.

        Returns:
            waveform f32[t]; f0 f32[t // hop_length] in Hz (0 unvoiced) or None; speaker index;
            text; language; seconds; phones (symbol, first sample, last sample + 1) or None; path.
        """
        record = msgpack.unpackb(self._records[int(index)])
        f0, phones = record["f0"], record["phones"]
        return {
            "waveform": io.decode(record["audio"]),
            "f0": None if f0 is None else np.frombuffer(f0, "<f4"),
            "speaker": self._index.get(record["speaker"], -1),
            "text": record["text"],
            "language": record["language"],
            "seconds": record["seconds"],
            "phones": None if phones is None else [tuple(phone) for phone in phones],
            "path": self.table[index].path,
        }

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its parts."""
        return tuple(self._info["splits"])

    @functools.cached_property
    def digest(self) -> str:
        """A name that no corpus of other recordings has, and that a copy of this one keeps."""
        spec = json.dumps(dataclasses.asdict(self.spec), sort_keys=True)
        manifest = (self.folder / MANIFEST).read_bytes()
        return hashlib.blake2b(spec.encode() + manifest, digest_size=8).hexdigest()

    @property
    def has_f0(self) -> bool:
        """Whether its records hold F0."""
        return self._info["f0"]

    def indices(self, split: str) -> Int[np.ndarray, " n"]:
        """The indices of a split's records.

        Raises:
            UserError: there is no such split.
        """
        if split not in self.splits:
            raise UserError(
                f"{self.folder} has no split {split!r} (it has: {', '.join(self.splits)})"
            )
        return np.flatnonzero([row.split == split for row in self.table])

    def shards(self, split: str) -> list[Shard]:
        """The files of a split, which lie in the order of their records.

        Raises:
            UserError: there is no such split.
        """
        first = int(self.indices(split)[0]) if len(self.indices(split)) else 0
        shards = []
        count = self._info["splits"][split]["shards"]
        for name in (shard_name(split, shard, count) for shard in range(count)):
            records = len(ArrayRecordDataSource([str(self.folder / name)]))
            shards.append(Shard(name, first, records))
            first += records
        return shards

    def rows(self, split: str) -> list[Row]:
        """The rows of a split, in the order of `indices`."""
        return [self.table[i] for i in self.indices(split)]

    def info(self) -> Mapping[str, Any]:
        """What is in it: format, spec, splits, speakers, skipped recordings, versions."""
        return self._info


def info_of(
    spec: AudioSpec,
    table: list[Row],
    shards: Mapping[str, int],
    skipped: list[tuple[str, str]],
    f0: bool,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """What `corpus.json` holds."""
    splits = {}
    for split, count in shards.items():
        rows = [row for row in table if row.split == split]
        splits[split] = {
            "recordings": len(rows),
            "seconds": round(sum(row.seconds for row in rows), 3),
            "speakers": len({row.speaker for row in rows} - {""}),
            "unlabelled": sum(not row.speaker for row in rows),
            "shards": count,
        }
    return {
        "format": FORMAT,
        "spec": dataclasses.asdict(spec),
        "f0": f0,
        "splits": splits,
        "speakers": sorted({row.speaker for row in table} - {""}),
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped],
        "versions": dict(versions),
    }
