"""Speech of TensorFlow Datasets, read without TensorFlow.

TFDS reads its ArrayRecord files without TensorFlow, but does not construct `tfds.features.Audio`
without it (https://github.com/tensorflow/datasets/issues/11233), and so opens no data set that has
sound. Here the two files that describe a prepared data set are read instead, and TFDS is asked only
which records a split has and how a record is laid out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Float

from data_pipelines.manifest import Row
from jaxclone.audio import io
from jaxclone.types import UserError

PREFIX = "tfds:"
# What data sets of speech call these columns; the first that one has is taken.
_AUDIO = ("speech", "audio", "voice")
_SPEAKER = ("speaker_id", "speaker", "client_id")
_TEXT = ("text", "text_normalized", "transcript", "sentence")
# How the names of their splits begin, in ours.
_SPLITS = {"train": "train", "dev": "valid", "val": "valid", "test": "test"}


@dataclasses.dataclass(frozen=True)
class TfdsSpeech:
    """A prepared data set of speech.

    Attributes:
        name: as TFDS writes it: `librispeech`, `librispeech/lazy_decode:2.1.2`.
        split: one of its splits or a part of one, `train[:10%]`; "" for all.
        folder: where it lies.
        audio: the column that holds the sound.
        sample_rate: of the sound, Hz; 0 where each recording says it itself.
        channels: of the sound.
    """

    name: str
    split: str
    folder: Path
    audio: str
    sample_rate: int
    channels: int

    @classmethod
    def open(cls, source: str) -> TfdsSpeech:
        """Finds a data set in `$TFDS_DATA_DIR`, or in `~/tensorflow_datasets`.

        Args:
            source: `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`.

        Raises:
            UserError: TFDS is not installed, the data set has not been prepared, or not in
                ArrayRecord, or it has no speech, or does not say at what rate.
        """
        parts = re.fullmatch(r"tfds:([\w/]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", source)
        if not parts:
            raise UserError(f"{source!r} is not of the form tfds:NAME[/CONFIG][:VERSION][:SPLIT]")
        name, split = parts[1], parts[2] or ""
        folder = _prepared(name)
        features = _read_json(folder / "features.json").get("featuresDict", {}).get("features", {})
        audio = _first(_AUDIO, features)
        if audio is None:
            raise UserError(f"{PREFIX}{name} has no speech, only: {', '.join(features)}")
        about: dict[str, Any] = features[audio].get("audio") or features[audio].get("tensor") or {}
        metadata = folder / "metadata.json"
        rate = about.get("sampleRate") or (
            _read_json(metadata).get("sample_rate") if metadata.is_file() else None
        )
        if not rate and not about.get("lazyDecode"):
            raise UserError(f"{PREFIX}{name} does not say the sample rate of its {audio!r}")
        shape = about.get("shape", {}).get("dimensions", [])
        channels = int(shape[1]) if len(shape) == 2 else 1
        opened = cls(name, split, folder, audio, int(rate or 0), channels)
        for part in opened._splits():
            _records(folder, part)
        return opened

    def rows(self) -> list[Row]:
        """A row for each recording.

        The column `subset` says in which split it is. Where all are read, that also decides the
        row's own split, by how its name begins: train, dev or val, test.
        """
        corpus = re.split("[/:]", self.name)[0]
        rows = []
        for split in self._splits():
            ours = "" if self.split else _our_split(split)
            for index in range(len(_records(self.folder, split))):
                example = _example(self.folder, split, index)
                speaker = _text(example, _SPEAKER)
                rows.append(
                    Row(
                        f"{PREFIX}{self.name}/{split}/{index:08d}",
                        speaker=f"{corpus}/{speaker}" if speaker else "",
                        text=" ".join(_text(example, _TEXT).split()),
                        split=ours,
                        extra={"corpus": corpus, "subset": split},
                    )
                )
        return rows

    def read(self, path: str, sample_rate: int) -> Float[np.ndarray, " t"]:
        """The recording of a row as mono at a sample rate; see `jaxclone.audio.io.read`."""
        _, split, index = path.rsplit("/", 2)
        values = _values(_example(self.folder, split, int(index)), self.audio)
        if values and isinstance(values[0], bytes):
            return io.read_bytes(values[0], sample_rate, path)
        samples = np.array(values)
        if samples.dtype.kind != "f":  # 16 bits, as data sets of speech have; more is scaled down
            samples = samples / 32768.0
        waveform = samples.astype(np.float32).reshape(-1, self.channels)
        return io.prepare(waveform, self.sample_rate, sample_rate, path)

    def _splits(self) -> list[str]:
        info = _read_json(self.folder / "dataset_info.json")
        return [self.split] if self.split else [split["name"] for split in info["splits"]]


def _prepared(name: str) -> Path:
    """The folder of a data set: its newest version, if none is named."""
    data = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    stem, _, version = name.partition(":")
    versions = [
        path.parent
        for path in (data / stem).glob(f"{version or '*'}/features.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    if not versions:
        configs = {path.parent.parent.name for path in (data / stem).glob("*/*/features.json")}
        if configs and not version:
            raise UserError(f"{PREFIX}{name} has several configs: add /{' or /'.join(configs)}")
        raise UserError(
            f"{PREFIX}{name} is not prepared in {data} (TFDS_DATA_DIR): "
            f"`tfds build {stem} --file_format=array_record` does it, which needs tensorflow"
        )
    folder = max(versions, key=lambda path: [int(number) for number in path.name.split(".")])
    found = _read_json(folder / "dataset_info.json").get("fileFormat", "tfrecord")
    if found != "array_record":
        raise UserError(
            f"{folder} is in the format {found}: prepare it anew with --file_format=array_record"
        )
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): prepare the data set again") from error


@functools.cache
def _records(folder: Path, split: str) -> ArrayRecordDataSource:
    """The records of a split, opened once a process."""
    try:
        from tensorflow_datasets.core import dataset_info, naming, splits
    except ImportError as error:
        raise UserError(
            "a data set of TFDS needs tensorflow-datasets: pip install tensorflow-datasets"
        ) from error
    info = dataset_info.read_from_json(folder / "dataset_info.json")
    template = naming.ShardedFileTemplate(
        dataset_name=info.name, data_dir=folder, filetype_suffix=info.file_format
    )
    known = splits.SplitDict.from_proto(info.splits, template)
    try:
        return ArrayRecordDataSource(known[split].file_instructions)
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"{folder} has no split {split!r} (it has: {', '.join(known)})") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder}: its split {split!r} cannot be read ({error})") from error


def _example(folder: Path, split: str, index: int) -> Any:
    """The columns of a record, as protocol buffers."""
    from tensorflow_datasets.proto import tf_example_pb2

    record = _records(folder, split)[index]
    return tf_example_pb2.Example.FromString(record).features.feature


def _values(example: Any, column: str) -> Any:
    """The numbers or bytes of a column."""
    kind = example[column].WhichOneof("kind")
    return getattr(example[column], kind).value if kind else []


def _text(example: Any, columns: tuple[str, ...]) -> str:
    """The value of the first of these columns that there is; "" when there is none."""
    column = _first(columns, example)
    values = _values(example, column) if column else []
    value = values[0] if values else ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _first(names: tuple[str, ...], columns: Any) -> str | None:
    return next((name for name in names if name in columns), None)


def _our_split(name: str) -> str:
    """What a split of a data set is to us.

    >>> [_our_split(name) for name in ("train_clean100", "dev_other", "test", "extra")]
    ['train', 'valid', 'test', 'extra']
    """
    return next((ours for theirs, ours in _SPLITS.items() if name.startswith(theirs)), name)
