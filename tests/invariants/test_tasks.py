"""The invariants of the loop hold for the real tasks as they do for the toy."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxclone import config as configs
from jaxclone.export.bundle import load_bundle
from jaxclone.sharding.mesh import to_host
from jaxclone.train.errors import Interrupted
from jaxclone.train.loop import Fit, fit
from jaxclone.train.meter import Meter
from jaxclone.train.task import RunConfig
from jaxclone.types import UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TASKS = ["pretrain/wav2vec2_base", "pretrain/hubert_base_it1", "vocoder/hifigan_v1"]


@pytest.fixture(params=TASKS)
def config(request: pytest.FixtureRequest, toy_corpus: Path, tmp_path: Path) -> RunConfig:
    """A run of four steps, with whatever it learns from."""
    corpus = tmp_path / "corpus"
    shutil.copytree(toy_corpus, corpus)
    config = configs.override(
        configs.load(f"{request.param}:smoke"),
        ["--data.corpus", str(corpus), "--log_every", "1", "--checkpoint_every", "0"],
    )
    config = dataclasses.replace(config, valid=None)
    config.prepare(tmp_path / "units", load_bundle)
    return config


def train(config: RunConfig, folder: Path) -> Fit:
    return fit(config, config.task(), run_dir=folder)


def stop_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """The process gets SIGTERM while the batch of a step is read."""
    real, seen = Meter.next, []

    def asked(meter, loader):
        seen.append(loader)
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(meter, loader)

    patch.setattr(Meter, "next", asked)


def trace(folder: Path) -> list[dict[str, float]]:
    """What the metrics say of the training itself, line by line."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing = ("seconds", "audio_seconds", "data_wait")
    return [{k: v for k, v in line.items() if not k.startswith(timing)} for line in lines]


def test_a_run_that_is_stopped_is_the_run_that_was_left_alone(
    config: RunConfig, tmp_path: Path
) -> None:
    whole = train(config, tmp_path / "whole")
    assert whole.summary["compiles"] == 1
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)  # all processes agree on it with the next step
        with pytest.raises(Interrupted):
            train(config, tmp_path / "stopped")
    again = train(config, tmp_path / "stopped")
    assert again.summary["resumed_from"] == 2
    assert again.summary["compiles"] == 1
    assert len(trace(tmp_path / "whole")) == 4
    assert trace(tmp_path / "stopped") == trace(tmp_path / "whole")
    key = jax.dtypes.prng_key
    leaves = (
        [x for x in jax.tree.leaves(to_host(fit.state)) if not jax.dtypes.issubdtype(x.dtype, key)]
        for fit in (again, whole)
    )
    for found, expected in zip(*leaves, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("config", TASKS[:1], indirect=True)
def test_how_a_layer_is_computed_may_change(config: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, steps=1)
    train(config, tmp_path / "run")
    encoder = dataclasses.replace(config.model.encoder, remat="full", attention_impl="xla")
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=encoder))
    assert train(changed, tmp_path / "run").summary["resumed_from"] == 1
    encoder = dataclasses.replace(encoder, layer_drop=0.5)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=encoder))
    with pytest.raises(UserError, match=r"model\.encoder\.layer_drop is not what the run"):
        train(other, tmp_path / "run")
