"""The order of examples is a function of (seed, step): of nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.build import build
from data_pipelines.corpus import Corpus
from data_pipelines.loader import CropConfig, EpisodeConfig, Loader, make_loader
from data_pipelines.manifest import Row
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.types import Tree, UserError

SPEC = AudioSpec()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, speakers: dict[str, list[np.ndarray]]) -> Path:
    folder = tmp_path_factory.mktemp("order")
    rows = []
    for name, takes in speakers.items():
        for take, waveform in enumerate(takes):
            path = folder / f"{name}-{take}.wav"
            io.write(path, waveform, SPEC.sample_rate)
            rows.append(Row(str(path), name))
    build(rows, folder / "corpus", SPEC)
    return folder / "corpus"


@pytest.fixture(params=["crops", "buckets", "seconds", "episodes"])
def config(request: pytest.FixtureRequest, corpus: Path) -> CropConfig | EpisodeConfig:
    crops = CropConfig(str(corpus), batch_size=4, crop_seconds=0.5, f0=True, prefetch=2)
    return {
        "crops": dataclasses.replace(crops, reference_seconds=0.4),
        "buckets": dataclasses.replace(crops, buckets=(1.0, 1.6, 2.0)),
        "seconds": dataclasses.replace(crops, buckets=(1.0, 1.6, 2.0), batch_seconds=13.0),
        "episodes": EpisodeConfig(
            str(corpus), batch_size=4, support=1, query=1, crop_seconds=0.5, prefetch=2
        ),
    }[request.param]


def loaders(config: CropConfig | EpisodeConfig, count: int, seed: int = 0) -> list[Loader]:
    return [
        make_loader(config, SPEC, seed, process_index=index, process_count=count)
        for index in range(count)
    ]


def steps(parts: list[Loader], count: int) -> list[Tree]:
    """The global batches of some steps, put together of the processes' parts."""
    return [
        jax.tree.map(lambda *rows: np.concatenate(rows), *(next(part) for part in parts))
        for _ in range(count)
    ]


def assert_same(some: list[Tree], others: list[Tree]) -> None:
    for one, other in zip(some, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_seed_alone_decides(config: CropConfig | EpisodeConfig) -> None:
    (reference,) = loaders(config, 1)
    expected = steps([reference], 7)
    assert_same(steps(loaders(config, 1), 7), expected)
    different = steps(loaders(config, 1, seed=1), 7)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(different), jax.tree.leaves(expected), strict=True)
        if a.shape != b.shape or a.dtype == np.float32
    )


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_same_global_batches(
    config: CropConfig | EpisodeConfig, count: int
) -> None:
    assert_same(steps(loaders(config, count), 7), steps(loaders(config, 1), 7))


def test_resume_across_process_counts(config: CropConfig | EpisodeConfig) -> None:
    expected = steps(loaders(config, 1), 9)
    found = []
    state = None
    for count, run in [(1, 3), (2, 2), (4, 1), (1, 3)]:
        parts = loaders(config, count)
        if state is not None:
            for part in parts:
                part.set_state(state)
        found += steps(parts, run)
        # What is read ahead is not counted, every process says the same, and JSON holds it.
        (state,) = {json.dumps(part.get_state()) for part in parts}
        state = json.loads(state)
        for part in parts:
            part.close()
    assert_same(found, expected)


def test_going_back(config: CropConfig | EpisodeConfig) -> None:
    (loader,) = loaders(config, 1)
    steps([loader], 2)
    state = loader.get_state()
    assert state["step"] == 2
    first = steps([loader], 3)
    loader.set_state(state)
    assert_same(steps([loader], 3), first)


@pytest.mark.parametrize("prefetch", [0, 1, 16])
def test_reading_ahead_changes_nothing(config: CropConfig | EpisodeConfig, prefetch: int) -> None:
    other = dataclasses.replace(config, prefetch=prefetch)
    assert_same(steps(loaders(other, 1), 5), steps(loaders(config, 1), 5))


def test_worker_processes_change_nothing(corpus: Path) -> None:
    config = CropConfig(str(corpus), batch_size=4, f0=True, reference_seconds=0.4, prefetch=2)
    expected = steps(loaders(config, 1), 6)
    (loader,) = loaders(dataclasses.replace(config, workers=2), 1)
    found = steps([loader], 3)
    state = loader.get_state()
    loader.close()
    (loader,) = loaders(config, 1)
    loader.set_state(state)
    assert_same(found + steps([loader], 3), expected)


def test_examples_are_numbered_without_gap(config: CropConfig | EpisodeConfig) -> None:
    def numbers(batch: Tree) -> list[int]:
        if isinstance(config, EpisodeConfig):
            return [*batch.support.example.ravel(), *batch.query.example.ravel()]
        return [*batch.example]

    batches = steps(loaders(config, 2), 9)
    found = sorted(int(n) for batch in batches for n in numbers(batch))
    assert found == list(range(len(found)))


def test_splits_and_uses_have_random_numbers_of_their_own(tmp_path: Path, speech) -> None:
    rows = []
    for number in range(16):
        path = tmp_path / f"{number}.wav"
        io.write(path, np.roll(speech, 1000 * number), SPEC.sample_rate)
        rows.append(Row(str(path), split=("train", "valid")[number % 2]))
    build(rows, tmp_path / "corpus", SPEC, f0=False, workers=1)
    opened = Corpus.open(tmp_path / "corpus")
    found = []
    for split in ("train", "valid"):
        config = CropConfig(str(tmp_path / "corpus"), split, batch_size=8, crop_seconds=1.0)
        (batch,) = steps(loaders(config, 1), 1)
        waveforms = [opened[int(record)]["waveform"] for record in opened.indices(split)]
        where = [
            (place, start)
            for crop in batch.waveform
            for place, waveform in enumerate(waveforms)
            for start in range(0, 16_001, SPEC.hop_length)
            if np.array_equal(waveform[start : start + 16_000], crop)
        ]
        assert len(where) == 8
        found.append(where)
    (places, starts), (other_places, other_starts) = (zip(*where, strict=True) for where in found)
    assert places != other_places
    assert starts != other_starts


def test_state_of_another_corpus_is_refused(corpus: Path, tmp_path: Path) -> None:
    config = CropConfig(str(corpus), batch_size=4)
    (loader,) = loaders(config, 1)
    state = loader.get_state()
    moved = shutil.copytree(corpus, tmp_path / "moved")
    (loader,) = loaders(dataclasses.replace(config, corpus=str(moved)), 1)
    loader.set_state(state)
    rows = [
        dataclasses.replace(row, path=str(corpus.parent / row.path), speaker=f"other{row.speaker}")
        for row in Corpus.open(corpus).table
    ]
    build(rows, tmp_path / "other", SPEC, workers=1)
    (loader,) = loaders(dataclasses.replace(config, corpus=str(tmp_path / "other")), 1)
    with pytest.raises(UserError, match=r"other is not the one that this run was trained on; "):
        loader.set_state(state)


def test_state_of_other_data_is_refused(corpus: Path) -> None:
    config = CropConfig(str(corpus), batch_size=4)
    (loader,) = loaders(config, 1)
    state = loader.get_state()
    (other,) = loaders(dataclasses.replace(config, batch_size=2), 1)
    with pytest.raises(UserError, match="the checkpoint's batch_size is 4, now it is 2"):
        other.set_state(state)
