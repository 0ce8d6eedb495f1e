"""`jaxclone evaluate cloning`: clone the held-out voices of a corpus, score them, report."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_pipelines.corpus import Corpus
from jaxclone import __version__
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.cli.cloning import make_folder
from jaxclone.cli.console import progress, say
from jaxclone.cli.options import parse
from jaxclone.config import UsageError
from jaxclone.evaluate.cloning import Pair, PairScores, evaluate_cloning, make_pairs
from jaxclone.evaluate.report import ReportPair, write_report
from jaxclone.evaluate.run_report import curves_of, read_run
from jaxclone.evaluate.similarity import SpeakerVerifier
from jaxclone.synthesis.cloner import Cloner

# Conversions that the report lets one listen to.
_HEARD = 6
# What it shows of a run.
_CURVES = ("loss", "mel_l1", "accuracy", "code_perplexity", "query_l1_before", "query_l1_after")
_PACKAGES = (
    "jax",
    "flax",
    "optax",
    "grain",
    "orbax-checkpoint",
    "librosa",
    "pyworld-prebuilt",
    "resemblyzer",
)


@dataclasses.dataclass(frozen=True)
class CloningOptions:
    """Clones voices of a corpus that were held out of training, and scores the result.

    Each conversion takes what one voice says and says it in another, of which a few seconds are
    known; where the corpus holds the other voice saying just that, the two are compared.

    Attributes:
        model: one bundle, or several that together hold all models.
        corpus: a built corpus with held-out voices.
        out: folder for `metrics.json`, `report.html`, `clone.wav` and the recordings of the first
            conversions.
        split: the part of the corpus whose voices are cloned.
        pairs: conversions to make.
        steps: inner steps of adaptation to compare; the scores are of the first.
        reference_seconds: of recording to enroll a voice on.
        runs: run folders whose loss curves and times the report shows.
        seed: told in `metrics.json`.
    """

    model: tuple[Path, ...]
    corpus: Path
    out: Path
    split: str = "test"
    pairs: int = 24
    steps: tuple[int, ...] = (0, 5, 20)
    reference_seconds: float = 5.0
    runs: tuple[Path, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise UsageError(f"--pairs is the number of conversions, 1 or more, got {self.pairs}")
        if not self.steps or min(self.steps) < 0:
            raise UsageError("--steps are numbers of steps of adaptation, 0 or more")
        if not 1 <= self.reference_seconds < math.inf:
            raise UsageError(f"--reference-seconds must be 1 or more, got {self.reference_seconds}")


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone evaluate cloning`."""
    options = parse(CloningOptions, args, "jaxclone evaluate cloning")
    began = time.monotonic()
    make_folder(options.out)
    metrics = {run.name: read_run(run) for run in options.runs}
    cloner = Cloner.load(*options.model)
    corpus, pairs = prepare(options.corpus, cloner.audio, options.split, options.pairs)
    with progress("cloning") as show:
        scores, results = evaluate_cloning(
            cloner,
            corpus,
            pairs,
            steps=options.steps,
            reference_seconds=options.reference_seconds,
            on_progress=show,
        )
    seconds = {name: max(line["seconds"] for line in lines) for name, lines in metrics.items()}
    seconds["evaluate"] = round(time.monotonic() - began, 1)
    scores |= {
        "seconds_by_stage": seconds,
        "versions": {"jaxclone": __version__, **{name: version(name) for name in _PACKAGES}},
        "seed": options.seed,
    }
    _write(options, corpus, scores, results, metrics)
    for line in table(scores):
        say(line)
    return scores


def prepare(folder: Path, audio: AudioSpec, split: str, count: int) -> tuple[Corpus, list[Pair]]:
    """All that cloning needs besides models, so that what is missing is told before they train.

    Raises:
        UserError: the corpus cannot be used, has too few voices, or a package is not installed.
    """
    SpeakerVerifier()
    corpus = Corpus.open(folder, audio)
    return corpus, make_pairs(corpus, split, count)


def table(scores: dict[str, Any]) -> list[str]:
    """The scores for people.

    >>> print(table({"mcd_source": 8.0, "mcd_converted": 6.0})[0])
    MCD to the truth     6.00 dB converted, 8.00 dB unconverted (-25%)
    """

    def text(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = []
    converted, source = scores.get("mcd_converted"), scores.get("mcd_source")
    if converted is not None and source:
        lines.append(
            f"MCD to the truth     {converted:.2f} dB converted, {source:.2f} dB unconverted "
            f"({converted / source - 1:+.0%})"
        )
    if "mcd_copy_synthesis" in scores:
        lines.append(f"  copy synthesis     {text(scores['mcd_copy_synthesis'], '.2f')} dB")
    if "pesq_copy_synthesis" in scores:
        lines[-1] += (
            f", PESQ {text(scores['pesq_copy_synthesis'], '.2f')}, "
            f"STOI {text(scores.get('stoi_copy_synthesis'), '.3f')}"
        )
    if "similarity_target" in scores:
        lines.append(
            f"similarity to target {text(scores['similarity_target'], '.3f')} converted, "
            f"{text(scores['similarity_source'], '.3f')} unconverted; closer than its source: "
            f"{text(scores['fraction_closer_to_target'], '.0%')} of {scores['pairs']} pairs"
        )
    for steps, result in scores.get("adaptation", {}).items():
        lines.append(
            f"  {steps:>3} inner steps    MCD {text(result['mcd'], '.3f')} dB, "
            f"similarity {text(result['similarity'], '.4f')}"
        )
    return lines


def _write(
    options: CloningOptions,
    corpus: Corpus,
    scores: dict[str, Any],
    results: list[PairScores],
    metrics: dict[str, list[dict[str, Any]]],
) -> None:
    out, rate = options.out, corpus.spec.sample_rate
    first = results[0]
    io.write(out / "clone.wav", first.converted, rate)
    for number, result in enumerate(results[:_HEARD]):
        folder = out / "samples" / f"{number:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("source", "reference", "converted", "truth"):
            waveform = getattr(result, name)
            if waveform is not None:
                io.write(folder / f"{name}.wav", waveform, rate)
    (out / "metrics.json").write_text(json.dumps(scores, indent=1) + "\n", "utf-8")
    rows = corpus.table
    write_report(
        out / "report.html",
        title="Cloned voices",
        audio=corpus.spec,
        scores=scores,
        pairs=[
            ReportPair(
                title=f"{rows[r.pair.source].speaker} in the voice of {r.pair.target}",
                text=rows[r.pair.source].text,
                source=r.source,
                reference=r.reference,
                converted=r.converted,
                truth=r.truth,
                scores=r.scores,
            )
            for r in results[:_HEARD]
        ],
        curves={
            f"{run}: {name}": points
            for run, lines in metrics.items()
            for name, points in curves_of(lines, _CURVES).items()
        },
        config="\n\n".join(
            f"{run.name}\n{(run / 'config.json').read_text('utf-8')}" for run in options.runs
        ),
        notes=(
            f"{scores['pairs']} conversions between voices that no training heard, each enrolled "
            f"on {options.reference_seconds:g} s of recording."
        ),
    )
