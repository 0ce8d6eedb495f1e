"""`jaxclone export`: a bundle to another format."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxclone.cli.options import parse
from jaxclone.export.bundle import Bundle, load_bundle

# The module of each format: its write(bundle, out) makes the file or folder.
FORMATS = {
    "hf": "jaxclone.interop.huggingface",
    "hifigan": "jaxclone.interop.hifigan",
    "melgan": "jaxclone.interop.melgan",
    "diffwave": "jaxclone.interop.diffwave",
    "safetensors": "jaxclone.export.safetensors",
}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Writes the models of a bundle in another format.

    Attributes:
        bundle: a folder that `jaxclone train` or `jaxclone import` made.
        format: hf is a folder for Hugging Face's transformers: the encoder, as wav2vec2, hubert or
            wavlm, and the quantiser where the bundle has it; of a bundle without encoder, the
            vocoder. hifigan, melgan and diffwave are folders for jik876/hifi-gan,
            descriptinc/melgan-neurips and lmnt-com/diffwave. safetensors is one file with all
            parameters, the configurations in its header.
        out: the folder or file; it must not exist.
    """

    bundle: tyro.conf.Positional[Path]
    format: Literal["hf", "hifigan", "melgan", "diffwave", "safetensors"]
    out: Path


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone export`."""
    options = parse(ExportOptions, args, "jaxclone export")
    write: Callable[[Bundle, Path], None] = importlib.import_module(FORMATS[options.format]).write
    write(load_bundle(options.bundle), options.out)
    return {"out": options.out, "format": options.format}
