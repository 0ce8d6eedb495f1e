from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.manifest import Row, write_manifest
from data_pipelines.sources import find_recordings, split_rows
from jaxclone.audio import io
from jaxclone.types import UserError


def test_folder_of_speakers(tmp_path: Path) -> None:
    for name in ("ann/1.wav", "ann/more/2.FLAC", "bob/1.wav", "loose.wav"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write(path, np.full(160, 0.1, np.float32), 16_000)
    (tmp_path / "ann/1.txt").write_text("Hello\nthere.\n")
    (tmp_path / "bob/notes.md").write_text("not a recording")
    rows = {str(Path(row.path).relative_to(tmp_path)): row for row in find_recordings(tmp_path)}
    assert {name: row.speaker for name, row in rows.items()} == {
        "ann/1.wav": "ann",
        "ann/more/2.FLAC": "ann",
        "bob/1.wav": "bob",
        "loose.wav": "",
    }
    assert rows["ann/1.wav"].text == "Hello there."


def test_manifest_with_choice(tmp_path: Path) -> None:
    rows = []
    for name, language, corpus in [("a", "en", "x"), ("b", "de", "y"), ("hiss", "-", "noise")]:
        io.write(tmp_path / f"{name}.wav", np.full(160, 0.1, np.float32), 16_000)
        extra = {"corpus": corpus}
        rows.append(Row(str(tmp_path / f"{name}.wav"), name, language=language, extra=extra))
    write_manifest(rows, tmp_path / "manifest.tsv")

    def names(where: dict[str, str | tuple[str, ...]] | None = None) -> list[str]:
        return [row.speaker for row in find_recordings(tmp_path, where)]

    assert names() == ["x/a", "y/b"], "nobody speaks in the third"
    assert names({"corpus": "x"}) == ["x/a"]
    assert names({"corpus": ("x", "y"), "language": "de"}) == ["y/b"]
    with pytest.raises(UserError, match=r"no recording has corpus 'z' \(there are: x, y\)"):
        names({"corpus": ("x", "z")})
    with pytest.raises(UserError, match="have no column 'colour' to choose by"):
        names({"colour": "red"})


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder of recordings$"):
        find_recordings(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no recordings found"):
        find_recordings(tmp_path)


def grid(voices: int, texts: int, alone: int = 0) -> list[Row]:
    """Voices that all say the same texts, and some that share nothing with anybody."""
    rows = [
        Row(f"{voice}-{text}.wav", f"voice{voice}", f"Text {text}!")
        for voice in range(voices)
        for text in range(texts)
    ]
    rows += [
        Row(f"alone{voice}-{text}.wav", f"alone{voice}", f"Only I, {voice}, say {text}")
        for voice in range(alone)
        for text in range(5)
    ]
    return [*rows, *(Row(f"u{i}.wav", "", f"text {i}") for i in range(texts))]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_voice_and_no_text_leaks_into_train(seed: int) -> None:
    rows = split_rows(grid(8, 10, alone=8), seed, held_out_speakers=3, held_out_texts=4)
    train, valid, test = ([r for r in rows if r.split == s] for s in ("train", "valid", "test"))
    targets = [row for row in test if row.extra["role"] == "target"]
    references = [row for row in test if row.extra["role"] == "reference"]
    held_out = {row.speaker for row in test}
    texts = {row.text.casefold().rstrip("!") for row in targets}
    assert len(held_out) == 3
    assert len(texts) == 4
    assert all(name.startswith("voice") for name in held_out), "those that share texts are chosen"
    assert not held_out & {row.speaker for row in train + valid}
    assert not texts & {row.text.casefold().rstrip("!") for row in train}
    assert len(targets) == 12, "each conversion has its true answer"
    assert {row.speaker for row in references} == held_out, "each voice can be enrolled"
    assert {row.speaker for row in valid} <= {row.speaker for row in train}
    assert {row.path for row in rows} == {row.path for row in grid(8, 10, alone=8)}


def test_split_is_a_function_of_the_seed() -> None:
    rows = grid(8, 6)
    first = split_rows(rows, 0, 2, 2)
    assert first == split_rows(rows, 0, 2, 2)
    by_path = {row.path: row for row in split_rows(rows[::-1], 0, 2, 2)}
    assert all(by_path[row.path] == row for row in first), "whatever the order of the rows"
    assert first != split_rows(rows, 1, 2, 2)


def test_voices_without_shared_texts() -> None:
    rows = split_rows(grid(0, 0, alone=6), 0, held_out_speakers=2, held_out_texts=4)
    test = [row for row in rows if row.split == "test"]
    assert len(test) == 10
    assert [row.extra["role"] for row in test].count("target") == 4
    assert sum(row.split == "valid" for row in rows) == 1


def test_given_splits_stay() -> None:
    rows = [dataclasses.replace(row, split="train") for row in grid(3, 2)]
    assert split_rows(rows, 0, 1, 1) == rows
    rows[1] = dataclasses.replace(rows[1], split="")
    with pytest.raises(UserError, match=r"^0-1\.wav: no split, where other recordings have one"):
        split_rows(rows, 0, 1, 1)


def test_too_many_held_out() -> None:
    with pytest.raises(UserError, match="cannot hold out 3 of 3 labelled speakers"):
        split_rows(grid(3, 2), 0, 3, 1)


def test_real_recordings(recordings: Path) -> None:
    rows = find_recordings(recordings)
    assert not [row for row in rows if row.extra["corpus"] in {"noise", "rir"}]
    unlabelled = {row.extra["corpus"] for row in rows if not row.speaker}
    assert unlabelled == {"picovoice_s2i", "picovoice_wakeword"}
    assert {"emodb/03", "librispeech/103", "vctk/p237"} < {row.speaker for row in rows}
    rows = split_rows(rows, 0, held_out_speakers=8, held_out_texts=4)
    test = [row for row in rows if row.split == "test"]
    targets = {row.text for row in test if row.extra["role"] == "target"}
    assert len({row.speaker for row in test}) == 8
    assert len(targets) == 4
    assert not targets & {row.text for row in rows if row.split == "train"}
