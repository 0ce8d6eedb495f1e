"""`jaxclone evaluate probe`: how well the phones of unheard voices are told from an encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.corpus import Corpus
from jaxclone.cli.console import say
from jaxclone.cli.options import parse
from jaxclone.evaluate.probe import ProbeConfig, evaluate_probe
from jaxclone.export.bundle import load_bundle


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """Scores what an encoder has learnt, by a linear probe of each layer for the phones of speech.

    The encoder is frozen. The probes are trained on the voices of one split and scored on those of
    another, beside probes of the same network untrained and of mel cepstra (MFCC).

    Attributes:
        model: a bundle with an encoder.
        corpus: a built corpus with phones: that of `jaxclone demo` has them.
        train: the split whose voices the probes are trained on.
        test: the split whose voices they are scored on.
        probe: of the probes.
    """

    model: Path
    corpus: Path
    train: str = "train"
    test: str = "test"
    probe: ProbeConfig = ProbeConfig()


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone evaluate probe`."""
    options = parse(ProbeOptions, args, "jaxclone evaluate probe")
    bundle = load_bundle(options.model)
    corpus = Corpus.open(options.corpus, bundle.audio)
    scores = evaluate_probe(bundle, corpus, (options.train, options.test), options.probe)
    best = scores["best"]
    say(
        f"phones told on unheard voices: {best['model']:.1%}; untrained {best['untrained']:.1%}, "
        f"MFCC {best['mfcc']:.1%}, chance {scores['chance']:.1%}"
    )
    return scores
