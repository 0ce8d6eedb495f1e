from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.corpora import espeak, sentences
from data_pipelines.manifest import Row
from data_pipelines.sources import find_recordings
from jaxclone.audio import io, loudness
from jaxclone.types import UserError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader")
    return espeak.synthesize(tmp_path_factory.mktemp("espeak") / "tiny", scale="tiny")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def splits(rows: list[Row]) -> dict[str, list[Row]]:
    return {name: [r for r in rows if r.split == name] for name in ("train", "valid", "test")}


def test_made_twice_it_is_the_same(tiny: Path, tmp_path: Path) -> None:
    assert files(espeak.synthesize(tmp_path / "again", scale="tiny")) == files(tiny)
    other = files(espeak.synthesize(tmp_path / "other", seed=1, scale="tiny"))
    assert other != files(tiny)


def test_held_out_voices_and_sentences(tiny: Path) -> None:
    parts = splits(find_recordings(tiny))
    voices = {name: {row.speaker for row in rows} for name, rows in parts.items()}
    texts = {name: {row.text for row in rows} for name, rows in parts.items()}
    assert voices["train"] == voices["valid"]
    assert not voices["train"] & voices["test"]
    assert not texts["train"] & (texts["valid"] | texts["test"])
    assert {row.language for row in parts["train"]} > {"en"}
    targets = [row for row in parts["test"] if row.extra["role"] == "target"]
    spoken = {(row.speaker, row.text) for row in targets}
    assert spoken == set(itertools.product(voices["test"], {row.text for row in targets}))
    references = {row.speaker for row in parts["test"] if row.extra["role"] == "reference"}
    assert references == voices["test"]


def test_recordings_and_phones(tiny: Path) -> None:
    for row in find_recordings(tiny):
        waveform = io.read(row.path, espeak.SAMPLE_RATE)
        assert len(waveform) / espeak.SAMPLE_RATE == pytest.approx(row.seconds)
        assert 1.5 < row.seconds < 6
        assert np.abs(waveform).max() < 0.999, "not clipped"
        margin = loudness.rms_db(waveform[: round(0.09 * espeak.SAMPLE_RATE)])
        assert -67 < margin < -63, "a faint noise and no digital silence"
        phones = json.loads(Path(row.path).with_suffix(".phones.json").read_text("utf-8"))
        ends = [time for _, start, end in phones for time in (start, end)]
        assert ends == sorted(ends)
        assert 0.1 <= ends[0] < ends[-1] <= row.seconds - 0.09
        assert len(phones) > len(row.text) / 3


def test_sentences_are_in_one_list_each() -> None:
    lists = [sentences.TRAIN, sentences.VALID, sentences.TARGET, sentences.REFERENCE]
    lists += sentences.OTHER.values()
    everything = [text for texts in lists for text in texts]
    assert len(everything) == len(set(everything))
    assert {voice.language for voice in espeak.VOICES} == set(sentences.OTHER)


def test_cache(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = espeak.cached(scale="tiny")
    assert folder.parent == tmp_path / "jaxclone"
    assert files(folder) == files(tiny)
    made = folder.stat().st_mtime_ns
    assert espeak.cached(scale="tiny") == folder
    assert folder.stat().st_mtime_ns == made
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setattr(espeak.sentences, "__file__", espeak.espeak_worker.__file__)
    assert espeak.cached(scale="tiny") != folder, "another program makes another corpus"


def test_without_espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    message = r"^the embedded corpus needs espeak-ng: pip install 'jaxclone\[demo\]'$"
    with pytest.raises(UserError, match=message):
        espeak.synthesize(tmp_path / "corpus")
    with pytest.raises(UserError, match=message):
        espeak.cached(tmp_path)
    assert not list(tmp_path.iterdir())


def test_failure_of_the_program_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = {**espeak._program(), "data": "/nowhere"}
    monkeypatch.setattr(espeak, "_program", lambda: program)
    with pytest.raises(
        UserError, match=r"^espeak-ng failed for the variant \w+: espeak-ng has no voice"
    ):
        espeak.synthesize(tmp_path / "corpus", scale="tiny")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_verifier_tells_the_voices_apart(tmp_path: Path) -> None:
    resemblyzer = pytest.importorskip("resemblyzer")
    pytest.importorskip("espeakng_loader")
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    rows = find_recordings(espeak.synthesize(tmp_path / "demo"))
    voices = []
    for name in sorted({row.speaker for row in rows}):
        said = [row for row in rows if row.speaker == name and row.language == "en"][:3]
        waves = [resemblyzer.preprocess_wav(io.read(row.path, 16_000)) for row in said]
        voices.append([encoder.embed_utterance(wave) for wave in waves])
    embeddings = np.array(voices)
    centres = embeddings.mean(axis=1)
    centres /= np.linalg.norm(centres, axis=-1, keepdims=True)
    between = (centres @ centres.T)[np.triu_indices(len(centres), 1)]
    assert len(centres) == 40
    assert between.max() < 0.85
    assert between.mean() < 0.65
    # Each recording is nearest to the centre of the others of its own voice.
    hits = 0
    for voice, take in itertools.product(range(len(embeddings)), range(3)):
        others = embeddings.sum(axis=1)
        others[voice] -= embeddings[voice, take]
        others /= np.linalg.norm(others, axis=-1, keepdims=True)
        hits += int((others @ embeddings[voice, take]).argmax()) == voice
    assert hits / (3 * len(embeddings)) > 0.97
