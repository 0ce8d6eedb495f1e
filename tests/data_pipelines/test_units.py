"""Units: kept beside the shards, cut in step with the samples, never half there."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from crops import SPEC, locate, take

from data_pipelines.corpus import Corpus
from data_pipelines.loader import CropConfig
from data_pipelines.units import NO_UNIT, Units, units_made_by, units_path, write_units
from jaxclone.types import UserError

NAME = "places"


def code(record: int, frames: np.ndarray) -> np.ndarray:
    """A unit that tells which frame of which recording it is of."""
    return 1000 * record + frames


@pytest.fixture
def labelled(corpus: Path, tmp_path: Path) -> Path:
    """The corpus with units that encode their own place."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    opened = Corpus.open(folder)
    for shard in opened.shards("train"):
        units = [
            code(record, np.arange(opened.n_samples[record] // SPEC.hop_length))
            for record in shard.records
        ]
        write_units(units_path(opened, NAME, shard), np.concatenate(units), {"what": "places"})
    return folder


def test_shards_hold_all_records_in_order(corpus: Path) -> None:
    shards = Corpus.open(corpus).shards("train")
    assert len(shards) == 2
    assert np.concatenate([shard.records for shard in shards]).tolist() == list(range(14))


@pytest.mark.parametrize("buckets", [(), (1.0, 1.5, 2.0)])
def test_each_crop_has_the_units_of_its_frames(labelled: Path, buckets: tuple) -> None:
    config = CropConfig(
        str(labelled), batch_size=4, crop_seconds=0.6, buckets=buckets, units=NAME, f0=True
    )
    opened = Corpus.open(labelled)
    starts = set()
    for batch in take(config, 7):
        frames = batch.waveform.shape[1] // 320
        assert batch.units.shape == batch.f0.shape == (4, frames)
        assert batch.units.dtype == np.int32
        for row in range(4):
            length = int(batch.length[row])
            record, start = locate(opened, batch.waveform[row], length)
            starts.add(start)
            want = np.full(frames, NO_UNIT)
            want[: length // 320] = code(record, start // 320 + np.arange(length // 320))
            np.testing.assert_array_equal(batch.units[row], want)
    assert buckets or len(starts) > 10


def test_not_asked_for(labelled: Path) -> None:
    (batch,) = take(CropConfig(str(labelled), batch_size=4), 1)
    assert batch.units is None


def test_workers_open_their_own_files(labelled: Path) -> None:
    units = Units(Corpus.open(labelled), NAME, "train")
    first = units[13]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(units))[13], first)  # noqa: S301
    np.testing.assert_array_equal(first, code(13, np.arange(len(first))))


def test_half_a_file_is_none(labelled: Path) -> None:
    opened = Corpus.open(labelled)
    shard = opened.shards("train")[1]
    path = units_path(opened, NAME, shard)
    frames = int((opened.n_samples[shard.records] // 320).sum())
    assert units_made_by(path, frames) == {"what": "places"}
    assert units_made_by(path, frames + 1) is None
    assert units_made_by(path.with_name("other"), frames) is None
    path.write_bytes(path.read_bytes()[:-7])
    assert units_made_by(path, frames) is None
    with pytest.raises(UserError, match="has no units 'places' for the whole of its split"):
        Units(opened, NAME, "train")


def test_a_failed_write_leaves_nothing(labelled: Path) -> None:
    opened = Corpus.open(labelled)
    path = units_path(opened, NAME, opened.shards("train")[0])
    (path.parent / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_units(path.parent / "file" / "units", np.arange(3), {})
    assert sorted(p.name for p in path.parent.iterdir() if p.name != "file") == [
        "train-00000-of-00002.safetensors",
        "train-00001-of-00002.safetensors",
    ]


@pytest.mark.parametrize("name", ["../elsewhere", "a b", ".hidden", ""])
def test_names(labelled: Path, name: str) -> None:
    opened = Corpus.open(labelled)
    with pytest.raises(UserError, match="is no name for units"):
        units_path(opened, name, opened.shards("train")[0])
