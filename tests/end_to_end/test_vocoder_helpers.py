"""The smoke sizes of the vocoder's runs that need other models, from bundle to bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_pipelines.build import build
from data_pipelines.sources import find_recordings
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.cli.main import main
from jaxclone.export.bundle import load_bundle
from jaxclone.train.tracking import read_metrics
from jaxclone.tree import flatten

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def train(speakers, tmp_path_factory):
    """Runs `jaxclone train NAME:smoke` for some steps; its run folder."""
    folder = tmp_path_factory.mktemp("helpers")
    for name, takes in speakers.items():
        (folder / "recordings" / name).mkdir(parents=True)
        for take, waveform in enumerate(takes):
            io.write(folder / "recordings" / name / f"{take}.wav", waveform, 16_000)
    build(
        find_recordings(folder / "recordings"),
        folder / "corpus",
        AudioSpec(),
        shards=1,
        f0=True,
        workers=1,
    )

    def train(name: str, steps: int, *start: str):
        run = folder / name.replace("/", "-")
        given = ["--init_from", *(str(folder / other / "bundle") for other in start)]
        corpus = str(folder / "corpus")
        data = ["--data.corpus", corpus, "--valid.corpus", corpus, "--valid.split", "train"]
        args = ["train", f"{name}:smoke", "--out", str(run), "--steps", str(steps), *data]
        assert main([*args, *(given if start else [])]) == 0
        return run

    return train


def test_they_train_from_the_bundles_of_others_and_leave_a_vocoder(train):
    train("demo/pretrain", 0)
    train("demo/converter", 0, "demo-pretrain")
    before = train("demo/vocoder", 0)
    for name, start in (
        ("vocoder/composite", ["demo-pretrain"]),
        ("vocoder/finetune", ["demo-converter", "demo-vocoder"]),
    ):
        run = train(name, 2, *start)
        bundle = load_bundle(run / "bundle")
        assert set(bundle.models) == {"vocoder"}
        last = read_metrics(run)[-1]
        assert np.isfinite(last["valid/mel_l1"]), json.dumps(last)
    old, new = (flatten(load_bundle(x / "bundle").models["vocoder"]) for x in (before, run))
    # What it fine-tunes it has begun with: two small steps away.
    assert max(np.abs(old[path] - new[path]).max() for path in old) < 0.05
    assert any(np.any(old[path] != new[path]) for path in old)
