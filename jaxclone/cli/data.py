"""`jaxclone data`: recordings to a corpus, and what is in one."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from data_pipelines.build import Reader, build
from data_pipelines.corpora import espeak, tfds
from data_pipelines.corpus import Corpus
from data_pipelines.sources import find_recordings, select_rows, split_rows
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.cli.console import progress, say
from jaxclone.cli.options import choose, parse
from jaxclone.config import UsageError
from jaxclone.types import require_positive

VERBS = {
    "build": "a folder of recordings to a corpus, ready to train on",
    "info": "what a corpus holds",
}
_EMBEDDED = Path("embedded")
# Of the recordings that were left out, this many are printed; corpus.json names them all.
_PRINTED = 10


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Makes a corpus of recordings: resampled, levelled, analysed and packed once.

    Recordings are FOLDER/<speaker>/*.{wav,flac,mp3,ogg}, or what FOLDER/manifest.tsv lists. One
    that cannot be read is left out, counted and named.

    Attributes:
        source: the folder; or `embedded` for the synthetic corpus that jaxclone makes by itself,
            whose voices and sentences are held out already; or `tfds:NAME[/CONFIG][:SPLIT]` for
            speech that TensorFlow Datasets has prepared in ArrayRecord: all splits as they are, or
            one to be split here.
        out: the corpus, a new folder.
        where: keep only rows whose column of the manifest has one of these values, as in
            `--where corpus=librispeech,vctk language=en`.
        held_out_speakers: voices kept from training, in split `test`.
        held_out_texts: sentences kept from training, in splits `valid` and `test`.
        seed: of the choice of what is held out.
        audio: how sound becomes frames.
        shards: files a split.
        overwrite: replace a corpus that is already there.
        workers: processes; by default, or with 0, one a CPU core.
        scale: how much of the embedded corpus.
    """

    source: tyro.conf.Positional[Path]
    out: Path
    where: tuple[str, ...] = ()
    held_out_speakers: int = 0
    held_out_texts: int = 0
    seed: int = 0
    audio: AudioSpec = AudioSpec()
    shards: int = 4
    overwrite: bool = False
    workers: int | None = None
    scale: espeak.Scale = "demo"

    def __post_init__(self) -> None:
        require_positive(self, "shards")
        require_positive(self, "held_out_speakers", "held_out_texts", "workers", or_zero=True)


@dataclasses.dataclass(frozen=True)
class InfoOptions:
    """Says what a corpus holds: recordings, speakers and seconds by split and language.

    Attributes:
        corpus: a folder written by `jaxclone data build`.
    """

    corpus: tyro.conf.Positional[Path]


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone data`."""
    verb, rest = choose(args, "jaxclone data", VERBS)
    if verb == "info":
        return info(parse(InfoOptions, rest, "jaxclone data info"))
    return build_corpus(parse(BuildOptions, rest, "jaxclone data build"))


def build_corpus(options: BuildOptions) -> dict[str, Any]:
    """Runs `jaxclone data build`."""
    columns = _columns(options.where)
    folder = options.source
    if folder == _EMBEDDED:
        say("making the embedded corpus, if it is not there yet")
        folder = espeak.cached(scale=options.scale)
    read: Reader = io.read
    if str(folder).startswith(tfds.PREFIX):
        speech = tfds.TfdsSpeech.open(str(folder))
        say(f"listing {folder}")
        rows, read = select_rows(speech.rows(), columns), speech.read
    else:
        rows = find_recordings(folder, columns)
    rows = split_rows(rows, options.seed, options.held_out_speakers, options.held_out_texts)
    with progress("building") as show:
        report = build(
            rows,
            options.out,
            options.audio,
            shards=options.shards,
            overwrite=options.overwrite,
            workers=options.workers,
            read=read,
            on_progress=show,
        )
    for _, reason in report.skipped[:_PRINTED]:  # the reason names the recording
        say(f"left out: {reason}")
    if len(report.skipped) > _PRINTED:
        say(f"left out: {len(report.skipped) - _PRINTED} more, see {options.out}/corpus.json")
    return {
        "corpus": options.out,
        "recordings": report.recordings,
        "seconds": report.seconds,
        "skipped": len(report.skipped),
    }


def info(options: InfoOptions) -> dict[str, Any]:
    """Runs `jaxclone data info`."""
    corpus = Corpus.open(options.corpus)
    about = corpus.info()

    def describe(rows: list[Any]) -> dict[str, Any]:
        return {
            "recordings": len(rows),
            "speakers": len({row.speaker for row in rows} - {""}),
            "unlabelled": sum(not row.speaker for row in rows),
            "seconds": round(sum(row.seconds for row in rows), 1),
        }

    languages = collections.defaultdict(list)
    for row in corpus.table:
        languages[row.language or "unknown"].append(row)
    return {
        "corpus": options.corpus,
        **describe(corpus.table),
        "splits": {split: describe(corpus.rows(split)) for split in corpus.splits},
        "languages": {name: describe(rows) for name, rows in sorted(languages.items())},
        "audio": dataclasses.asdict(corpus.spec),
        "skipped": about["skipped"],
    }


def _columns(where: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What `--where` says, by column."""
    columns = {}
    for item in where:
        column, equals, values = item.partition("=")
        if not (column and equals and values):
            raise UsageError(f"--where wants COLUMN=VALUE,... and not {item!r}")
        columns[column] = tuple(values.split(","))
    return columns
