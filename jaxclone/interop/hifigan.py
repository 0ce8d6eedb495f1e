"""HiFi-GAN as jik876/hifi-gan saves it, in and out.

A folder with `config.json`, the generator in `g_XXXXXXXX` and, where training went on from there,
the discriminators in `do_XXXXXXXX` of the same number. The names are those of its `models.py`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxclone.audio.spec import AudioSpec
from jaxclone.export.bundle import Bundle
from jaxclone.interop import names
from jaxclone.interop.files import (
    as_arrays,
    new_folder,
    read_json,
    read_torch,
    write_json,
    write_torch,
)
from jaxclone.interop.names import COLUMN, TRANSPOSED, Name, spectral_norm, weight_norm
from jaxclone.interop.published import (
    Field,
    Imported,
    assemble,
    build,
    has_weight_norm,
    vocoder_of,
)
from jaxclone.models.discriminators import DiscriminatorConfig
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.nn.weight_norm import fold
from jaxclone.types import UserError

_CONFIG = "config.json"
_GENERATOR_FIELDS: tuple[Field, ...] = (
    ("num_mels", "n_mels", None),
    ("upsample_rates", "upsample_rates", None),
    ("upsample_kernel_sizes", "upsample_kernels", None),
    ("upsample_initial_channel", "channels", None),
    ("resblock_kernel_sizes", "resblock_kernels", None),
    ("resblock_dilation_sizes", "resblock_dilations", None),
)
_AUDIO_FIELDS: tuple[Field, ...] = (
    ("sampling_rate", "sample_rate", None),
    ("n_fft", "n_fft", None),
    ("hop_size", "hop_length", None),
    ("win_size", "win_length", None),
    ("num_mels", "n_mels", None),
    ("fmin", "fmin", 0.0),
    ("fmax", "fmax", None),
)
_RESBLOCKS = {"1": 1, "2": 2}
# What lies in `do_XXXXXXXX` beside the discriminators, and says where training stood.
_COUNTS = ("steps", "epoch")


def generator_table(
    config: HiFiGANConfig, prefix: str, upsampling: str, *, older: bool
) -> names.Table:
    """The names of a generator.

    Args:
        config: its sizes; the published residual blocks are counted through all upsamplings.
        prefix: of all names.
        upsampling: what the transposed convolutions are called.
        older: which spelling of weight norm is written, see `weight_norm`.

    Raises:
        UserError: an upsampling is not the same in PyTorch.
    """
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernels):
        if (kernel - rate) % 2:  # PyTorch cuts both ends alike, and would leave a sample too many
            raise UserError(
                f"an upsampling by {rate} with {kernel} taps is another one in PyTorch: they must "
                "differ by an even number"
            )
    rows = [
        *weight_norm("vocoder/first", f"{prefix}conv_pre", older=older),
        *weight_norm("vocoder/upsample_#", f"{prefix}{upsampling}.#", TRANSPOSED, older=older),
        *weight_norm("vocoder/last", f"{prefix}conv_post", older=older),
    ]
    steps = (
        {"dilated": "convs1", "plain": "convs2"} if config.resblock == 1 else {"dilated": "convs"}
    )
    places = itertools.product(
        range(len(config.upsample_rates)), range(len(config.resblock_kernels))
    )
    for block, (i, j) in enumerate(places):
        for ours, theirs in steps.items():
            name = f"{prefix}resblocks.{block}.{theirs}.#"
            rows += weight_norm(f"vocoder/block_{i}_{j}/{ours}_#", name, older=older)
    return rows


def discriminator_table(config: DiscriminatorConfig) -> names.Table:
    """The names of the discriminators by period (`mpd`) and by scale (`msd`)."""
    rows: list[Name] = []
    for i, period in enumerate(config.periods):
        for ours, theirs in _layers(f"period_{period}", f"mpd.discriminators.{i}"):
            rows += weight_norm(f"discriminators/params/{ours}", theirs, COLUMN, older=True)
    for i in range(config.scales):
        for ours, theirs in _layers(f"scale_{i}", f"msd.discriminators.{i}"):
            params, spectral = (f"discriminators/{kind}/{ours}" for kind in ("params", "spectral"))
            if i == 0:
                rows += spectral_norm(params, spectral, theirs)
            else:
                rows += weight_norm(params, theirs, older=True)
    return rows


def _layers(ours: str, theirs: str) -> tuple[tuple[str, str], ...]:
    return (f"{ours}/conv_#", f"{theirs}.convs.#"), (f"{ours}/last", f"{theirs}.conv_post")


def read(path: Path, judges: DiscriminatorConfig = DiscriminatorConfig.published()) -> Imported:
    """The models of a folder, or of one generator in it.

    Args:
        path: the folder, of which the last generator is taken, or the file of a generator.
        judges: sizes of the discriminators, of which nothing is written down.

    Raises:
        UserError: PyTorch is missing, there is no generator or no configuration, a file holds
            something else, or a tensor is missing, unknown or misshapen.
    """
    file = _last_generator(path) if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{file} does not exist")
    data = read_json(file.parent / _CONFIG)
    what = str(file.parent / _CONFIG)
    configs: dict[str, Any] = {"vocoder": _generator_config(data, what)}
    tensors, _ = _read_parts(file, "generator")
    weight_norm = has_weight_norm(tensors)
    origin = {"format": "hifigan", "config": data, "weight_norm": weight_norm}
    table = [*generator_table(configs["vocoder"], "generator.", "ups", older=True)]
    left_out: tuple[str, ...] = ()

    if number := re.fullmatch(r"g_(\d{8})", file.name):
        origin["steps"] = int(number[1])
    others = file.with_name(f"do_{number[1]}") if number else file
    if number and others.is_file():
        configs["discriminators"] = judges
        more, rest = _read_parts(others, "mpd", "msd")
        tensors |= more
        table += discriminator_table(judges)
        origin |= {name: rest[name] for name in _COUNTS if type(rest.get(name)) is int}
        left_out = tuple(sorted(rest.keys() - set(_COUNTS)))
    audio = build(AudioSpec, data, _AUDIO_FIELDS, what)
    origins = {"vocoder": origin}
    bundle = assemble(tensors, configs, audio, table, str(file), origins, weight_norm=weight_norm)
    return Imported(bundle, left_out)


def _last_generator(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if re.fullmatch(r"g_\d{8}", path.name))
    if not found:
        raise UserError(f"{folder} holds no generator: no file is called g_ and eight digits")
    return found[-1]


def _read_parts(path: Path, *parts: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a file's parts, named part.tensor, and what else it holds."""
    found = read_torch(path)
    for part in parts:
        if not isinstance(found, dict) or part not in found:
            raise UserError(f"{path} is no checkpoint of HiFi-GAN: it has no {part!r}")
    tensors = {
        f"{part}.{name}": array
        for part in parts
        for name, array in as_arrays(found[part], path).items()
    }
    return tensors, {str(name): value for name, value in found.items() if name not in parts}


def _generator_config(data: Mapping[str, Any], what: str) -> HiFiGANConfig:
    kind = str(data.get("resblock", "1"))
    if kind not in _RESBLOCKS:
        raise UserError(f"{what}: resblock is {kind!r}; {', '.join(_RESBLOCKS)} can be imported")
    return build(HiFiGANConfig, data, _GENERATOR_FIELDS, what, resblock=_RESBLOCKS[kind])


def write(bundle: Bundle, folder: Path) -> None:
    """Writes the vocoder of a bundle, and its discriminators where the bundle has them.

    Their optimisers are no part of a bundle, so that training there starts with fresh ones.

    Args:
        bundle: holds a HiFi-GAN.
        folder: made; must not hold anything yet.

    Raises:
        UserError: the bundle has no such vocoder, its mels are none that this layout can describe,
            PyTorch is missing, or the folder cannot be written.
    """
    config = vocoder_of(bundle, HiFiGANConfig)
    if config.normalize_input:
        raise UserError("this HiFi-GAN normalises its mels, which the layout cannot say: use hf")
    origin = bundle.origins.get("vocoder", {})
    origin = origin if origin.get("format") == "hifigan" else {}
    data = origin.get("config", {}) | _write_config(config, bundle.audio)
    params = bundle.models["vocoder"]
    params = params if origin.get("weight_norm", True) else fold(params)
    table = generator_table(config, "generator.", "ups", older=True)
    parts = _split(names.to_theirs({"vocoder": params}, table))
    steps = origin.get("steps")
    number = f"{steps if type(steps) is int else 0:08d}"
    with new_folder(folder) as new:
        write_json(new / _CONFIG, data)
        write_torch(new / f"g_{number}", parts)
        if "discriminators" in bundle.models:
            judges = {"discriminators": bundle.models["discriminators"]}
            table = discriminator_table(bundle.configs["discriminators"])
            counts = {name: origin.get(name, 0) for name in _COUNTS}
            write_torch(new / f"do_{number}", _split(names.to_theirs(judges, table)) | counts)


def _write_config(config: HiFiGANConfig, audio: AudioSpec) -> dict[str, Any]:
    """What `config.json` says of the generator and of its mels."""
    said = {ours: getattr(audio, ours) for _, ours, _ in _AUDIO_FIELDS}
    AudioSpec(**said).require(audio, "a vocoder for this layout")
    return {
        **{theirs: said[ours] for theirs, ours, _ in _AUDIO_FIELDS},
        **{theirs: getattr(config, ours) for theirs, ours, _ in _GENERATOR_FIELDS},
        "resblock": str(config.resblock),
    }


def _split(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of the names part.tensor."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = array
    return parts
