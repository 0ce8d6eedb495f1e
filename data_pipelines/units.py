"""Units: a small integer for each frame of a corpus, stored beside its shards.

    <corpus>/units/<name>/train-00000-of-00004.safetensors ...

A file a shard: `units`, i16[frames of all its records one after the other], -1 where a frame has
none; and in the header who made them. A record has n_samples // hop_length frames, frame i
beginning with sample i * hop_length, so that a crop that starts on a frame has its units from
start // hop_length on. A file appears when it is whole, and one that is cut off cannot be opened.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data_pipelines.corpus import Corpus, Shard
from jaxclone.files import whole_file
from jaxclone.types import UserError

# The unit of a frame that has none.
NO_UNIT = -1
# The largest number of different units that i16 holds.
MOST = int(np.iinfo(np.int16).max)


def units_path(corpus: Corpus, name: str, shard: Shard) -> Path:
    """Where the units of a shard are.

    Raises:
        UserError: the name is no plain file name.
    """
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise UserError(f"{name!r} is no name for units: use letters, digits, - and _")
    return corpus.folder / "units" / name / f"{Path(shard.name).stem}.safetensors"


def write_units(path: Path, units: Int[np.ndarray, " frames"], made_by: dict[str, Any]) -> None:
    """Writes the units of one shard, whole or not at all.

    Args:
        path: of `units_path`.
        units: of its records, one after the other; NO_UNIT for none.
        made_by: what made them, of numbers, strings, lists and dicts.

    Raises:
        UserError: the file cannot be written.
    """
    header = {"made_by": json.dumps(made_by, sort_keys=True)}
    with whole_file(path) as file:
        file.write(save({"units": units.astype(np.int16)}, header))


def units_made_by(path: Path, frames: int) -> dict[str, Any] | None:
    """What made the units of a shard; None when it has none, or not for that many frames."""
    try:
        with safe_open(path, framework="numpy") as file:
            whole = file.get_slice("units").get_shape() == [frames]
            return json.loads((file.metadata() or {})["made_by"]) if whole else None
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


class Units:
    """The units of a corpus; `units[record]` reads those of one record, i16[frames].

    Files are opened when they are first read, in each process for itself.

    Raises:
        UserError: a shard of the split has no units of this name, or not as many as frames.
    """

    def __init__(self, corpus: Corpus, name: str, split: str):
        self._shards = corpus.shards(split)
        self._paths = [units_path(corpus, name, shard) for shard in self._shards]
        self._starts = np.array([shard.first for shard in self._shards])
        self._frames = corpus.n_samples // corpus.spec.hop_length
        # Frames before each record, counted from the first record of the corpus.
        self._before = np.concatenate([[0], np.cumsum(self._frames)])
        self._open: dict[int, Any] = {}
        for shard, path in zip(self._shards, self._paths):
            if units_made_by(path, self.frames_of(shard)) is None:
                raise UserError(
                    f"{corpus.folder} has no units {name!r} for the whole of its split {split!r} "
                    f"({path.name} is missing or of other recordings): the training that makes "
                    "them has not got there"
                )

    def frames_of(self, shard: Shard) -> int:
        """Frames of all records of a shard."""
        return int(self._before[shard.first + shard.count] - self._before[shard.first])

    def __getitem__(self, record: int) -> Int[np.ndarray, " frames"]:
        place = int(np.searchsorted(self._starts, record, side="right")) - 1
        if place not in self._open:
            with safe_open(self._paths[place], framework="numpy") as file:
                self._open[place] = file.get_slice("units")
        start = int(self._before[record] - self._before[self._shards[place].first])
        return self._open[place][start : start + int(self._frames[record])]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}
