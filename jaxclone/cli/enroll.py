"""`jaxclone enroll`: recordings of a person to a voice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from jaxclone.adapt.voice import save_voice
from jaxclone.cli.cloning import load_cloner, prepare, read_references, require_steps
from jaxclone.cli.options import parse
from jaxclone.config import UsageError


@dataclasses.dataclass(frozen=True)
class EnrollOptions:
    """Makes a voice of recordings of one person, for `jaxclone convert --voice`.

    Three to five seconds are enough. The voice is a small file that holds no speech; enroll only
    people who agreed to it.

    Attributes:
        references: the recordings, of any sample rate.
        out: the voice, a .safetensors file.
        model: bundles that together hold encoder, speaker encoder, converter and vocoder; those
            of `jaxclone demo` (runs/demo/bundle) by default.
        steps: steps of adaptation to the recordings; 0 takes the embedding and the pitch alone.
        seed: of what is random in those steps.
    """

    references: tyro.conf.Positional[tuple[Path, ...]]
    out: Path
    model: tuple[Path, ...] = ()
    steps: int = 0
    seed: int = 0


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone enroll`."""
    options = parse(EnrollOptions, args, "jaxclone enroll")
    if not options.references:
        raise UsageError("jaxclone enroll needs at least one recording")
    require_steps(options.steps)
    prepare(options.out, ".safetensors")
    cloner = load_cloner(options.model)
    voice = cloner.enroll(
        read_references(options.references, cloner.audio.sample_rate),
        steps=options.steps,
        seed=options.seed,
    )
    save_voice(options.out, voice, cloner.audio, cloner.fingerprint)
    return {
        "voice": options.out,
        "reference_seconds": voice.reference_seconds,
        "steps": voice.steps,
        "f0": math.exp(voice.log_f0_mean),
    }
