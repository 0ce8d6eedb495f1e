"""The list of recordings: a table with a row for each, as tab-separated text."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxclone.types import UserError

REQUIRED = ("path", "speaker")
COLUMNS = ("path", "speaker", "text", "language", "seconds", "sample_rate", "split")
# What manifests write where nobody knows who speaks.
_UNLABELLED = frozenset({"", "-", "?", "none", "n/a", "unknown", "unlabelled", "unlabeled"})
# No language at all ("zxx" in ISO 639-2): noises, impulse responses, music.
_NO_LANGUAGE = frozenset({"-", "zxx"})


@dataclasses.dataclass(frozen=True)
class Row:
    """One recording.

    Attributes:
        path: of the file; in a built corpus, only the name that it once had.
        speaker: a name that is unique over all corpora; "" for nobody knows who.
        text: what is said; "" when unknown.
        language: code such as "en"; "" when unknown, "-" or "zxx" when nobody speaks.
        seconds: length; 0 when unknown.
        sample_rate: Hz; 0 when unknown.
        split: "train", "valid", "test", or "" when not assigned.
        extra: the other columns of the manifest, as text.
        problem: why the recording cannot be used, as far as that is known; "" for nothing.
    """

    path: str
    speaker: str = ""
    text: str = ""
    language: str = ""
    seconds: float = 0.0
    sample_rate: int = 0
    split: str = ""
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str = ""

    @property
    def is_speech(self) -> bool:
        """Whether somebody speaks: false for a row whose language is "-" or "zxx"."""
        return self.language not in _NO_LANGUAGE

    def column(self, name: str) -> str | None:
        """The value of any column as text, None when the row does not have it."""
        return str(getattr(self, name)) if name in COLUMNS else self.extra.get(name)


def read_manifest(path: str | Path) -> list[Row]:
    """Reads a manifest and checks that each recording that it lists is there.

    The columns `path` (relative to the manifest's folder) and `speaker` are needed; the others
    of `COLUMNS` are understood, and any more are kept in `Row.extra`. Where there is a column
    `corpus`, speakers become `corpus/speaker`, since numbers repeat from corpus to corpus.

    Returns:
        The rows in the order of the file, their paths joined to the manifest's folder.

    Raises:
        UserError: no such manifest, a missing column, a row with too few or too many columns,
            a bad number, or a recording that is missing, listed twice or outside the folder.
    """
    path = Path(path)
    folder = path.parent.resolve()
    rows: list[Row] = []
    first_line: dict[Path, int] = {}
    for line, row in _parse(path):
        where = f"{path}:{line}"
        recording = folder / row.path
        # Two spellings of one path (a/./b, a link) are one recording.
        resolved = recording.resolve()
        inside = all(
            place.is_relative_to(folder) for place in (Path(os.path.normpath(recording)), resolved)
        )
        if Path(row.path).is_absolute() or not inside:
            raise UserError(f"{where}: {row.path} leaves the folder of the manifest")
        if not recording.is_file():
            raise UserError(f"{where}: no such recording: {row.path}")
        first = first_line.setdefault(resolved, line)
        if first != line:
            raise UserError(f"{where}: {row.path} is listed twice (first on line {first})")
        rows.append(dataclasses.replace(row, path=str(recording)))
    return rows


def read_table(path: str | Path) -> list[Row]:
    """Reads the rows of a manifest as they stand, whether or not their recordings are there.

    Raises:
        UserError: as `read_manifest`, but for what concerns the recordings.
    """
    return [row for _, row in _parse(Path(path))]


def write_manifest(rows: Iterable[Row], path: str | Path) -> None:
    """Writes a manifest: the known columns, then every other column that any row has.

    Paths inside the manifest's folder become relative to it.
    """
    path = Path(path)
    rows = list(rows)
    extra = list(dict.fromkeys(name for row in rows for name in row.extra))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow([*COLUMNS, *extra])
        for row in rows:
            values = {name: getattr(row, name) for name in COLUMNS}
            values["path"] = _relative(row.path, path.parent)
            values["seconds"] = f"{row.seconds:.9g}"
            writer.writerow(
                [*values.values(), *(row.extra.get(name, "") for name in extra)],
            )


def _parse(path: Path) -> Iterable[tuple[int, Row]]:
    """The rows of a manifest, each with its line number."""
    if not path.is_file():
        raise UserError(f"{path}: no such manifest")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    header = next(reader, [])
    for name in REQUIRED:
        if name not in header:
            found = ", ".join(header) or "none"
            raise UserError(f"{path}: missing column {name!r} (it has: {found})")
    for values in reader:
        if not values:
            continue
        where = f"{path}:{reader.line_num}"
        if len(values) != len(header):
            raise UserError(f"{where}: {len(values)} columns where the header has {len(header)}")
        yield reader.line_num, _row(dict(zip(header, values, strict=True)), where)


def _row(values: dict[str, str], where: str) -> Row:
    if not values["path"]:
        raise UserError(f"{where}: the path is empty")
    seconds, rate = (_number(values, name, where) for name in ("seconds", "sample_rate"))
    speaker = values["speaker"].strip()
    corpus = values.get("corpus", "").strip()
    if speaker.casefold() in _UNLABELLED:
        speaker = ""
    elif corpus and not speaker.startswith(f"{corpus}/"):
        speaker = f"{corpus}/{speaker}"
    return Row(
        path=values["path"],
        speaker=speaker,
        text=values.get("text", ""),
        language=values.get("language", ""),
        seconds=seconds,
        sample_rate=int(rate),
        split=values.get("split", ""),
        extra={name: value for name, value in values.items() if name not in COLUMNS},
    )


def _number(values: dict[str, str], name: str, where: str) -> float:
    text = values.get(name, "").strip()
    try:
        number = float(text or 0)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise UserError(f"{where}: {name} is {text!r}, not a number of zero or more")
    return number


def _relative(path: str, folder: Path) -> str:
    if not Path(path).is_absolute():
        return path
    resolved = Path(path).resolve()
    base = folder.resolve()
    return str(resolved.relative_to(base)) if resolved.is_relative_to(base) else path
