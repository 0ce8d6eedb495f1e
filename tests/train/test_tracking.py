from __future__ import annotations

import dataclasses
import json
import resource
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile

from jaxclone.train.errors import RunError
from jaxclone.train.task import Media, RunConfig, TrackingConfig
from jaxclone.train.tracking import Tracker, read_metrics
from jaxclone.types import UserError

CONFIG = RunConfig(name="tracked")
TONE = np.sin(np.arange(1600) / 5).astype(np.float32)
RAMP = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, CONFIG, start=0) as tracker:
        tracker.scalars(1, 0.51234, {"loss": 2.0})
        assert (tmp_path / "metrics.jsonl").read_text() == (
            '{"step": 1, "seconds": 0.512, "loss": 2.0}\n'
        )
        tracker.scalars(2, 1.0, {"loss": 1.0})
    assert [line["loss"] for line in read_metrics(tmp_path)] == [2.0, 1.0]
    assert json.loads((tmp_path / "config.json").read_text())["name"] == "tracked"


def test_a_run_that_continues_forgets_what_came_after(tmp_path: Path) -> None:
    with Tracker(tmp_path, CONFIG, start=0) as tracker:
        for step in (1, 2, 3):
            tracker.scalars(step, float(step), {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with Tracker(tmp_path, CONFIG, start=2) as tracker:
        assert tracker.seconds == 2
        assert tracker.last == {"loss": 2.0}
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    with Tracker(tmp_path, CONFIG, start=0) as tracker:
        assert tracker.seconds == 0
    assert read_metrics(tmp_path) == []


def test_sounds_and_pictures_are_files(tmp_path: Path) -> None:
    with Tracker(tmp_path, CONFIG, start=0) as tracker:
        tracker.media(7, {"voice/source": Media("audio", 2 * TONE), "mel": Media("image", RAMP)})
    sound, rate = soundfile.read(tmp_path / "media" / "7" / "voice" / "source.wav")
    assert rate == 16_000
    np.testing.assert_allclose(sound, np.clip(2 * TONE, -1, 1), atol=1e-4)
    picture = matplotlib.image.imread(tmp_path / "media" / "7" / "mel.png")
    assert picture.shape == (3, 4, 4)
    assert picture[2, 0, :3].sum() < 0.1  # row 0, the darkest, is at the bottom
    assert picture[0, 3, :3].sum() > 2


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^the run folder .*/none cannot be written: No such file"):
        Tracker(tmp_path / "none", CONFIG, start=0)
    with Tracker(tmp_path, CONFIG, start=0) as tracker:
        (tmp_path / "media").touch()
        with pytest.raises(RunError, match=r"^the run folder .* cannot be written: [\w ]+$"):
            tracker.media(1, {"mel": Media("image", RAMP)})


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    # A limit on the size of files stands in for the disk: writing beyond it fails likewise.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Tracker(tmp_path, CONFIG, start=0) as tracker:
        tracker.scalars(1, 1.0, {"loss": 1.0})
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60, before[1]))
            with pytest.raises(RunError, match=r"^the run folder .* cannot be written: [\w ]+$"):
                tracker.scalars(2, 2.0, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_metrics(tmp_path)[0] == {"step": 1, "seconds": 1.0, "loss": 1.0}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return dataclasses.replace(CONFIG, tracking=TrackingConfig(wandb="offline", project="tests"))


def test_weights_and_biases_offline(tmp_path: Path, offline: RunConfig) -> None:
    media = {
        "source": Media("audio", TONE),
        "converted": Media("audio", TONE),
        "mel": Media("image", RAMP),
    }
    for start in (0, 2):
        with Tracker(tmp_path, offline, start) as tracker:
            tracker.scalars(start + 1, 1.0, {"loss": 0.5})
            tracker.media(start + 1, media)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    identity = (tmp_path / "wandb" / "run_id").read_text()
    assert runs
    assert all(run.name.endswith(identity) for run in runs)
    files = [path for run in runs for path in run.rglob("*") if path.is_file()]
    assert {".wandb", ".wav", ".png", ".json"} <= {path.suffix for path in files}
    (table,) = [p for p in files if p.name.endswith(".table.json")][-1:]
    assert json.loads(table.read_text())["columns"] == ["step", "source", "converted"]


def test_a_new_run_in_an_old_folder_is_another_one(tmp_path: Path, offline: RunConfig) -> None:
    identities = []
    for _ in range(2):
        with Tracker(tmp_path, offline, start=0):
            identities.append((tmp_path / "wandb" / "run_id").read_text())
    assert identities[0] != identities[1]


def test_without_wandb_its_name_is_in_the_message(
    tmp_path: Path, offline: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="needs wandb: pip install wandb"):
        Tracker(tmp_path, offline, start=0)
