"""A step is compiled once, however long the run and whatever happens between its steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import toy

from jaxclone.train.loop import fit
from jaxclone.train.task import RunConfig


@pytest.fixture
def config(toy_corpus: Path, tmp_path: Path) -> RunConfig:
    config = toy.config(toy_corpus, tmp_path / "run", eval_every=3, eval_batches=2)
    return dataclasses.replace(config, valid=config.data)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_is_compiled_once(config: RunConfig, microbatches: int) -> None:
    config = dataclasses.replace(config, microbatches=microbatches)
    assert fit(config, toy.task(config)).summary["compiles"] == 1


def test_a_step_is_compiled_once_more_by_a_run_that_continues(config: RunConfig) -> None:
    fit(dataclasses.replace(config, steps=3), toy.task(config))
    continued = fit(config, toy.task(config)).summary
    assert (continued["resumed_from"], continued["compiles"]) == (3, 1)


@pytest.mark.parametrize("batch_seconds", [0.0, 5.0])
def test_each_bucket_of_lengths_is_compiled_once(config: RunConfig, batch_seconds: float) -> None:
    data = dataclasses.replace(
        config.data, buckets=(1.1, 2.1), batch_size=2, batch_seconds=batch_seconds
    )
    config = dataclasses.replace(config, data=data, valid=None, steps=6)
    assert fit(config, toy.task(config)).summary["compiles"] == 2
