from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import soundfile

from jaxclone.cli.main import main

RATE = 16_000


@pytest.fixture
def recordings(tmp_path, speakers, monkeypatch):
    """A folder, which becomes the working folder, with recordings of two voices."""
    monkeypatch.chdir(tmp_path)
    for name, pitch in (("low", "pitch90"), ("high", "pitch240")):
        for take in range(2):
            soundfile.write(f"{name}{take}.wav", speakers[pitch][take], RATE)
    return tmp_path


def evaluate(*args):
    return main(["evaluate", "pairs", *args])


@pytest.mark.usefixtures("recordings")
def test_scores_against_the_truth(capsys):
    args = ["--converted", "low0.wav", "high0.wav", "--truth", "low0.wav", "low1.wav"]
    assert evaluate(*args, "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    same, other = result["scores"]
    assert same["converted"] == "low0.wav"
    assert same["mcd_converted"] == pytest.approx(0, abs=1e-6)
    assert same["f0_rmse_cents"] == pytest.approx(0, abs=1e-6)
    assert other["mcd_converted"] > 1
    assert other["f0_rmse_cents"] > 1000
    assert result["pairs"] == 2
    mean = (same["mcd_converted"] + other["mcd_converted"]) / 2
    assert result["mcd_converted"] == pytest.approx(mean)
    assert "similarity_converted" not in result


@pytest.mark.usefixtures("recordings")
def test_the_source_is_scored_to_compare_with(capsys):
    args = ["--converted", "high0.wav", "--source", "low0.wav", "--truth", "high0.wav"]
    assert evaluate(*args) == 0
    out = capsys.readouterr().out
    scores = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    assert float(scores["mcd_source"]) > float(scores["mcd_converted"])
    assert "scores:\n  converted: high0.wav, mcd_converted: " in out


@pytest.mark.usefixtures("recordings")
def test_similarity_with_one_reference_for_all(capsys):
    pytest.importorskip("resemblyzer")
    args = ["--converted", "high0.wav", "low0.wav", "--reference", "high1.wav", "--json"]
    assert evaluate(*args) == 0
    same, other = json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]
    assert 1 >= same["similarity_converted"] > other["similarity_converted"]
    assert same["reference_seconds"] == 1.5
    assert "mcd_converted" not in same


def test_a_table(recordings, tmp_path_factory, monkeypatch, capsys):
    (recordings / "pairs.tsv").write_text(
        "truth\tconverted\tsource\nlow0.wav\tlow0.wav\t\nlow0.wav\tlow1.wav\thigh0.wav\n"
    )
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert evaluate("--table", str(recordings / "pairs.tsv"), "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    first, second = result["scores"]
    assert "mcd_source" not in first
    assert result["mcd_source"] == second["mcd_source"]


@pytest.mark.usefixtures("recordings")
def test_similarity_needs_an_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    assert evaluate("--converted", "low0.wav", "--reference", "low1.wav") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: speaker similarity needs resemblyzer")
    assert err.endswith("pip install 'jaxclone[eval]'\n")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("recordings")
def test_copies_of_the_truth_are_heard(capsys):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    args = ["--converted", "low0.wav", "high0.wav", "--truth", "low0.wav", "low0.wav"]
    assert evaluate(*args, "--copies", "--json") == 0
    same, other = json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]
    assert same["pesq"] > 4.6 > other["pesq"]
    assert same["stoi"] > 0.99 > other["stoi"]
    assert same["mel_l1"] < 1e-5 < other["mel_l1"]
    assert same["stft"] < 1e-5 < other["stft"]


@pytest.mark.usefixtures("recordings")
def test_copies_need_an_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pesq", None)
    assert evaluate("--converted", "low0.wav", "--truth", "low0.wav", "--copies") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: PESQ and STOI need pesq and pystoi")
    assert err.endswith("pip install 'jaxclone[eval]'\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "needs --converted recordings or a --table"),
        (["--converted", "low0.wav"], 2, "needs --truth or --reference to score against"),
        (
            ["--converted", "low0.wav", "--reference", "low1.wav", "--copies"],
            2,
            "--copies needs the --truth of each recording",
        ),
        (
            ["--converted", "low0.wav", "low1.wav", "--truth", "low0.wav"],
            2,
            "1 --truth for 2 --converted recordings",
        ),
        (["--converted", "low0.wav", "--thruth", "x"], 2, "did you mean '--truth'"),
        (["--converted", "none.wav", "--truth", "low0.wav"], 1, "none.wav does not exist"),
        (["--table", "none.tsv"], 1, "none.tsv cannot be read as a table"),
        (["--table", "low0.wav"], 1, "low0.wav cannot be read as a table"),
        (["--table", "empty.tsv"], 1, "columns must be converted and any of truth, source"),
        (["--table", "column.tsv"], 1, "columns must be converted and any of truth, source"),
        (["--table", "short.tsv"], 1, "short.tsv:2: wants 2 columns, with `converted`"),
        (["--table", "header.tsv"], 2, "needs --converted recordings or a --table"),
        (["--table", "short.tsv", "--truth", "low0.wav"], 2, "not both"),
    ],
)
def test_bad_input(recordings, capsys, args, code, message):
    (recordings / "empty.tsv").touch()
    (recordings / "column.tsv").write_text("converted\ttrooth\na\tb\n")
    (recordings / "short.tsv").write_text("converted\ttruth\nlow0.wav\n")
    (recordings / "header.tsv").write_text("converted\ttruth\n")
    assert evaluate(*args) == code
    out, err = capsys.readouterr()
    assert out == ""
    last = err.replace("\r", "\n").rstrip().splitlines()[-1]
    assert last.strip().startswith("error: ")
    assert message in last
    assert "Traceback" not in err


@pytest.mark.usefixtures("recordings")
def test_silence_cannot_be_scored(capsys):
    soundfile.write("silent.wav", np.zeros(RATE, np.float32), RATE)
    assert evaluate("--converted", "silent.wav", "--truth", "low0.wav") == 1
    assert "silent.wav is silent" in capsys.readouterr().err
