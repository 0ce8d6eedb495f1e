"""The command line of `jaxclone plan`; what it tells is tested in tests/export/test_plan.py."""

from __future__ import annotations

import pytest

from jaxclone.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ([], 2, "config"),
        (["--mesh.fsdp", "2"], 2, "needs a config first"),
        (["pretrain/wav2vec2_base"], 2, "topology"),
        (["pretrain/wav2vec2_bass", "--topology", "cpu:1"], 1, "did you mean"),
        (["pretrain/wav2vec2_base", "--topology", "v9:1"], 2, "no topology of kind 'v9'"),
        (["pretrain/wav2vec2_base", "--topology", "cpu:1", "--stepz", "1"], 2, "--stepz"),
        (
            ["--topology=cpu:1", "pretrain/wav2vec2_base:smoke", "--mesh.fsdp", "3"],
            1,
            "does not fit 1 devices",
        ),
        (
            ["pretrain/wav2vec2_base:smoke", "--topology", "cpu:1", "--microbatches", "3"],
            2,
            "microbatches 3 does not divide",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(capfd, arguments, code, problem):
    assert main(["plan", *arguments]) == code
    (line,) = [x for x in capfd.readouterr().err.splitlines() if not x.startswith("compiling")]
    assert line.startswith("error: ")
    assert problem in line


def test_help(capsys):
    assert main(["plan", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--topology" in out
    assert "--fit" in out
