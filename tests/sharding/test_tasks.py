"""Each task's real step on a mesh is its step on one device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from data_pipelines.build import build
from data_pipelines.sources import find_recordings
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# Each with what its run is told besides.
TASKS = {
    "demo/pretrain": (),
    "demo/converter": (),
    "demo/vocoder": (),
    "demo/meta": (),
    "vocoder/multiband_melgan": ("--ema", "0.9", "--discriminator_every", "2"),
    "vocoder/composite": (),
    "vocoder/finetune": (),
}
SCRIPT = """
import dataclasses, json, sys
from jaxclone import config as configs
from jaxclone.sharding.hosts import initialise_distributed
from jaxclone.train.loop import fit

initialise_distributed()
task, corpus, out, fsdp, *options = sys.argv[1:]
run = configs.override(
    configs.load(f"{task}:smoke"),
    ["--data.corpus", corpus, "--out", out, "--steps", "3", "--log-every", "1",
     "--data.batch-size", "4", "--mesh.fsdp", fsdp, *options],
)
run = dataclasses.replace(run, valid=None)
state, summary = fit(run, run.task())
print(summary["compiles"])
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, speakers: dict[str, list[np.ndarray]]) -> Path:
    """A corpus of the recordings in `speakers`, with F0."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, takes in speakers.items():
        (folder / "recordings" / name).mkdir(parents=True)
        for take, waveform in enumerate(takes):
            io.write(folder / "recordings" / name / f"{take}.wav", waveform, 16_000)
    rows = find_recordings(folder / "recordings")
    build(rows, folder / "corpus", AudioSpec(), shards=1, f0=True, workers=1)
    return folder / "corpus"


def run(task: str, corpus: Path, out: Path, devices: int, fsdp: int) -> list[dict]:
    """The lines of metrics of three steps."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, task, str(corpus), str(out), str(fsdp), *TASKS[task]],
        env=toy.environment(JAXCLONE_CPU_DEVICES=str(devices)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rematerialization" not in done.stderr  # XLA moves whole arrays between devices
    assert int(done.stdout) == 1
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_a_mesh_of_four_is_one_device(task: str, corpus: Path, tmp_path: Path) -> None:
    alone = run(task, corpus, tmp_path / "alone", 1, 1)
    four = run(task, corpus, tmp_path / "four", 4, 2)
    assert len(alone) == 3
    for step, (one, other) in enumerate(zip(alone, four)):
        # Adam's first updates are all but signs: what rounding turned round is seen in the next.
        near = 1e-4 if step == 0 else 5e-4
        for name in (n for n in one if "loss" in n or n.endswith(("_l1", "_after", "_before"))):
            np.testing.assert_allclose(other[name], one[name], rtol=near, err_msg=name)
