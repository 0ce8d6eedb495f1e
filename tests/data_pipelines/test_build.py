from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines import build as build_module
from data_pipelines.build import build
from data_pipelines.corpus import Corpus
from data_pipelines.sources import find_recordings, split_rows
from jaxclone.audio import io, loudness, pitch
from jaxclone.audio.spec import AudioSpec, hifigan_22k
from jaxclone.types import UserError

SPEC = AudioSpec()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_records_hold_what_was_recorded(folder: Path, corpus: Path) -> None:
    opened = Corpus.open(corpus, SPEC)
    assert len(opened) == 14
    assert opened.splits == ("train",)
    assert opened.speakers == ("pitch130", "pitch180", "pitch240", "pitch90")
    names = [row.path for row in opened.rows("train")]
    index = names.index("pitch180/2.flac")
    example = opened[index]
    waveform = loudness.normalise(io.read(folder / "pitch180/2.flac", 16_000))
    np.testing.assert_allclose(example["waveform"], waveform, atol=2**-16)
    np.testing.assert_array_equal(example["f0"], pitch.f0(waveform, SPEC))
    assert len(example["f0"]) == len(waveform) // SPEC.hop_length
    assert example["speaker"] == opened.speaker[index] == opened.speakers.index("pitch180")
    assert (example["text"], example["language"]) == ("Sentence 2.", "en")
    assert example["seconds"] == pytest.approx(2.0)
    assert opened.n_samples[index] == len(waveform)
    assert opened[names.index("nobody0.wav")]["speaker"] == -1
    part = opened.info()["splits"]["train"]
    assert (part["recordings"], part["speakers"], part["unlabelled"]) == (14, 4, 2)
    assert part["seconds"] == pytest.approx(4 * 4.5 + 2.5, abs=0.01)


def test_other_rate_and_phones(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "pitch90", tmp_path / "in" / "pitch90")
    phones = tmp_path / "in" / "pitch90" / "0.phones.json"
    phones.write_text('[["a", 0.0, 0.5], ["b", 0.5, 2.0]]')
    spec = hifigan_22k()
    build(find_recordings(tmp_path / "in"), tmp_path / "out", spec, f0=False)
    example = Corpus.open(tmp_path / "out", spec)[0]
    assert len(example["waveform"]) == 22_050
    assert example["f0"] is None
    assert example["phones"] == [("a", 0, 11_025), ("b", 11_025, 22_050)], "not beyond the end"


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (96_000, 2)])
def test_any_rate_and_channels(
    speech: np.ndarray, tmp_path: Path, rate: int, channels: int
) -> None:
    samples = np.stack([io.resample(speech, 16_000, rate)] * channels, axis=1)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", samples, rate)
    report = build(find_recordings(tmp_path / "in"), tmp_path / "out", SPEC)
    assert report.seconds["train"] == pytest.approx(len(speech) / 16_000, abs=1e-3)


def test_bad_recordings_are_skipped_and_named(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(folder / "pitch90", source / "ann")
    (source / "ann" / "text.wav").write_text("this is no audio")
    (source / "ann" / "empty.wav").write_bytes(b"")
    io.write(source / "ann" / "click.wav", np.full(48, 0.5, np.float32), 16_000)
    (source / "ann" / "2.phones.json").write_text("[1, 2]")
    seen: list[tuple[int, int]] = []
    report = build(
        find_recordings(source),
        tmp_path / "out",
        SPEC,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert report.recordings == {"train": 2}
    reasons = dict(report.skipped)
    assert set(reasons) == {"text.wav", "empty.wav", "click.wav", "2.flac"}
    assert "is an empty file" in reasons["empty.wav"]
    assert "text.wav" in reasons["text.wav"]
    assert "lasts 0.003 s, at least 0.02 s is needed" in reasons["click.wav"]
    assert "is not a list of [symbol, start, end]" in reasons["2.flac"]
    assert seen[-1] == (6, 6)
    info = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert {row["path"] for row in info["skipped"]} == set(reasons)
    assert len(Corpus.open(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("phones", "message"),
    [
        ('[["a", 0.0, Infinity]]', "is not a list of [symbol, start, end]"),
        ('[["a", NaN, 1.0]]', "is not a list of [symbol, start, end]"),
        ('[["\\ud800", 0.0, 1.0]]', "is not a list of [symbol, start, end]"),
        ("[" * 100_000, "is not a list of [symbol, start, end]"),
        ('[["a", -1e300, 1.0]]', "'a' starts before 0 or ends before it starts"),
        ('[["a", 0.5, 0.2]]', "'a' starts before 0 or ends before it starts"),
    ],
)
def test_bad_phones(folder: Path, tmp_path: Path, phones: str, message: str) -> None:
    shutil.copytree(folder / "pitch90", tmp_path / "in" / "ann")
    (tmp_path / "in" / "ann" / "1.phones.json").write_text(phones)
    report = build(find_recordings(tmp_path / "in"), tmp_path / "out", SPEC, f0=False)
    ((name, reason),) = report.skipped
    assert name == "1.flac"
    assert message in reason
    assert len(Corpus.open(tmp_path / "out")) == 2


def test_bad_names_and_texts(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(folder / "pitch90", source / "ann")
    (source / "ann" / "1.txt").write_bytes("café".encode("latin-1"))
    (source / "ann" / "2.txt").write_text("word " * 50_000)
    foreign = os.fsdecode(b"Ren\xe9")
    shutil.copytree(folder / "pitch130", source / foreign)
    io.write(source / "ann" / f"{foreign}.wav", np.full(16_000, 0.5, np.float32), 16_000)
    rows = split_rows(find_recordings(source), 0, held_out_speakers=0, held_out_texts=0)
    report = build(rows, tmp_path / "out", SPEC, f0=False)
    assert sum(report.recordings.values()) == 1
    reasons = dict(report.skipped)
    assert set(reasons) == {
        "ann/1.flac",
        "ann/2.flac",
        r"ann/Ren\xe9.wav",
        *(rf"Ren\xe9/{take}.flac" for take in range(3)),
    }
    assert reasons["ann/1.flac"].endswith("ann/1.txt is not a text in UTF-8")
    assert "is no transcript of a recording: it has 249999 letters" in reasons["ann/2.flac"]
    assert reasons[r"Ren\xe9/0.flac"].endswith(r"in/Ren\xe9/0.flac: its name is not in UTF-8")
    assert len(Corpus.open(tmp_path / "out")) == 1


def test_what_sixteen_bits_do_not_hold_is_silence(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "pitch90", tmp_path / "in" / "ann")
    waveform = io.read(folder / "pitch90" / "0.flac", 16_000)
    for name, gain in (("gone", 1e-30), ("faint", 1e-4)):
        path = tmp_path / "in" / "ann" / f"{name}.wav"
        soundfile.write(path, waveform * np.float32(gain), 16_000, subtype="FLOAT")
    report = build(find_recordings(tmp_path / "in"), tmp_path / "out", SPEC, f0=False)
    ((name, reason),) = report.skipped
    assert name == "gone.wav"
    assert "is silent" in reason
    assert report.recordings == {"train": 4}


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "in" / "ann").mkdir(parents=True)
    (tmp_path / "in" / "ann" / "a.wav").write_text("this is no audio")
    with pytest.raises(UserError, match=r"none of the 1 recordings can be used; .* a?.*a\.wav"):
        build(find_recordings(tmp_path / "in"), tmp_path / "out", SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["in"], "nothing is left behind"
    with pytest.raises(UserError, match="there are no recordings to build a corpus of"):
        build([], tmp_path / "out", SPEC)


def test_output_does_not_depend_on_the_processes(
    folder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_WORTH_PROCESSES", 0)
    build(find_recordings(folder), tmp_path / "two", SPEC, shards=2, workers=2)
    assert contents(tmp_path / "two") == contents(corpus)


def test_interrupted_build_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(find_recordings(folder), tmp_path / "out", SPEC, on_progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_existing_folder(folder: Path, corpus: Path, tmp_path: Path) -> None:
    rows = find_recordings(folder)
    with pytest.raises(UserError, match="already exists: choose another folder or remove it"):
        build(rows, folder, SPEC, overwrite=True)
    shutil.copytree(corpus, tmp_path / "out")
    with pytest.raises(UserError, match="already exists"):
        build(rows, tmp_path / "out", SPEC)
    build(rows[:2], tmp_path / "out", SPEC, overwrite=True)
    assert len(Corpus.open(tmp_path / "out")) == 2


def test_a_corpus_is_not_lost_when_its_successor_cannot_take_its_place(
    folder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(corpus, tmp_path / "out")
    before = contents(tmp_path / "out")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target == tmp_path / "out" and ".new." in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UserError, match="out cannot be written: Input/output error"):
        build(find_recordings(folder)[:2], tmp_path / "out", SPEC, f0=False, overwrite=True)
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_came_meanwhile_stays(folder: Path, tmp_path: Path) -> None:
    def meanwhile(done: int, total: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine").touch()

    rows = find_recordings(folder)[:2]
    with pytest.raises(UserError, match="out already exists"):
        build(rows, tmp_path / "out", SPEC, f0=False, on_progress=meanwhile)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_splits_and_odd_rows(folder: Path, tmp_path: Path) -> None:
    rows = split_rows(find_recordings(folder), 0, held_out_speakers=2, held_out_texts=1)
    report = build(rows, tmp_path / "out", SPEC, shards=3)
    opened = Corpus.open(tmp_path / "out")
    assert opened.splits == ("train", "valid", "test")
    assert report.recordings == {s: len(opened.indices(s)) for s in opened.splits}
    assert (
        sorted(row.extra["role"] for row in opened.rows("test"))
        == ["reference"] * 4 + ["target"] * 2
    )
    with pytest.raises(UserError, match=r"has no split 'dev' .it has: train, valid, test"):
        opened.rows("dev")
    with pytest.raises(UserError, match="is listed 2 times"):
        build([rows[0], rows[0]], tmp_path / "other", SPEC)


def test_unwritable_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="out cannot be written: Not a directory"):
        build(find_recordings(folder), tmp_path / "file" / "out", SPEC)


def test_opening_what_is_no_corpus(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a built corpus .it has no corpus\.json"):
        Corpus.open(tmp_path)
    with pytest.raises(UserError, match=r"AudioSpec of the corpus .* sample_rate 16000"):
        Corpus.open(corpus, hifigan_22k())
    broken = tmp_path / "broken"
    shutil.copytree(corpus, broken)
    next(broken.glob("train-00001*")).unlink()
    with pytest.raises(UserError, match="not a whole corpus: train-00001-of-00002"):
        Corpus.open(broken)
    info = json.loads((broken / "corpus.json").read_text())
    (broken / "corpus.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(UserError, match="has format 99, not 1: build it again"):
        Corpus.open(broken)
    (broken / "corpus.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read: build the corpus again"):
        Corpus.open(broken)
