"""From folders of recordings to rows, and from rows to splits."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipelines.manifest import Row, read_manifest
from jaxclone.types import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
SPLITS = ("train", "valid", "test")
# Of the recordings of training voices, the part that `valid` gets at least.
_VALID_FRACTION = 0.05
# Letters of a text file that is no transcript of a recording.
_TOO_LONG = 100_000


def find_recordings(
    folder: str | Path, where: Mapping[str, str | Sequence[str]] | None = None
) -> list[Row]:
    """The recordings of speech in a folder.

    A folder that holds a `manifest.tsv` has what that lists. In any other, recordings lie in
    `FOLDER/<speaker>/`, at any depth; those directly in the folder have no known speaker, and
    a `.txt` file of the same name beside a recording is its text. Where that cannot be read, or a
    name is not in UTF-8, the row says so in `Row.problem`.

    Rows in which nobody speaks (`Row.is_speech`: the manifest gives their language as "-" or
    "zxx", as it is for noises and impulse responses) are left out.

    Args:
        folder: where to look.
        where: keep only rows whose column has one of the values, for each column named.

    Raises:
        UserError: there is no such folder, nothing is in it, or `where` selects nothing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of recordings")
    manifest = folder / "manifest.tsv"
    rows = read_manifest(manifest) if manifest.is_file() else _walk(folder)
    rows = [row for row in rows if row.is_speech]
    if not rows:
        kinds = ",".join(suffix[1:] for suffix in AUDIO_SUFFIXES)
        raise UserError(
            f"{folder}: no recordings found (looked for manifest.tsv and <speaker>/*.{{{kinds}}})"
        )
    return select_rows(rows, where or {})


def select_rows(rows: list[Row], where: Mapping[str, str | Sequence[str]]) -> list[Row]:
    """The rows whose column has one of the values, for each column named.

    Raises:
        UserError: there is no such column, or no row that has the value.
    """
    for column, wanted in where.items():
        rows = _select(rows, column, (wanted,) if isinstance(wanted, str) else tuple(wanted))
    return rows


def split_rows(
    rows: Sequence[Row], seed: int, held_out_speakers: int, held_out_texts: int
) -> list[Row]:
    """Assigns train, valid and test so that test holds voices *and* sentences out.

    - Held-out voices: `held_out_speakers` of the labelled ones, and all that they say is in
      `test`. Taken one by one among those with two recordings or more (one to enroll, one to
      compare with), the next being the voice that shares most text, counted in letters, with
      those taken already (so that a conversion between two of them has a true answer: the target
      saying the same), then with anybody; equal ones by a hash of seed and name.
    - Held-out sentences: `held_out_texts` of the texts that two held-out voices or more say,
      the most widely shared first, as long as each voice keeps a recording of something else.
      No training recording says any of them.
    - In `test`, the column `role` is "target" for recordings of held-out sentences and
      "reference" for the rest, on which a voice is enrolled. A voice without a held-out
      sentence has half of its recordings as targets: such conversions have no true answer, but
      the similarity to the voice can still be measured.
    - `valid`: recordings of training voices that say held-out sentences, topped up to 5 % by
      others (of voices that have at least three, so that each stays in training).
    - `train`: what remains. Texts are compared without regard to case and punctuation.

    Rows that all have a split already are returned as they are.

    Raises:
        UserError: some rows have a split and some not, or so many voices are held out that none
            is left to train on.
    """
    given = [bool(row.split) for row in rows]
    if all(given):
        return list(rows)
    if any(given):
        raise UserError(
            f"{rows[given.index(False)].path}: no split, where other recordings have one"
        )

    by_speaker: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row.speaker:
            by_speaker[row.speaker].append(row)
    if held_out_speakers and held_out_speakers >= len(by_speaker):
        raise UserError(
            f"cannot hold out {held_out_speakers} of {len(by_speaker)} labelled speakers: "
            "none is left to train on"
        )
    voices = _held_out_voices(by_speaker, seed, held_out_speakers)
    spoken = {name: [_key(row.text) for row in by_speaker[name]] for name in voices}
    texts = _held_out_texts(spoken, seed, held_out_texts)
    targets = {row.path for name in voices for row in _targets(by_speaker[name], texts, seed)}
    training = [row for row in rows if row.speaker not in voices]
    valid = {row.path for row in training if _key(row.text) in texts}
    wanted = math.ceil(_VALID_FRACTION * len(training))
    spare = [
        row
        for row in training
        if row.path not in valid and (not row.speaker or len(by_speaker[row.speaker]) > 2)
    ]
    spare.sort(key=lambda row: _rank(seed, row.path))
    valid.update(row.path for row in spare[: max(0, wanted - len(valid))])

    def assign(row: Row) -> Row:
        if row.speaker in voices:
            role = "target" if row.path in targets else "reference"
            return dataclasses.replace(row, split="test", extra={**row.extra, "role": role})
        return dataclasses.replace(row, split="valid" if row.path in valid else "train")

    return [assign(row) for row in rows]


def _walk(folder: Path) -> list[Row]:
    rows = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in AUDIO_SUFFIXES or not path.is_file():
            continue
        parts = path.relative_to(folder).parts
        row = Row(str(path), speaker=parts[0] if len(parts) > 1 else "")
        try:
            "/".join(parts).encode()
            row = dataclasses.replace(row, text=_transcript(path.with_suffix(".txt")))
        except UnicodeEncodeError:
            row = dataclasses.replace(row, problem=f"{path}: its name is not in UTF-8")
        except UserError as error:
            row = dataclasses.replace(row, problem=str(error))
        rows.append(row)
    return rows


def _transcript(path: Path) -> str:
    """What a text file says, on one line; "" when there is none."""
    if not path.is_file():
        return ""
    try:
        text = " ".join(path.read_text("utf-8").split())
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(text) > _TOO_LONG:
        raise UserError(f"{path} is no transcript of a recording: it has {len(text)} letters")
    return text


def _select(rows: list[Row], column: str, wanted: tuple[str, ...]) -> list[Row]:
    found = {value for row in rows if (value := row.column(column)) is not None}
    if not found:
        raise UserError(f"the recordings have no column {column!r} to choose by")
    for value in wanted:
        if value not in found:
            some = ", ".join(sorted(found)[:20])
            raise UserError(f"no recording has {column} {value!r} (there are: {some})")
    return [row for row in rows if row.column(column) in wanted]


def _key(text: str) -> str:
    """What is compared of a text."""
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _rank(seed: int, name: str) -> bytes:
    """A place in an order that is random but the same everywhere."""
    return hashlib.blake2b(
        f"{seed}/{name}".encode(errors="surrogateescape"), digest_size=8
    ).digest()


def _held_out_voices(by_speaker: Mapping[str, list[Row]], seed: int, count: int) -> set[str]:
    texts = {name: {_key(row.text) for row in rows} - {""} for name, rows in by_speaker.items()}
    speakers = collections.Counter(text for said in texts.values() for text in said)
    shared = {name: {t for t in said if speakers[t] > 1} for name, said in texts.items()}
    order = sorted(by_speaker, key=lambda name: _rank(seed, name))
    chosen: dict[str, None] = {}
    covered: set[str] = set()
    for _ in range(count):
        best = max(
            (name for name in order if name not in chosen),
            key=lambda name: (
                min(len(by_speaker[name]), 2),
                sum(map(len, shared[name] & covered)),
                sum(map(len, shared[name])),
            ),
        )
        chosen[best] = None
        covered |= shared[best]
    return set(chosen)


def _held_out_texts(spoken: Mapping[str, list[str]], seed: int, count: int) -> set[str]:
    """Texts to hold out, of those in `spoken` (held-out voice -> text of each recording)."""
    voices = collections.Counter(text for said in spoken.values() for text in set(said) - {""})
    left = {name: len(said) for name, said in spoken.items()}
    chosen: set[str] = set()
    for text in sorted(voices, key=lambda text: (-voices[text], _rank(seed, text))):
        uses = {name: said.count(text) for name, said in spoken.items() if text in said}
        if voices[text] < 2 or len(chosen) == count:
            break
        if all(left[name] > n for name, n in uses.items()):
            chosen.add(text)
            for name, n in uses.items():
                left[name] -= n
    return chosen


def _targets(rows: list[Row], texts: set[str], seed: int) -> list[Row]:
    """The recordings of one held-out voice that conversions are compared with."""
    targets = [row for row in rows if _key(row.text) in texts]
    if targets:
        return targets
    return sorted(rows, key=lambda row: _rank(seed, row.path))[: len(rows) // 2]
