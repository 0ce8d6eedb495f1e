"""What the demo tells before it begins the long work."""

from __future__ import annotations

import json

import pytest

from data_pipelines.build import build
from data_pipelines.sources import find_recordings
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.cli import demo
from jaxclone.cli.main import main


class Started(Exception):
    """The first stage of training was reached."""


@pytest.fixture
def built(monkeypatch, speakers):
    """Lets the demo build a corpus of the `speakers`, and stops it there; the commands it gave."""
    commands = []

    def data(args):
        out = args[args.index("--out") + 1]
        commands.append(args)
        folder = monkeypatch.recordings
        rows = find_recordings(folder)
        build(rows, out, AudioSpec(), shards=1, f0=False, workers=1)

    def train(args):
        raise Started

    monkeypatch.setattr(demo.data, "main", data)
    monkeypatch.setattr(demo.train, "main", train)
    monkeypatch.setattr(demo.evaluate_cloning, "prepare", lambda *args: None)
    return commands


@pytest.fixture
def recordings_of(monkeypatch, speakers, tmp_path):
    folder = tmp_path / "recordings"
    for name, takes in speakers.items():
        (folder / name).mkdir(parents=True)
        io.write(folder / name / "0.wav", takes[0], 16_000)
    monkeypatch.recordings = folder
    return folder


def test_a_demo_of_other_data_is_not_continued(built, recordings_of, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(Started):
        main(["demo", *out])
    with pytest.raises(Started):  # the same again: what is built stays
        main(["demo", *out])
    assert len(built) == 1
    assert json.loads((tmp_path / "out" / "corpus_command.json").read_text()) == list(built[0][1:])
    for other in (["--data", str(recordings_of)], ["--seed", "1"], ["--smoke"]):
        assert main(["demo", *out, *other]) == 1
        assert "holds a demo of other data" in capsys.readouterr().err
    assert len(built) == 1


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (["--pairs", "0"], 2, "error: --pairs is the number of conversions"),
        (["--held-out", "1"], 2, "error: --held-out must be 2 voices or more"),
        (["--data", "no/such/folder"], 2, "error: --data no/such/folder is not a folder"),
        (["--out", "{file}/out"], 1, "error: {file}/out cannot be written"),
    ],
)
def test_what_cannot_end_well_is_told_at_once(built, tmp_path, capsys, args, code, line):
    (tmp_path / "file").touch()
    args, line = (
        [a.format(file=tmp_path / "file") for a in args],
        line.format(file=tmp_path / "file"),
    )
    assert main(["demo", "--out", str(tmp_path / "out"), *args]) == code
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert not built
