"""`jaxclone evaluate pairs`: score recordings that are there."""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.cli.console import progress
from jaxclone.cli.options import parse
from jaxclone.config import UsageError
from jaxclone.evaluate.mcd import mcd_of, mel_cepstrum
from jaxclone.evaluate.pitch import f0_error
from jaxclone.evaluate.quality import Listener, copy_scores
from jaxclone.evaluate.similarity import SpeakerVerifier, cosine
from jaxclone.types import UserError

_COLUMNS = ("converted", "truth", "source", "reference")


@dataclasses.dataclass(frozen=True)
class PairsOptions:
    """Scores converted recordings.

    Against the truth, the target saying the same: mel-cepstral distortion (MCD, dB) and F0 error.
    Against a reference, any other recording of the target: speaker similarity (cosine, by a
    verifier that no model here was trained with). With the source, the same of the unconverted
    source, to compare with. Recordings are given in the same order, or as a table.

    Attributes:
        converted: the results to score.
        truth: for each, the target saying the same.
        source: for each, what was converted.
        reference: for each, another recording of the target; one for all is enough.
        table: instead of all these, a .tsv file with the columns converted, truth, source and
            reference; paths are relative to its folder, and empty ones are not scored.
        copies: the results are copies of the truth, sample by sample comparable, as a vocoder makes
            them: score PESQ, STOI, and the distances of mels and spectra too.
    """

    converted: tuple[Path, ...] = ()
    truth: tuple[Path, ...] = ()
    source: tuple[Path, ...] = ()
    reference: tuple[Path, ...] = ()
    table: Path | None = None
    copies: bool = False


@dataclasses.dataclass(frozen=True)
class Files:
    """The recordings of one conversion; None for what there is not."""

    converted: Path
    truth: Path | None = None
    source: Path | None = None
    reference: Path | None = None


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone evaluate pairs`."""
    options = parse(PairsOptions, args, "jaxclone evaluate pairs")
    if options.table and any(getattr(options, name) for name in _COLUMNS):
        raise UsageError("jaxclone evaluate pairs takes recordings or a --table, not both")
    files = read_table(options.table) if options.table else list(_zip(options))
    if not files:
        raise UsageError("jaxclone evaluate pairs needs --converted recordings or a --table")
    if not any(pair.truth or pair.reference for pair in files):
        raise UsageError("jaxclone evaluate pairs needs --truth or --reference to score against")
    if options.copies and not all(pair.truth for pair in files):
        raise UsageError("jaxclone evaluate pairs --copies needs the --truth of each recording")
    return score(files, copies=options.copies)


def score(
    files: Sequence[Files], audio: AudioSpec = AudioSpec(), copies: bool = False
) -> dict[str, Any]:
    """The scores of each conversion, and their means over the conversions that have them.

    Args:
        files: the recordings.
        audio: the rate and the frames that scores are taken at.
        copies: they are copies of the truth, sample by sample comparable.
    """
    listener = Listener() if copies else None
    verifier = SpeakerVerifier() if any(pair.reference for pair in files) else None
    rows: list[dict[str, Any]] = []
    with progress("scoring") as show:
        for done, pair in enumerate(files, start=1):
            try:
                scores = _score(pair, audio, verifier, listener)
            except UserError as error:
                if any(str(path) in str(error) for path in dataclasses.astuple(pair) if path):
                    raise
                raise UserError(f"{pair.converted}: {error}") from None
            rows.append({"converted": str(pair.converted), **scores})
            show(done, len(files))
    names = dict.fromkeys(name for row in rows for name in row if name != "converted")
    means = {name: statistics.fmean(row[name] for row in rows if name in row) for name in names}
    return {**means, "pairs": len(rows), "scores": rows}


def _score(
    pair: Files, audio: AudioSpec, verifier: SpeakerVerifier | None, listener: Listener | None
) -> dict[str, float]:
    rate = audio.sample_rate
    heard = {
        name: io.read(path, rate) for name in _COLUMNS if (path := getattr(pair, name)) is not None
    }
    tried = {name: heard[name] for name in ("converted", "source") if name in heard}
    scores = {}
    if "truth" in heard:
        truth = mel_cepstrum(heard["truth"], rate)
        for name, waveform in tried.items():
            scores[f"mcd_{name}"] = mcd_of(mel_cepstrum(waveform, rate), truth)
        error = f0_error(heard["converted"], heard["truth"], audio)
        scores |= {f"f0_{name}": value for name, value in error.items()}
        if listener:
            scores |= copy_scores(listener, heard["truth"], heard["converted"], audio)
    if verifier and "reference" in heard:
        person = verifier.embed(heard["reference"], rate)
        for name, waveform in tried.items():
            scores[f"similarity_{name}"] = cosine(verifier.embed(waveform, rate), person)
        scores["reference_seconds"] = len(heard["reference"]) / rate
    return scores


def read_table(path: Path) -> list[Files]:
    """The recordings that a table lists.

    Raises:
        UserError: no such table, no column `converted`, a column that is not known, or a row with
            too few or too many columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from error
    header, *rows = lines or [[]]
    if "converted" not in header or not set(header) <= set(_COLUMNS):
        raise UserError(f"{path}: columns must be converted and any of {', '.join(_COLUMNS[1:])}")
    files = []
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header) or not row[header.index("converted")]:
            raise UserError(f"{path}:{number}: wants {len(header)} columns, with `converted`")
        given = {name: path.parent / text for name, text in zip(header, row) if text}
        files.append(Files(**given))
    return files


def _zip(options: PairsOptions) -> Iterator[Files]:
    """The n-th of each list together."""
    count = len(options.converted)
    lists = {name: list(getattr(options, name)) for name in _COLUMNS}
    if len(lists["reference"]) == 1:
        lists["reference"] *= count
    for name, paths in lists.items():
        if len(paths) not in (0, count):
            raise UsageError(f"{len(paths)} --{name} for {count} --converted recordings")
    for i in range(count):
        yield Files(**{name: paths[i] for name, paths in lists.items() if paths})
