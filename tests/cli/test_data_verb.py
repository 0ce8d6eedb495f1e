from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import soundfile

from data_pipelines.corpora import espeak
from data_pipelines.corpus import Corpus
from jaxclone.audio.spec import AudioSpec
from jaxclone.cli.main import main

RATE = 16_000


@pytest.fixture
def folder(tmp_path, speakers):
    """Recordings of four people, three each, and one file that is none."""
    for name, waveforms in speakers.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        for take, waveform in enumerate(waveforms):
            soundfile.write(tmp_path / "in" / name / f"{take}.wav", waveform, RATE)
    (tmp_path / "in" / "pitch90" / "notes.wav").write_text("not a recording")
    return tmp_path / "in"


def build(folder, *args):
    return main(["data", "build", str(folder), "--workers", "0", *args])


def test_a_folder_becomes_a_corpus(folder, tmp_path, capsys):
    out = tmp_path / "corpus"
    code = build(folder, "--out", str(out), "--held-out-speakers", "1", "--seed", "3", "--json")
    text, progress = capsys.readouterr()
    result = json.loads(text.splitlines()[-1])
    assert code == 0
    assert sum(result["recordings"].values()) == 12
    assert result["recordings"]["test"] == 3
    assert result["skipped"] == 1
    assert f"left out: {folder}/pitch90/notes.wav " in progress
    corpus = Corpus.open(out, AudioSpec())
    assert len(corpus.speakers) == 4


def test_options_of_the_corpus(folder, tmp_path):
    out = tmp_path / "corpus"
    assert build(folder, "--out", str(out), "--audio.n-mels", "40", "--shards", "1") == 0
    corpus = Corpus.open(out)
    assert corpus.spec == AudioSpec(n_mels=40)
    assert sorted(os.listdir(out))[-1] == "valid-00000-of-00001.array_record"


def test_the_embedded_corpus(folder, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(espeak, "cached", lambda scale: asked.append(scale) or folder)
    assert build("embedded", "--scale", "tiny", "--out", str(tmp_path / "corpus"), "--json") == 0
    assert asked == ["tiny"]
    assert json.loads(capsys.readouterr().out)["recordings"]["train"] > 0


def test_the_embedded_corpus_needs_an_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build("embedded", "--out", str(tmp_path / "corpus")) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-1] == "error: the embedded corpus needs espeak-ng: pip install 'jaxclone[demo]'"


def test_info_says_what_a_corpus_holds(folder, tmp_path, capsys):
    out = tmp_path / "corpus"
    build(folder, "--out", str(out), "--held-out-speakers", "1")
    capsys.readouterr()
    assert main(["data", "info", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["recordings"], result["speakers"], result["unlabelled"]) == (12, 4, 0)
    assert result["seconds"] == pytest.approx(18.0)
    assert result["splits"]["test"]["speakers"] == 1
    assert result["languages"]["unknown"]["recordings"] == 12
    assert [item["path"] for item in result["skipped"]] == ["pitch90/notes.wav"]
    assert result["audio"]["sample_rate"] == RATE
    assert main(["data", "info", str(out)]) == 0
    assert "languages:\n  unknown:\n    recordings: 12\n" in capsys.readouterr().out


def test_rows_are_chosen_by_column(folder, tmp_path, capsys):
    rows = ["path\tspeaker\tlanguage\tcorpus"]
    rows += [
        f"{name}/0.wav\t{name}\t{language}\t{corpus}"
        for name, language, corpus in (
            ("pitch90", "en", "a"),
            ("pitch130", "de", "a"),
            ("pitch180", "en", "b"),
            ("pitch240", "en", "c"),
        )
    ]
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "corpus"
    where = ["--where", "corpus=a,b", "language=en"]
    assert build(folder, "--out", str(out), *where) == 0
    assert Corpus.open(out).speakers == ("a/pitch90", "b/pitch180")
    capsys.readouterr()
    assert build(folder, "--out", str(tmp_path / "x"), "--where", "corpus=d") == 1
    assert "no recording has corpus 'd' (there are: a, b, c)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("path\tspeaker\npitch90/9.wav\tx\n", "no such recording: pitch90/9.wav"),
        ("path\tspeaker\npitch90/0.wav\tx\npitch90/0.wav\tx\n", "is listed twice"),
        ("path\tspeaker\n../secret.wav\tx\n", "leaves the folder of the manifest"),
        ("path\nx.wav\n", "missing column 'speaker'"),
    ],
)
def test_a_bad_manifest(folder, tmp_path, capsys, manifest, message):
    (folder / "manifest.tsv").write_text(manifest)
    assert build(folder, "--out", str(tmp_path / "corpus")) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {folder}/manifest.tsv")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["/nowhere", "--out", "x"], 1, "error: /nowhere: no such folder of recordings\n"),
        (["{empty}", "--out", "x"], 1, "no recordings found"),
        (["{folder}", "--out", "/dev/null/x"], 1, "error: /dev/null/x cannot be written: Not a"),
        (["{folder}", "--out", "{empty}"], 1, "already exists"),
        (["{folder}", "--out", "x", "--where", "corpus"], 2, "wants COLUMN=VALUE"),
        (["{folder}"], 2, "--out"),
        (["{folder}", "--out", "x", "--held-out-speakrs", "1"], 2, "'--held-out-speakers'"),
        (["{folder}", "--out", "x", "--held-out-speakers", "4"], 1, "none is left to train on"),
        (["{folder}", "--out", "x", "--shards", "two"], 2, "--shards: invalid literal"),
        (["{folder}", "--out", "x", "--shards", "0"], 2, "shards must be above 0, got 0"),
        (["{folder}", "--out", "x", "--shards", "-1"], 2, "shards must be above 0, got -1"),
        (["{folder}", "--out", "x", "--held-out-speakers", "-1"], 2, "must be 0 or more, got -1"),
        (["{folder}", "--out", "x", "--held-out-texts", "-5"], 2, "must be 0 or more, got -5"),
        (["{folder}", "--out", "x", "--audio.sample-rate", "0"], 2, "sample_rate must be above 0"),
        (["{folder}", "--out", "x", "--audio.sample-rate", "-16000"], 2, "got -16000"),
        (["{folder}", "--out", "x", "--audio.n-mels", "0"], 2, "n_mels must be above 0, got 0"),
        (["{folder}", "--out", "x", "--audio.floor", "-1"], 2, "floor must be above 0, got -1.0"),
        (["{folder}", "--out", "x", "--audio.fmin", "9000"], 2, "needs fmin < fmax <= sample_rate"),
    ],
)
def test_bad_input(folder, tmp_path, capsys, monkeypatch, args, code, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    args = [arg.format(folder=folder, empty=tmp_path / "empty") for arg in args]
    assert main(["data", "build", "--workers", "0", *args]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert "\r" not in err, "no progress of what never began"


def test_nothing_usable(tmp_path, capsys):
    (tmp_path / "in" / "a").mkdir(parents=True)
    soundfile.write(tmp_path / "in" / "a" / "0.wav", np.zeros(RATE, np.float32), RATE)
    assert build(tmp_path / "in", "--out", str(tmp_path / "out")) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info_of_something_else(tmp_path, capsys):
    assert main(["data", "info", str(tmp_path)]) == 1
    assert "is not a built corpus (it has no corpus.json)" in capsys.readouterr().err
