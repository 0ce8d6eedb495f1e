"""`jaxclone evaluate`: how good conversions are."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from jaxclone.cli.options import choose

# Each verb is the module `evaluate_<verb>` beside this one.
VERBS = {
    "pairs": "score recordings that are there",
    "cloning": "clone the held-out voices of a corpus, score them, write a report",
    "run": "show the curves and samples of a training run on one page",
    "probe": "tell phones from an encoder: what its pretraining was good for",
}


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone evaluate`."""
    verb, rest = choose(args, "jaxclone evaluate", VERBS)
    return importlib.import_module(f"jaxclone.cli.evaluate_{verb}").main(rest)
