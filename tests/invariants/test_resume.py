"""A run that is killed and started again is the run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy

from data_pipelines.build import build
from data_pipelines.manifest import Row
from jaxclone.audio import io
from jaxclone.train.task import RunConfig

LAUNCH = Path(toy.__file__).resolve().parent.parent / "launch" / "local.py"


def command(
    corpus: Path, out: Path, steps: int, processes: int = 1, devices: int = 1, every: int = 20
) -> list[str]:
    """The command that trains, and that continues what it began."""
    options = {"--data.corpus": corpus, "--out": out, "--steps": steps, "--checkpoint_every": every}
    train = [sys.executable, toy.__file__, *(str(x) for pair in options.items() for x in pair)]
    launch = [sys.executable, str(LAUNCH), "--processes", str(processes), "--devices", str(devices)]
    return train if processes == devices == 1 else [*launch, "--", *train]


def finish(train: list[str], out: Path) -> dict[str, np.ndarray]:
    """Runs to the end; the parameters."""
    done = subprocess.run(train, env=toy.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(out / "params.npz"))


def kill(train: list[str], out: Path, step: int, seconds: float) -> int:
    """Starts, and kills all processes at once some time after a step; the last step written."""
    with subprocess.Popen(
        train, env=toy.environment(), stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        toy.wait_for_step(out, step, process)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
    return toy.steps_done(out)


def trace(out: Path) -> list[dict[str, float]]:
    """What the metrics say of the training itself, line by line."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timing = ("seconds", "audio_seconds", "data_wait")
    return [{k: v for k, v in line.items() if not k.startswith(timing)} for line in lines]


def assert_identical(killed: dict[str, np.ndarray], whole: dict[str, np.ndarray]) -> None:
    assert killed.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(killed[name].view(np.uint32), value.view(np.uint32))


def test_killed_once(toy_corpus: Path, tmp_path: Path) -> None:
    train = command(toy_corpus, tmp_path / "whole", 30, every=8)
    whole = finish(train, tmp_path / "whole")
    train = command(toy_corpus, tmp_path / "killed", 30, every=8)
    kill(train, tmp_path / "killed", 11, 0.0)
    assert_identical(finish(train, tmp_path / "killed"), whole)
    assert trace(tmp_path / "killed") == trace(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (2, 2)])
def test_killed_at_five_random_moments(
    toy_corpus: Path, tmp_path: Path, processes: int, devices: int
) -> None:
    whole_folder, folder = tmp_path / "whole", tmp_path / "killed"
    whole = finish(command(toy_corpus, whole_folder, 200, processes, devices), whole_folder)
    train = command(toy_corpus, folder, 200, processes, devices)
    chance = random.Random(processes)
    for step in sorted(chance.sample(range(170), 5)):
        reached = kill(train, folder, step, chance.uniform(0, 0.02))
        assert step <= reached < 200, "killed too late to mean anything"
    assert_identical(finish(train, folder), whole)
    assert trace(folder) == trace(whole_folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_continued_by_fewer_processes(toy_corpus: Path, tmp_path: Path) -> None:
    whole_folder, folder = tmp_path / "whole", tmp_path / "moved"
    whole = finish(command(toy_corpus, whole_folder, 60, 2, 2), whole_folder)
    finish(command(toy_corpus, folder, 40, 2, 2), folder)
    moved = finish(command(toy_corpus, folder, 60), folder)
    losses = [[line["loss"] for line in trace(path)] for path in (folder, whole_folder)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for name, value in whole.items():
        np.testing.assert_allclose(moved[name], value, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_recording_is_seen_once_an_epoch_whatever_the_number_of_processes(
    tmp_path: Path,
) -> None:
    """4 processes, then 2, then 1, then 4 again, changed in the middle of an epoch."""
    n_recordings, batch, steps = 20, 4, 25
    rows = []
    for i in range(n_recordings):  # each has a speaker of its own, by which it is told
        path = tmp_path / f"{i:02d}.wav"
        noise = np.random.default_rng(i).normal(0, 0.1, 8000)
        io.write(path, noise.astype(np.float32), 16_000)
        rows.append(Row(str(path), f"{i:02d}"))
    build(rows, tmp_path / "corpus", RunConfig().audio, shards=2, f0=False, workers=1)
    environment = toy.environment(TOY_COUNT=str(n_recordings))
    for processes, until in ((4, 7), (2, 13), (1, 18), (4, steps)):
        train = command(tmp_path / "corpus", tmp_path / "run", until, processes, every=0)
        train += ["--data.batch_size", str(batch)]
        done = subprocess.run(train, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    lines = trace(tmp_path / "run")
    assert [line["step"] for line in lines] == [*range(1, steps + 1)]
    seen = np.array([[line[f"seen_{i}"] for i in range(n_recordings)] for line in lines])
    assert (seen.sum(1) == batch).all()
    an_epoch = n_recordings // batch
    for first in range(0, steps, an_epoch):
        np.testing.assert_array_equal(seen[first : first + an_epoch].sum(0), 1)
