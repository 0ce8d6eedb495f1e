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

from jaxclone.cli import data, evaluate, train
from jaxclone.cli.options import parse
from jaxclone.export.bundle import load_bundle, save_bundle

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


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs the demo; see `DemoOptions`."""
    options = parse(DemoOptions, args, "jaxclone demo")
    out = options.out
    seconds: dict[str, float] = {}
    corpus = str(out / "corpus")

    with _stage("corpus", seconds):
        if not (out / "corpus" / "corpus.json").is_file():
            source = [str(options.data) if options.data else "embedded"]
            if options.smoke and not options.data:
                source += ["--scale", "tiny"]
            if options.data:
                source += ["--held-out-speakers", str(options.held_out)]
                source += ["--held-out-texts", str(options.held_out_texts)]
                source += ["--where", *options.where] if options.where else []
            _run(data.main, "data", "build", *source, "--out", corpus, "--seed", str(options.seed))

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

    result = {**scores, "seconds_by_stage": seconds, "seed": options.seed}
    (out / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


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
