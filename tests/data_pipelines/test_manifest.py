from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.manifest import Row, read_manifest, write_manifest
from jaxclone.audio import io
from jaxclone.types import UserError


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.wav", "b.wav"):
        io.write(folder / name, np.full(160, 0.1, np.float32), 16_000)
    io.write(tmp_path / "outside.wav", np.full(160, 0.1, np.float32), 16_000)
    return folder


def manifest(folder: Path, *lines: str) -> Path:
    path = folder / "manifest.tsv"
    path.write_text("\n".join(lines).replace(" | ", "\t") + "\n", encoding="utf-8")
    return path


def test_write_and_read_keep_everything(here: Path) -> None:
    rows = [
        Row(
            str((here / "a.wav").resolve()),
            "ann",
            'She said "ça\tva".',
            "fr",
            1.25,
            16_000,
            "train",
            {"notes": "x"},
        ),
        Row(str((here / "b.wav").resolve()), "", "", "", 0.0, 0, "", {"notes": ""}),
    ]
    write_manifest(rows, here / "manifest.tsv")
    assert read_manifest(here / "manifest.tsv") == rows
    assert str(here) not in (here / "manifest.tsv").read_text(), "paths are relative"


def test_foreign_columns_and_names(here: Path) -> None:
    path = manifest(
        here,
        "path | corpus | speaker | gender | text",
        "a.wav | vctk | p225 | F | Please call Stella.",
        "b.wav | wakeword | unlabelled |  | ",
    )
    first, second = read_manifest(path)
    assert (first.speaker, first.extra) == ("vctk/p225", {"corpus": "vctk", "gender": "F"})
    assert (first.split, first.seconds, second.speaker) == ("", 0.0, "")
    write_manifest([first, second], path)
    assert read_manifest(path)[0].speaker == "vctk/p225", "the corpus is not put before it twice"


@pytest.mark.parametrize("language", ["-", "zxx"])
def test_rows_without_language_are_no_speech(language: str) -> None:
    assert not Row("a.wav", language=language).is_speech
    assert Row("a.wav", language="").is_speech


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["path | text", "a.wav | x"],
            "manifest.tsv: missing column 'speaker' (it has: path, text)",
        ),
        ([""], "manifest.tsv: missing column 'path' (it has: none)"),
        (["path | speaker", "c.wav | ann"], "manifest.tsv:2: no such recording: c.wav"),
        (
            ["path | speaker", "a.wav | ann", "b.wav | bob", "./a.wav | ann"],
            "manifest.tsv:4: ./a.wav is listed twice (first on line 2)",
        ),
        (
            ["path | speaker", "../outside.wav | ann"],
            "manifest.tsv:2: ../outside.wav leaves the folder of the manifest",
        ),
        (
            ["path | speaker", "link.wav | ann"],
            "manifest.tsv:2: link.wav leaves the folder of the manifest",
        ),
        (
            ["path | speaker", "/etc/passwd | ann"],
            "manifest.tsv:2: /etc/passwd leaves the folder of the manifest",
        ),
        (["path | speaker", " | ann"], "manifest.tsv:2: the path is empty"),
        (
            ["path | speaker | seconds", "a.wav | ann | long"],
            "manifest.tsv:2: seconds is 'long', not a number of zero or more",
        ),
        (
            ["path | speaker | sample_rate", "a.wav | ann | nan"],
            "manifest.tsv:2: sample_rate is 'nan', not a number of zero or more",
        ),
        (["path | speaker", "a.wav"], "manifest.tsv:2: 1 columns where the header has 2"),
    ],
)
def test_bad_manifests(here: Path, lines: list[str], message: str) -> None:
    (here / "link.wav").symlink_to(here.parent / "outside.wav")
    with pytest.raises(UserError) as error:
        read_manifest(manifest(here, *lines))
    assert str(error.value) == f"{here}/{message}"


def test_missing_and_binary_manifest(here: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.tsv: no such manifest$"):
        read_manifest(here / "nothing.tsv")
    (here / "manifest.tsv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not a text file in UTF-8"):
        read_manifest(here / "manifest.tsv")
