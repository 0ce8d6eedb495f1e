"""The published way in miniature: MFCC, iteration 1, its features, iteration 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy import toy_corpus as toy_corpus

from data_pipelines.corpus import Corpus
from data_pipelines.units import units_made_by, units_path
from jaxclone.cli.main import main
from jaxclone.export.bundle import load_bundle
from jaxclone.train.tracking import read_metrics
from jaxclone.tree import fingerprint

STEPS = 80
FASTER = ["--steps", str(STEPS), "--optim.learning_rate", "3e-3", "--checkpoint_every", "0"]


def train(config: str, corpus: Path, out: Path, *options: str) -> int:
    data = ["--data.corpus", str(corpus), "--valid.corpus", str(corpus), "--valid.split", "train"]
    return main(["train", config, *data, "--out", str(out), *options])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_iteration_1_then_2(toy_corpus: Path, tmp_path: Path, capsys) -> None:
    folders = [tmp_path / "it1", tmp_path / "it2"]
    assert train("pretrain/hubert_base_it1:smoke", toy_corpus, folders[0], *FASTER) == 0
    second = [*FASTER, "--targets.bundle", str(folders[0] / "bundle")]
    assert train("pretrain/hubert_base_it2:smoke", toy_corpus, folders[1], *second) == 0
    capsys.readouterr()

    corpus = Corpus.open(toy_corpus)
    (shard,) = corpus.shards("train")
    frames = int((corpus.n_samples // 320).sum())
    made_by = [
        units_made_by(units_path(corpus, f"hubert-base-it{i}-smoke", shard), frames) for i in (1, 2)
    ]
    assert [about["units"] for about in made_by] == [8, 12]
    encoder = load_bundle(folders[0] / "bundle").models["encoder"]
    assert made_by[1]["features"] == {
        "encoder": fingerprint(encoder),
        "layer": 1,
        "precision": "f32",
    }
    for folder, units in zip(folders, (8, 12)):
        lines = [line for line in read_metrics(folder) if "accuracy" in line]
        late = [line["accuracy"] for line in lines[-20:]]
        assert len(lines) == STEPS
        assert sum(late) / len(late) > 1.5 / units, "chance is one of the units"
    card = (folders[1] / "bundle" / "README.md").read_text()
    assert f"what it learnt from was trained on: {folders[0] / 'bundle'}" in card

    # The same command again has nothing left to do.
    assert train("pretrain/hubert_base_it2:smoke", toy_corpus, folders[1], *second, "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed_from"] == STEPS


def test_iteration_2_needs_iteration_1(toy_corpus: Path, tmp_path: Path, capsys) -> None:
    options = ["--targets.bundle", str(tmp_path / "nothing")]
    assert train("pretrain/hubert_base_it2:smoke", toy_corpus, tmp_path / "it2", *options) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'nothing'} is not a bundle")
