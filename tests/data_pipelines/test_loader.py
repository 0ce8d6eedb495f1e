from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from crops import SPEC, locate, take

from data_pipelines.build import build
from data_pipelines.corpus import Corpus
from data_pipelines.loader import CropConfig, EpisodeConfig, batch_shapes, make_loader
from data_pipelines.sources import find_recordings
from jaxclone.audio.spec import hifigan_22k
from jaxclone.types import Batch, Episode, UserError


def test_crops_are_of_recordings_and_f0_is_in_step(corpus: Path) -> None:
    config = CropConfig(str(corpus), batch_size=4, crop_seconds=0.6, f0=True, reference_seconds=0.4)
    opened = Corpus.open(corpus)
    starts = set()
    for batch in take(config, 7):
        assert isinstance(batch, Batch)
        assert batch.waveform.shape == (4, 9600)
        assert batch.f0.shape == (4, 30)
        assert batch.reference.shape == (4, 6400)
        assert [leaf.dtype for leaf in (batch.length, batch.speaker, batch.example)] == ["i4"] * 3
        for row in range(4):
            record, start = locate(opened, batch.waveform[row], 9600)
            content = opened[record]
            starts.add(start)
            frames = content["f0"][start // 320 : start // 320 + 30]
            np.testing.assert_array_equal(batch.f0[row], frames)
            assert batch.speaker[row] == content["speaker"]
            other, _ = locate(opened, batch.reference[row], 6400)
            assert opened[other]["speaker"] == content["speaker"]
            assert (other == record) == (content["speaker"] == -1), "unlabelled have only their own"
    assert len(starts) > 10


def test_each_recording_once_an_epoch(corpus: Path) -> None:
    config = CropConfig(str(corpus), batch_size=7, crop_seconds=2.5)
    opened = Corpus.open(corpus)
    batches = take(config, 4)
    assert [n for batch in batches for n in batch.example] == list(range(28))

    def epoch(batches: list[Batch]) -> list[int]:
        return [
            locate(opened, wave, length)[0]
            for batch in batches
            for wave, length in zip(batch.waveform, batch.length, strict=True)
        ]

    first, second = epoch(batches[:2]), epoch(batches[2:])
    assert sorted(first) == sorted(second) == list(range(14))
    assert first != second


def test_short_recordings_are_padded(corpus: Path) -> None:
    config = CropConfig(str(corpus), batch_size=14, crop_seconds=1.6, f0=True)
    (batch,) = take(config, 1)
    lengths = Corpus.open(corpus).n_samples
    assert Counter(batch.length) == Counter(np.minimum(lengths, 25_600))
    for row in range(14):
        assert batch.waveform[row, batch.length[row] - 1000 : batch.length[row]].any()
        assert not batch.waveform[row, batch.length[row] :].any()
        assert not batch.f0[row, batch.length[row] // 320 :].any()


def test_labelled(corpus: Path) -> None:
    config = CropConfig(str(corpus), batch_size=4, labelled=True)
    loader = make_loader(config, SPEC, 0, process_index=0, process_count=1)
    assert loader.epoch_size == 12
    assert all((next(loader).speaker >= 0).all() for _ in range(6))
    loader.close()


def test_one_recording_a_speaker_refers_to_itself_elsewhere(folder: Path, tmp_path: Path) -> None:
    rows = [row for row in find_recordings(folder) if row.path.endswith("pitch90/2.flac")]
    build(rows, tmp_path / "out", SPEC)
    config = CropConfig(
        str(tmp_path / "out"), batch_size=2, crop_seconds=0.8, reference_seconds=0.8
    )
    opened = Corpus.open(tmp_path / "out")
    for batch in take(config, 4):
        for wave, reference in zip(batch.waveform, batch.reference, strict=True):
            start, place = (locate(opened, crop, 12_800)[1] for crop in (wave, reference))
            free = start >= 12_800 or start + 2 * 12_800 <= 32_000
            assert abs(start - place) >= 12_800 if free else start != place


def test_buckets_hold_whole_recordings_of_similar_length(corpus: Path) -> None:
    config = CropConfig(str(corpus), batch_size=3, buckets=(2.0, 1.0, 1.5), f0=True)
    opened = Corpus.open(corpus)
    found, sizes = [], Counter()
    for batch in take(config, 4):
        size = batch.waveform.shape[1]
        sizes[size] += 1
        assert batch.f0.shape == (3, size // 320)
        for wave, length in zip(batch.waveform, batch.length, strict=True):
            record, start = locate(opened, wave, length)
            found.append(record)
            assert (start, length) == (0, opened.n_samples[record])
    # Five of 1 s, five of 1.5 s and four of 2 s: what is over goes to the next larger size, and
    # two of the last wait for the next epoch.
    assert sizes == {16_000: 1, 24_000: 2, 32_000: 1}
    assert len(set(found)) == 12, "each at most once"


def test_buckets_differ_by_epoch_and_are_never_padded(corpus: Path) -> None:
    config = CropConfig(str(corpus), batch_size=4, buckets=(1.5, 2.0))
    batches = take(config, 12)
    assert all((batch.length > 0).all() for batch in batches)
    assert [n for batch in batches for n in batch.example] == list(range(48))
    epochs = [[batch.length.tolist() for batch in batches[i : i + 3]] for i in (0, 3, 6, 9)]
    assert any(epoch != epochs[0] for epoch in epochs)


def test_batches_by_seconds_of_audio(corpus: Path) -> None:
    """Four of 1 s, two of 1.5 s or two of 2 s: at most 4.2 s in multiples of two examples."""
    config = CropConfig(str(corpus), batch_size=2, buckets=(1.0, 1.5, 2.0), batch_seconds=4.2)
    loader = make_loader(config, SPEC, 0, process_index=0, process_count=1)
    opened = Corpus.open(corpus)
    for epoch in range(3):
        found, shapes = [], Counter()
        for _ in range(6):  # of five, five and four, with one of 1 s going on to the next size
            batch = next(loader)
            shapes[batch.waveform.shape] += 1
            assert batch.example[0] == 14 * epoch + len(found)
            for wave, length in zip(batch.waveform, batch.length, strict=True):
                found.append(locate(opened, wave, length)[0])
        assert shapes == {(4, 16_000): 1, (2, 24_000): 3, (2, 32_000): 2}
        assert sorted(found) == list(range(14)), "each once an epoch"
    loader.close()
    assert batch_shapes(config, SPEC).waveform.shape == (2, 32_000)  # the longer of two of 4 s
    (state := loader.get_state()).pop("batch_seconds")  # as older ones
    with pytest.raises(UserError, match=r"the checkpoint's batch_seconds is 0\.0, now it is 4\.2"):
        loader.set_state(state)
    by_number = dataclasses.replace(config, batch_seconds=0.0)
    other = make_loader(by_number, SPEC, 0, process_index=0, process_count=1)
    other.set_state(state)
    with pytest.raises(UserError, match=r"the checkpoint's batch_seconds is 4\.2, now it is 0\.0"):
        other.set_state(loader.get_state())


def test_seconds_that_are_just_a_batch() -> None:
    for n, seconds in itertools.product(range(1, 65), (15.62, 15.6, 20.0, 10.1, 0.1, 12.3)):
        data = CropConfig(batch_size=n, buckets=(seconds,), batch_seconds=n * seconds)
        assert data.rows(seconds) == n
    assert CropConfig(batch_size=3, buckets=(12.3,), batch_seconds=36.9).rows(12.3) == 3


def test_episodes_have_disjoint_recordings(corpus: Path) -> None:
    config = EpisodeConfig(str(corpus), batch_size=2, support=2, query=3, crop_seconds=0.5)
    opened = Corpus.open(corpus)
    examples, speakers = [], []
    for episode in take(config, 4):
        assert isinstance(episode, Episode)
        assert episode.support.waveform.shape == (2, 2, 8000)
        assert episode.query.f0.shape == (2, 3, 25)
        for task in range(2):
            speaker = set(episode.support.speaker[task]) | set(episode.query.speaker[task])
            assert len(speaker) == 1
            speakers += speaker
            support, query = (
                {locate(opened, wave, 8000)[0] for wave in part.waveform[task]}
                for part in (episode.support, episode.query)
            )
            assert not support & query
            assert {opened[record]["speaker"] for record in support | query} == speaker
        examples += [*episode.support.example.ravel(), *episode.query.example.ravel()]
    assert sorted(examples) == list(range(40))
    assert Counter(speakers) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_episodes_of_single_recordings_do_not_overlap(folder: Path, tmp_path: Path) -> None:
    rows = [row for row in find_recordings(folder) if row.path.endswith("/2.flac")]
    build(rows, tmp_path / "out", SPEC)
    config = EpisodeConfig(
        str(tmp_path / "out"), batch_size=4, support=2, query=2, crop_seconds=0.5, f0=False
    )
    opened = Corpus.open(tmp_path / "out")
    (episode,) = take(config, 1)
    assert episode.support.f0 is None
    for task in range(4):
        assert all(locate(opened, w, 8000)[1] <= 8000 for w in episode.support.waveform[task])
        assert all(locate(opened, w, 8000)[1] >= 16_000 for w in episode.query.waveform[task])


def test_splits_too_large_to_keep_are_the_same(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CropConfig(str(corpus), batch_size=4, f0=True, reference_seconds=0.5)
    kept = take(config, 8)
    monkeypatch.setattr("data_pipelines.loader._CACHE_BYTES", 0)
    for one, other in zip(kept, take(config, 8), strict=True):
        np.testing.assert_array_equal(one.waveform, other.waveform)
        np.testing.assert_array_equal(one.f0, other.f0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, "has no split 'dev' (it has: train)"),
        ({"batch_size": 3}, "batch_size 3 cannot be shared by 2 processes"),
        ({"crop_seconds": 0.001}, "crop_seconds: 0.001 s is shorter than one frame"),
        ({"reference_seconds": 0.001}, "reference_seconds: 0.001 s is shorter than one frame"),
        ({"buckets": (1.0, 0.01)}, "buckets: 0.01 s is shorter than one frame"),
        ({"buckets": (1.0,), "batch_size": 32}, "14 recordings do not fill one batch of 32"),
        ({"corpus": "/nowhere"}, "/nowhere is not a built corpus"),
    ],
)
def test_impossible_configs(corpus: Path, change: dict, message: str) -> None:
    config = dataclasses.replace(CropConfig(str(corpus), batch_size=4), **change)
    with pytest.raises(UserError) as error:
        make_loader(config, SPEC, 0, process_index=0, process_count=2)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (CropConfig, {"batch_size": 0}, "batch_size must be above 0, got 0"),
        (CropConfig, {"batch_size": -4}, "batch_size must be above 0, got -4"),
        (CropConfig, {"crop_seconds": float("nan")}, "crop_seconds must be finite, got nan"),
        (CropConfig, {"crop_seconds": float("inf")}, "crop_seconds must be finite, got inf"),
        (CropConfig, {"crop_seconds": 1e9}, "crop_seconds must be 3600 or less, got 1000000000.0"),
        (CropConfig, {"buckets": (1.0, 1e5)}, "buckets must be 3600 or less, got 100000.0"),
        (
            CropConfig,
            {"reference_seconds": 1e5},
            "reference_seconds must be 3600 or less, got 100000.0",
        ),
        (CropConfig, {"batch_size": 10**9}, "batch_size must be 100000000 or less, got 1000000000"),
        (CropConfig, {"workers": 10**6}, "workers must be 10000 or less, got 1000000"),
        (EpisodeConfig, {"crop_seconds": 1e5}, "crop_seconds must be 3600 or less, got 100000.0"),
        (CropConfig, {"buckets": (1.0, 0.0)}, "buckets must be above 0, got 0.0"),
        (
            CropConfig,
            {"batch_seconds": 9.0},
            "batch_seconds goes with buckets: give their lengths too",
        ),
        (CropConfig, {"batch_seconds": -9.0}, "batch_seconds must be 0 or more, got -9.0"),
        (
            CropConfig,
            {"batch_seconds": 31.9, "buckets": (1.0, 2.0)},
            "batch_seconds 31.9 is less than batch_size 16 times the longest of buckets, 2 s",
        ),
        (CropConfig, {"reference_seconds": -1.0}, "reference_seconds must be 0 or more, got -1.0"),
        (CropConfig, {"prefetch": -1}, "prefetch must be 0 or more, got -1"),
        (CropConfig, {"workers": -1}, "workers must be 0 or more, got -1"),
        (EpisodeConfig, {"batch_size": 0}, "batch_size must be above 0, got 0"),
        (EpisodeConfig, {"support": 0}, "support must be above 0, got 0"),
        (EpisodeConfig, {"query": 0}, "query must be above 0, got 0"),
        (EpisodeConfig, {"crop_seconds": 0.0}, "crop_seconds must be above 0, got 0.0"),
        (EpisodeConfig, {"workers": -1}, "workers must be 0 or more, got -1"),
        (EpisodeConfig, {"prefetch": -1}, "prefetch must be 0 or more, got -1"),
    ],
)
def test_numbers_out_of_range(kind: type, change: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        kind(**change)
    assert str(error.value) == message


def test_corpora_that_lack_something(folder: Path, tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match="AudioSpec of the corpus"):
        make_loader(CropConfig(str(corpus)), hifigan_22k(), 0, process_index=0, process_count=1)
    rows = [row for row in find_recordings(folder) if not row.speaker]
    build(rows, tmp_path / "out", SPEC, f0=False)
    for config, message in [
        (CropConfig(str(tmp_path / "out"), f0=True), "was built without F0"),
        (CropConfig(str(tmp_path / "out"), labelled=True), "no recordings to use in its split"),
        (EpisodeConfig(str(tmp_path / "out"), f0=False), "no recordings to use in its split"),
    ]:
        with pytest.raises(UserError, match=message):
            make_loader(config, SPEC, 0, process_index=0, process_count=1)
