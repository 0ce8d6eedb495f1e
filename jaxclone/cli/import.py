"""`jaxclone import`: published weights to a bundle."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxclone.cli.options import parse
from jaxclone.export.bundle import ModelCard, save_bundle
from jaxclone.tree import n_parameters
from jaxclone.types import UserError

# The module of each format: its read(path) gives an `interop.published.Imported`.
FORMATS = {
    "hf": "jaxclone.interop.huggingface",
    "fairseq": "jaxclone.interop.fairseq",
    "hifigan": "jaxclone.interop.hifigan",
    "melgan": "jaxclone.interop.melgan",
    "diffwave": "jaxclone.interop.diffwave",
}


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """Makes a bundle of published weights of a self-supervised encoder or a vocoder.

    Every tensor is accounted for: one that is missing, unknown or misshapen is an error that names
    it. Heads of other tasks and optimisers are left out, and named in the result. A vocoder brings
    the mels that it was trained on, as the bundle's AudioSpec.

    Attributes:
        format: hf is a folder that Hugging Face's transformers saved (wav2vec2, hubert, wavlm,
            SpeechT5's vocoder); fairseq a pretraining checkpoint of wav2vec 2.0 or HuBERT, a .pt
            file; hifigan a folder of jik876/hifi-gan or the generator in it, melgan one of
            descriptinc/melgan-neurips, with the discriminators where they are; diffwave a folder of
            lmnt-com/diffwave or the .pt file in it.
        path: the folder or file.
        out: the bundle, a folder.
    """

    format: tyro.conf.Positional[Literal["hf", "fairseq", "hifigan", "melgan", "diffwave"]]
    path: tyro.conf.Positional[Path]
    out: Path


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone import`."""
    options = parse(ImportOptions, args, "jaxclone import")
    if options.out.exists() and not (options.out.is_dir() and not any(options.out.iterdir())):
        raise UserError(f"{options.out} exists: choose another folder")
    found = importlib.import_module(FORMATS[options.format]).read(options.path)
    bundle = found.bundle
    card = ModelCard(
        title=f"{options.path.stem}, imported",
        command=f"jaxclone import {shlex.join(args)}",
        data=("what the published weights were trained on: see their own model card",),
        licences=("the licence of the published weights",),
    )
    save_bundle(
        options.out, bundle.models, bundle.configs, bundle.audio, card=card, origins=bundle.origins
    )
    encoder = bundle.configs.get("encoder")
    return {
        "bundle": options.out,
        "models": list(bundle.models),
        "parameters": n_parameters(bundle.models),
        **({"normalize_input": encoder.normalize_input} if encoder else {}),
        "audio": dataclasses.asdict(bundle.audio),
        "left_out": list(found.left_out),
    }
