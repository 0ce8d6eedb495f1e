"""`jaxclone convert`: a recording to the same words in another voice."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from jaxclone.adapt.voice import load_voice
from jaxclone.audio import io
from jaxclone.cli.cloning import (
    load_cloner,
    prepare,
    read_references,
    read_source,
    require_steps,
)
from jaxclone.cli.options import parse
from jaxclone.config import UsageError


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Says what a recording says in another voice.

    The voice comes from a file that `jaxclone enroll` wrote, or from recordings of the person,
    three to five seconds of them. Clone only people who agreed to it.

    Attributes:
        source: what is said: a recording of any length and sample rate, mono or stereo.
        out: the result, a .wav or .flac file.
        model: bundles that together hold encoder, speaker encoder, converter and vocoder; those
            of `jaxclone demo` (runs/demo/bundle) by default.
        voice: who says it, as a file of `jaxclone enroll`.
        reference: who says it, as recordings.
        steps: with --reference, steps of adaptation to the recordings.
    """

    source: tyro.conf.Positional[Path]
    out: Path
    model: tuple[Path, ...] = ()
    voice: Path | None = None
    reference: tuple[Path, ...] = ()
    steps: int = 0


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone convert`."""
    options = parse(ConvertOptions, args, "jaxclone convert")
    if (options.voice is None) == (not options.reference):
        raise UsageError("jaxclone convert needs either --voice or --reference")
    require_steps(options.steps)
    if options.voice is not None and options.steps:
        raise UsageError("--steps adapts to --reference recordings; a --voice is what it is")
    prepare(options.out, ".wav", ".flac")
    cloner = load_cloner(options.model)
    rate = cloner.audio.sample_rate
    source = read_source(options.source, rate)
    if options.voice is not None:
        voice = load_voice(options.voice, cloner.audio, cloner.fingerprint)
    else:
        voice = cloner.enroll(read_references(options.reference, rate), steps=options.steps)
    start = time.perf_counter()
    waveform = cloner.convert(source, voice)
    took = time.perf_counter() - start
    io.write(options.out, waveform, rate)
    return {
        "out": options.out,
        "sample_rate": rate,
        "seconds": len(waveform) / rate,
        "seconds_to_convert": took,
        "reference_seconds": voice.reference_seconds,
        "steps": voice.steps,
    }
