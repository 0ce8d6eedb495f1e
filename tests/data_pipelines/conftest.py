"""A small corpus that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.build import build
from data_pipelines.manifest import Row, write_manifest
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec

SPEC = AudioSpec()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, speakers: dict[str, list[np.ndarray]]) -> Path:
    """Recordings with a manifest: four speakers by three sentences, and two by nobody known."""
    folder = tmp_path_factory.mktemp("recordings")
    rows = []
    for name, takes in speakers.items():
        for take, waveform in enumerate(takes):
            path = folder / name / f"{take}.flac"
            path.parent.mkdir(exist_ok=True)
            io.write(path, waveform, SPEC.sample_rate)
            seconds = len(waveform) / SPEC.sample_rate
            rows.append(Row(str(path), name, f"Sentence {take}.", "en", seconds, 16_000))
    for number in range(2):
        path = folder / f"nobody{number}.wav"
        io.write(path, speakers["pitch90"][number][::-1], SPEC.sample_rate)
        rows.append(Row(str(path), "", "", "en", extra={"notes": "found"}))
    write_manifest(rows, folder / "manifest.tsv")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A built corpus of those recordings, all in train."""
    from data_pipelines.sources import find_recordings

    out = tmp_path_factory.mktemp("built") / "corpus"
    build(find_recordings(folder), out, SPEC, shards=2)
    return out
