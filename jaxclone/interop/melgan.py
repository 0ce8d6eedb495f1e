"""MelGAN as descriptinc/melgan-neurips saves it, in and out.

The generator is a state dict in a file of its own, `netG.pt` in a run, with its discriminators in
`netD.pt`. No settings lie beside them: the sizes are those of the tensors. The names are those of
its `modules.py`, where layers are counted through, activations too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxclone.audio.spec import AudioSpec, melgan_22k
from jaxclone.export.bundle import Bundle
from jaxclone.interop import names
from jaxclone.interop.files import as_arrays, new_folder, read_torch, write_torch
from jaxclone.interop.names import TRANSPOSED, weight_norm
from jaxclone.interop.published import Imported, assemble, has_weight_norm, vocoder_of
from jaxclone.models.discriminators import ConvSpec, MelGANDiscriminatorConfig
from jaxclone.models.melgan import MelGANConfig
from jaxclone.nn.weight_norm import fold
from jaxclone.types import UserError

_GENERATOR, _JUDGES = "netG.pt", "netD.pt"


def generator_table(config: MelGANConfig) -> names.Table:
    """The names of a generator: an upsampling is an activation, a convolution and its blocks.

    Raises:
        UserError: an upsampling is not the same there, where an odd one starts a sample later.
    """
    if any(rate % 2 for rate in config.rates):
        raise UserError(f"this format is of even rates, not of {config.rates}")
    rows = [*weight_norm("vocoder/first", "generator.model.1", older=True)]
    place = 2
    for i in range(len(config.rates)):
        name = f"generator.model.{place + 1}"
        rows += weight_norm(f"vocoder/upsample_{i}", name, TRANSPOSED, older=True)
        for j in range(config.layers):
            block = f"generator.model.{place + 2 + j}"
            for ours, theirs in (
                ("dilated", "block.2"),
                ("plain", "block.4"),
                ("shortcut", "shortcut"),
            ):
                rows += weight_norm(
                    f"vocoder/block_{i}_{j}/{ours}", f"{block}.{theirs}", older=True
                )
        place += 2 + config.layers
    return [*rows, *weight_norm("vocoder/last", f"generator.model.{place + 2}", older=True)]


def discriminator_table(config: MelGANDiscriminatorConfig) -> names.Table:
    """The names of the discriminators."""
    rows: list[names.Name] = []
    for i in range(config.scales):
        ours, theirs = f"discriminators/params/scale_{i}", f"judges.model.disc_{i}.model"
        # The first layer pads before it convolves.
        rows += weight_norm(f"{ours}/conv_0", f"{theirs}.layer_0.1", older=True)
        rows += weight_norm(f"{ours}/conv_#", f"{theirs}.layer_#.0", older=True)
        last = f"{theirs}.layer_{len(config.layers)}"
        rows += weight_norm(f"{ours}/last", last, older=True)
    return rows


def read(path: Path) -> Imported:
    """The models of a run's folder, or of one generator.

    Args:
        path: the folder, or the file of a generator; discriminators are read where a `netG.pt` has
            its `netD.pt` beside it.

    Raises:
        UserError: PyTorch is missing, a file holds something else, or a tensor is missing, unknown
            or misshapen.
    """
    file = path / _GENERATOR if path.is_dir() else path
    tensors = _read(file, "generator")
    vocoder = _generator_config(tensors, file)
    audio = dataclasses.replace(melgan_22k(), hop_length=vocoder.hop_length, n_mels=vocoder.n_mels)
    gains = has_weight_norm(tensors)
    origins = {"vocoder": {"format": "melgan", "weight_norm": gains}}
    configs: dict[str, MelGANConfig | MelGANDiscriminatorConfig] = {"vocoder": vocoder}
    table = [*generator_table(vocoder)]
    others = file.with_name(_JUDGES)
    if file.name == _GENERATOR and others.is_file():
        more = _read(others, "judges")
        configs["discriminators"] = judges = _discriminator_config(more, others)
        tensors |= more
        table += discriminator_table(judges)
    what = str(file)
    return Imported(assemble(tensors, configs, audio, table, what, origins, weight_norm=gains))


def _read(path: Path, part: str) -> dict[str, np.ndarray]:
    return {f"{part}.{name}": array for name, array in as_arrays(read_torch(path), path).items()}


def _kernels(tensors: Mapping[str, np.ndarray], pattern: str) -> dict[int, np.ndarray]:
    """The kernels by the number in their names, in its order."""
    found = {}
    for name, array in tensors.items():
        match = re.fullmatch(pattern + r"\.(?:weight_v|weight)", name)
        if match and array.ndim == 3 and array.size:
            found[int(match[1])] = array
    return dict(sorted(found.items()))


def _generator_config(tensors: Mapping[str, np.ndarray], path: Path) -> MelGANConfig:
    """The sizes that tensors have."""
    kernels = _kernels(tensors, r"generator\.model\.(\d+)")
    if len(kernels) < 3:
        raise UserError(f"{path} is no generator of MelGAN")
    first, *upsamplings, _ = kernels.values()
    blocks = _kernels(tensors, r"generator\.model\.(\d+)\.shortcut")
    rates = tuple(kernel.shape[2] // 2 for kernel in upsamplings)
    if any(rate % 2 for rate in rates):
        raise UserError(f"{path}: its rates are {rates}; even ones can be imported")
    return MelGANConfig(first.shape[1], rates, first.shape[0], len(blocks) // len(rates))


def _discriminator_config(
    tensors: Mapping[str, np.ndarray], path: Path
) -> MelGANDiscriminatorConfig:
    """The sizes that tensors have; a stride of s goes with 10 s + 1 taps."""
    scales = {
        match[1] for name in tensors if (match := re.match(r"judges\.model\.disc_(\d+)\.", name))
    }
    kernels = _kernels(tensors, r"judges\.model\.disc_0\.model\.layer_(\d+)(?:\.[01])?")
    if not scales or len(kernels) < 3:
        raise UserError(f"{path} holds no discriminators of MelGAN")
    *layers, _ = kernels.values()
    specs, inputs = [], 1
    for i, kernel in enumerate(layers):
        channels, width, taps = kernel.shape
        stride = (taps - 1) // 10 if 0 < i < len(layers) - 1 else 1
        specs.append(ConvSpec(channels, taps, stride, max(1, inputs // width)))
        inputs = channels
    return MelGANDiscriminatorConfig(len(scales), tuple(specs))


def write(bundle: Bundle, folder: Path) -> None:
    """Writes the vocoder of a bundle, and its discriminators where the bundle has them.

    Args:
        bundle: holds a MelGAN of one band.
        folder: made; must not hold anything yet.

    Raises:
        UserError: the bundle has no such vocoder, its mels are not those of this layout, PyTorch is
            missing, a rate is odd, or the folder cannot be written.
    """
    config = vocoder_of(bundle, MelGANConfig)
    if config.bands != 1:
        raise UserError("this format has no place for a MelGAN of several bands")
    audio: AudioSpec = bundle.audio
    said = dataclasses.replace(
        melgan_22k(),
        sample_rate=audio.sample_rate,
        hop_length=audio.hop_length,
        n_mels=audio.n_mels,
    )
    said.require(audio, "a vocoder for this layout")
    table = generator_table(config)
    origin = bundle.origins.get("vocoder", {})
    plain = origin.get("format") == "melgan" and not origin.get("weight_norm", True)
    params = bundle.models["vocoder"]
    vocoder = {"vocoder": fold(params) if plain else params}
    with new_folder(folder) as new:
        _write(new / _GENERATOR, names.to_theirs(vocoder, table))
        if "discriminators" in bundle.models:
            judges = {"discriminators": bundle.models["discriminators"]}
            table = discriminator_table(bundle.configs["discriminators"])
            _write(new / _JUDGES, names.to_theirs(judges, table))


def _write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    write_torch(path, {name.partition(".")[2]: array for name, array in tensors.items()})
