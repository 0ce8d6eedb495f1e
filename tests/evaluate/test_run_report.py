"""The report of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxclone.audio import io
from jaxclone.cli import evaluate_run
from jaxclone.evaluate.run_report import curves_of
from jaxclone.types import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "hubert<1>"
    lines = [
        {"step": 10, "seconds": 6.0, "loss": 4.0, "weight": 2.0},
        {"step": 20, "seconds": 9.0, "loss": 3.0, "weight": 2.0},
        {"step": 20, "seconds": 12.0, "valid/loss": 3.5},
        {"step": 30, "seconds": 60.0, "loss": float("nan")},
        {"step": 40, "seconds": 90.0, "valid/loss": 2.5, "valid/accuracy": 0.5},
    ]
    for step in (9, 20):
        (run / "media" / str(step)).mkdir(parents=True)
        tone = np.full(160, step / 100, np.float32)
        io.write(run / "media" / str(step) / "copy.wav", tone, 16_000)
    (run / "config.json").write_text('{"name": "<script>"}')
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 5')
    return run


def test_it_shows_every_curve_and_the_last_samples(run: Path):
    told = evaluate_run.main(["--run", str(run)])
    text = Path(told["report"]).read_text("utf-8")
    assert "hubert&lt;1&gt;" in text
    assert "40 steps, 1.5 minutes" in text
    assert text.count("<svg") == 2  # the loss of either; one accuracy is no curve
    assert "After 20 steps." in text
    assert text.count("<audio") == 1
    assert "<script>" not in text


def test_curves_are_by_name():
    lines = [{"step": 1, "seconds": 1.0, "b": 2.0, "a": 1.0}, {"step": 2, "seconds": 2.0, "a": 0.5}]
    assert curves_of(lines) == {"a": [(1, 1.0), (2, 0.5)], "b": [(1, 2.0)]}
    assert list(curves_of(lines, ("b", "c"))) == ["b"]


def test_damaged_lines_are_left_out(run: Path):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\n[1]\n{"loss": 3}\n"x"\n{"step": "a"}\n\xff\xfe\n{"step": 45}\n')
        file.write(b'{"step": 50, "seconds": 99, "loss": "x"}\n')
    told = evaluate_run.main(["--run", str(run)])
    assert "50 steps" in Path(told["report"]).read_text("utf-8")


def test_no_run(tmp_path: Path):
    with pytest.raises(UserError, match="not the folder of a run"):
        evaluate_run.main(["--run", str(tmp_path)])
