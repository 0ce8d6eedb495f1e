"""The real pretraining tasks as several processes are what they are as one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from data_pipelines.build import build
from data_pipelines.corpus import Corpus
from data_pipelines.sources import find_recordings
from data_pipelines.units import Units
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.tensors import load_tensors
from jaxclone.train.tracking import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LAUNCH = Path(toy.__file__).resolve().parent.parent / "launch" / "local.py"
COMMAND = "import sys; from jaxclone.cli.main import main; sys.exit(main())"
HUBERT = "pretrain/hubert_base_it1:smoke"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, speakers: dict[str, list[np.ndarray]]) -> Path:
    """A corpus in three shards: two processes have two and one of them."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, takes in speakers.items():
        (folder / "recordings" / name).mkdir(parents=True)
        for take, waveform in enumerate(takes):
            io.write(folder / "recordings" / name / f"{take}.wav", waveform, 16_000)
    rows = find_recordings(folder / "recordings")
    build(rows, folder / "corpus", AudioSpec(), shards=3, f0=False, workers=1)
    return folder / "corpus"


def start(
    config: str, corpus: Path, out: Path, processes: int, devices: int, code: str = COMMAND
) -> subprocess.CompletedProcess:
    options = {
        "--data.corpus": corpus,
        "--valid.corpus": corpus,
        "--valid.split": "train",
        "--out": out,
    }
    train = ["train", config, *(str(x) for pair in options.items() for x in pair)]
    launch = ["--processes", str(processes), "--devices", str(devices), "--"]
    return subprocess.run(
        [sys.executable, str(LAUNCH), *launch, sys.executable, "-c", code, *train],
        env=toy.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def losses(config: str, corpus: Path, out: Path, processes: int, devices: int) -> list[float]:
    done = start(config, corpus, out, processes, devices)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


def test_the_loss_of_wav2vec2_is_that_of_one_process(built: Path, tmp_path: Path) -> None:
    found = [
        losses("pretrain/wav2vec2_base:smoke", built, tmp_path / str(n), n, 4 // n)
        for n in (1, 2, 4)
    ]
    assert len(found[0]) == 4
    np.testing.assert_allclose(found[1:], [found[0], found[0]], rtol=1e-5)


def made(corpus: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """The centres of a run, and the units of the whole corpus."""
    state, _ = load_tensors(out / "targets" / "kmeans.safetensors")
    opened = Corpus.open(corpus)
    units = Units(opened, "hubert-base-it1-smoke", "train")
    return state["centres"], np.concatenate([units[record] for record in range(len(opened))])


def test_hubert_is_that_of_one_process_from_its_units_on(built: Path, tmp_path: Path) -> None:
    found, centres, units = [], [], []
    for processes in (1, 2):
        corpus, out = tmp_path / f"corpus-{processes}", tmp_path / f"run-{processes}"
        shutil.copytree(built, corpus)
        found.append(losses(HUBERT, corpus, out, processes, processes))
        some_centres, some_units = made(corpus, out)
        centres.append(some_centres)
        units.append(some_units)
    np.testing.assert_allclose(centres[1], centres[0], rtol=1e-4, atol=1e-3)
    assert len(np.unique(units[0])) == 8
    assert np.mean(units[0] == units[1]) > 0.998  # frames half-way between two centres
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


STOPPED = """
import os, signal, sys
import jax
from jaxclone.cli.main import main
from jaxclone.train import targets

fit = targets.fit_kmeans
def stopped(*args):
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return fit(*args)
targets.fit_kmeans = stopped
sys.exit(main())
"""


def test_one_that_is_stopped_among_the_units_ends_all_to_start_again(
    built: Path, tmp_path: Path
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "run"
    shutil.copytree(built, corpus)
    done = start(HUBERT, corpus, out, 2, 1, STOPPED)
    assert done.returncode == 75, done.stderr[-3000:]
    assert done.stderr.count("stopped by a signal while the units were made") == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: process 0: process 1 (")
    assert line.endswith(
        "of 2 was told to stop; what was saved is whole, the same command continues"
    )
    kept = {path: path.stat().st_mtime_ns for path in (out / "targets").glob("features-*/*.npy")}
    assert len(kept) == 3
    assert len(losses(HUBERT, corpus, out, 2, 1)) == 4
