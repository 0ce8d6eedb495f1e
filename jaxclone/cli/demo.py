"""`jaxclone demo`: the whole way, from recordings to cloned voices and their scores."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from jaxclone.audio.spec import AudioSpec
from jaxclone.cli import data, evaluate, evaluate_cloning, train
from jaxclone.cli.cloning import make_folder
from jaxclone.cli.options import parse
from jaxclone.config import UsageError
from jaxclone.export.bundle import load_bundle, save_bundle
from jaxclone.types import UserError

T = TypeVar("T")
STAGES = ("pretrain", "converter", "vocoder", "meta")
# What each stage starts from.
STARTS = {"converter": ("pretrain",), "meta": ("converter",)}


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """The whole way at miniature scale, in about a quarter of an hour on two CPU cores.

    Builds a corpus, pretrains the encoder, trains converter and vocoder, meta-trains the adapters,
    clones voices that were held out of all that, and scores them. The output folder gets
    `report.html`, `clone.wav`, `metrics.json` and `bundle/`, the models. Each stage is an ordinary
    verb with an ordinary config, printed before it runs; starting the demo again continues it.

    Attributes:
        data: a folder of recordings, FOLDER/<speaker>/*.wav (flac, mp3, ogg) or one with a
            manifest.tsv; by default the embedded corpus of synthetic voices.
        where: with --data, keep only the rows of a manifest whose column has one of these values,
            as in `--where corpus=librispeech,vctk`.
        held_out: with --data, voices kept from training.
        held_out_texts: with --data, sentences kept from training, of those that several of the
            held-out voices say: only such conversions have a true answer to compare with.
        out: folder for everything that is made.
        pairs: conversions to score.
        seed: of everything random.
        smoke: only prove that every stage runs: tiny models, a few steps.
    """

    data: Path | None = None
    where: tuple[str, ...] = ()
    held_out: int = 8
    held_out_texts: int = 8
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/demo")
    pairs: int = 24
    seed: int = 0
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise UsageError(f"--pairs is the number of conversions, 1 or more, got {self.pairs}")
        if self.data is not None and not self.data.is_dir():
            raise UserError(f"--data {self.data} is not a folder")
        if self.held_out < 2:
            raise UsageError(f"--held-out must be 2 voices or more, got {self.held_out}")


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs the demo; see `DemoOptions`."""
    options = parse(DemoOptions, args, "jaxclone demo")
    out = options.out
    make_folder(out)
    seconds: dict[str, float] = {}
    corpus = str(out / "corpus")

    with _stage("corpus", seconds):
        command = [*_source(options), "--out", corpus, "--seed", str(options.seed)]
        if not _built(out, command):
            _run(data.main, "data", "build", *command)
        evaluate_cloning.prepare(Path(corpus), AudioSpec(), "test", options.pairs)

    for stage in STAGES:
        with _stage(stage, seconds):
            start = [str(out / before / "bundle") for before in STARTS.get(stage, ())]
            command = [
                f"demo/{stage}{':smoke' if options.smoke else ''}",
                *("--out", str(out / stage)),
                *("--seed", str(options.seed)),
                *("--data.corpus", corpus),
                *("--valid.corpus", corpus),
                *(("--init-from", *start) if start else ()),
            ]
            _run(train.main, "train", *command)

    with _stage("evaluate", seconds):
        bundle = _join(out / "bundle", out / "meta" / "bundle", out / "vocoder" / "bundle")
        command = [
            *("--model", str(bundle)),
            *("--corpus", corpus),
            *("--pairs", str(options.pairs)),
            *("--out", str(out)),
            *("--runs", *(str(out / stage) for stage in STAGES)),
        ]
        scores = _run(evaluate.main, "evaluate", "cloning", *command)

    # A stage that an earlier start had done took what its run tells.
    seconds = {
        name: max(taken, scores["seconds_by_stage"].get(name, 0.0))
        for name, taken in seconds.items()
    }
    result = {**scores, "seconds_by_stage": seconds, "seed": options.seed}
    (out / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _source(options: DemoOptions) -> list[str]:
    """What `jaxclone data build` makes the corpus of."""
    if options.data is None:
        return ["embedded", *(["--scale", "tiny"] if options.smoke else [])]
    return [
        str(options.data.resolve()),
        *("--held-out-speakers", str(options.held_out)),
        *("--held-out-texts", str(options.held_out_texts)),
        *(("--where", *options.where) if options.where else ()),
    ]


def _built(out: Path, command: Sequence[str]) -> bool:
    """Whether the folder holds the corpus of this command; the command is noted there.

    Raises:
        UserError: it holds that of another.
    """
    note = out / "corpus_command.json"
    if not (out / "corpus" / "corpus.json").is_file():
        note.write_text(json.dumps(list(command)) + "\n", "utf-8")
        return False
    before = json.loads(note.read_text("utf-8")) if note.is_file() else []
    if before != list(command):
        raise UserError(
            f"{out} holds a demo of other data ({shlex.join(before) or 'unknown'}); choose another "
            "--out, or remove it"
        )
    return True


def _join(folder: Path, *parts: Path) -> Path:
    """Bundles as one, with the model cards of all."""
    whole = load_bundle(*parts)
    card = "\n\n".join((part / "README.md").read_text("utf-8") for part in parts)
    save_bundle(folder, whole.models, whole.configs, whole.audio, card=card)
    return folder


@contextlib.contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)


def _run(verb: Callable[[Sequence[str]], T], name: str, *args: str) -> T:
    """Runs a verb in this process, showing the command that would do the same."""
    print(f"\n$ jaxclone {name} {shlex.join(args)}", file=sys.stderr, flush=True)
    return verb(args)
