"""The independent speaker verifier."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxclone.audio import io
from jaxclone.evaluate.similarity import SpeakerVerifier, cosine
from jaxclone.types import UserError

SPEECH = Path(__file__).parents[3] / "shared" / "data" / "speech"


@pytest.fixture(scope="module")
def verifier() -> SpeakerVerifier:
    pytest.importorskip("torch")
    return SpeakerVerifier()


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    with pytest.raises(UserError) as error:
        SpeakerVerifier()
    assert str(error.value).endswith("pip install 'jaxclone[eval]'")
    assert "\n" not in str(error.value)


def test_embedding_is_a_unit_vector_at_any_rate(verifier, capfd):
    t = np.arange(3 * 16_000) / 16_000
    pulses = np.sign(np.sin(2 * np.pi * 130 * t)) * (np.sin(2 * np.pi * 2 * t) > -0.5)
    voice = (0.1 * pulses).astype(np.float32)
    embedding = verifier.embed(voice, 16_000)
    assert embedding.shape == (256,)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(verifier.embed(voice, 16_000), embedding)
    again = verifier.embed(io.resample(voice, 16_000, 22_050), 22_050)
    assert cosine(embedding, again) > 0.98
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("samples", [0, 48, 16_000])
def test_silence_has_no_voice(verifier, samples: int):
    with pytest.raises(UserError) as error:
        verifier.embed(np.zeros(samples, np.float32), 16_000)
    assert str(error.value) == "speaker similarity: no speech was found in the recording"


def test_tells_speakers_apart(verifier):
    if not (SPEECH / "manifest.tsv").exists():
        pytest.skip("the real recordings are not here")
    with (SPEECH / "manifest.tsv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file, delimiter="\t") if r["corpus"] == "cmu_arctic"]
    speakers: dict[str, list[str]] = {}
    for row in rows:
        speakers.setdefault(row["speaker"], []).append(row["path"])
    first, second = [paths[:2] for paths in speakers.values() if len(paths) > 1][:2]
    waveforms = [io.read(SPEECH / path, 16_000) for path in (*first, second[0])]
    same = verifier.similarity(waveforms[0], waveforms[1], 16_000)
    other = verifier.similarity(waveforms[0], waveforms[2], 16_000)
    assert same > 0.8 > other
