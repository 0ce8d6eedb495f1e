"""DiffWave as lmnt-com/diffwave saves it, in and out.

A file with the network (`model`) and its settings (`params`), `weights.pt` in a run. The names are
those of its `model.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxclone.audio.spec import AudioSpec, diffwave_spec, window_energy
from jaxclone.export.bundle import Bundle
from jaxclone.interop import names
from jaxclone.interop.files import as_arrays, new_folder, read_torch, write_torch
from jaxclone.interop.names import COLUMN, Layout, Name, weights
from jaxclone.interop.published import (
    Field,
    Imported,
    assemble,
    build,
    require_fixed,
    require_sizes,
    split_heads,
    vocoder_of,
)
from jaxclone.models.diffwave import DiffWaveConfig, NoiseSchedule
from jaxclone.types import UserError

_WEIGHTS = "weights.pt"
# A transposed convolution of one channel over bands and time; its bias.
_IMAGE = Layout(shape=lambda shape: (1, 1, *shape))
_SCALAR = Layout(shape=lambda shape: (1, *shape))
_UPSAMPLINGS = ("spectrogram_upsampler.conv1", "spectrogram_upsampler.conv2")
_BLOCKS = "residual_layers.*"
TABLE: names.Table = (
    *(
        Name(f"vocoder/upsample_{i}/{ours}", (f"{theirs}.{kind}",), layout)
        for i, theirs in enumerate(_UPSAMPLINGS)
        for ours, kind, layout in (("kernel", "weight", _IMAGE), ("bias", "bias", _SCALAR))
    ),
    *weights("vocoder/step_#", "diffusion_embedding.projection#"),
    *weights("vocoder/first", "input_projection", COLUMN),
    *weights("vocoder/blocks/step", f"{_BLOCKS}.diffusion_projection"),
    *weights("vocoder/blocks", f"{_BLOCKS}.dilated_conv"),
    *weights("vocoder/blocks/mel", f"{_BLOCKS}.conditioner_projection", COLUMN),
    *weights("vocoder/blocks/out", f"{_BLOCKS}.output_projection", COLUMN),
    *weights("vocoder/skip", "skip_projection", COLUMN),
    *weights("vocoder/last", "output_projection", COLUMN),
)
# Sines and cosines of the steps, which older versions saved.
_COMPUTED = ("diffusion_embedding.embedding",)
_FIELDS: tuple[Field, ...] = (
    ("n_mels", "n_mels", None),
    ("residual_channels", "channels", None),
    ("residual_layers", "layers", None),
    ("dilation_cycle_length", "dilation_cycle", None),
    ("inference_noise_schedule", "fast_schedule", list(DiffWaveConfig.base().fast_schedule)),
)
_AUDIO_FIELDS: tuple[Field, ...] = (
    ("sample_rate", "sample_rate", None),
    ("hop_samples", "hop_length", None),
    ("n_fft", "n_fft", None),
    ("n_mels", "n_mels", None),
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the settings say of mels."""

    sample_rate: int
    hop_length: int
    n_fft: int
    n_mels: int

    @property
    def spec(self) -> AudioSpec:
        """The mels in full."""
        return diffwave_spec(self.sample_rate, self.hop_length, self.n_fft, self.n_mels)


def read(path: Path) -> Imported:
    """The network of a file, or of a run's folder.

    Raises:
        UserError: PyTorch is missing, the file holds something else, its noise is none of ours, or
            a tensor is missing, unknown or misshapen.
    """
    path = path / _WEIGHTS if path.is_dir() else path
    found = read_torch(path)
    for part in ("model", "params"):
        if not isinstance(found, dict) or not isinstance(found.get(part), dict):
            raise UserError(f"{path} is no checkpoint of DiffWave: it has no {part!r}")
    params, what = found["params"], f"the settings in {path}"
    tensors, left_out = split_heads(as_arrays(found["model"], path), _COMPUTED)
    require_fixed(params, {"unconditional": False}, what)
    require_sizes(params, _sizes(tensors), what)
    audio = build(Sizes, params, _AUDIO_FIELDS, what).spec
    config = build(
        DiffWaveConfig,
        params,
        _FIELDS,
        what,
        **_affine(audio),
        upsample_rates=[_rate(tensors.get(f"{name}.weight")) for name in _UPSAMPLINGS],
    )
    config = dataclasses.replace(config, noise=_noise(params.get("noise_schedule"), what))
    left_out += tuple(sorted(str(name) for name in found.keys() - {"model", "params", "step"}))
    kept = {str(name): value for name, value in params.items() if _is_plain(value)}
    origin: dict[str, Any] = {"format": "diffwave", "params": kept}
    if type(found.get("step")) is int:
        origin["step"] = found["step"]
    configs = {"vocoder": config}
    return Imported(
        assemble(tensors, configs, audio, TABLE, str(path), {"vocoder": origin}), left_out
    )


def _sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What the tensors say of the settings; nothing where one that would say it is absent."""
    blocks = (re.match(r"residual_layers\.(\d+)\.", name) for name in tensors)
    sizes = {"residual_layers": len({block[1] for block in blocks if block})}
    mel = tensors.get("residual_layers.0.conditioner_projection.weight")
    if mel is not None and mel.ndim > 1:
        sizes |= {"residual_channels": mel.shape[0] // 2, "n_mels": mel.shape[1]}
    return sizes


def _affine(audio: AudioSpec) -> dict[str, float]:
    """What takes the log10 of a magnitude, over the energy of the window, to (dB + 80) / 100.

    Theirs are 20 dB less than 20 log10, and 100 dB make 1.
    """
    energy = window_energy(audio.win_length)
    return {"mel_scale": 0.2, "mel_shift": float(0.8 - 0.2 * np.log10(energy))}


def _rate(kernel: np.ndarray | None) -> int:
    """The factor of an upsampling, whose kernel has twice as many taps; 16 as published."""
    return 16 if kernel is None or kernel.ndim != 4 else max(1, kernel.shape[3] // 2)


def _noise(schedule: Any, what: str) -> NoiseSchedule:
    betas = np.array(schedule if isinstance(schedule, (list, tuple)) else [], dtype=object)
    if not betas.size or not all(isinstance(beta, float) for beta in betas.flat):
        raise UserError(f"{what}: noise_schedule is no list of numbers")
    noise = NoiseSchedule(len(betas), betas.flat[0], betas.flat[-1])
    if betas.ndim != 1 or not np.allclose(betas.astype(float), noise.betas, rtol=1e-6, atol=0):
        raise UserError(f"{what}: noise_schedule does not rise linearly")
    return noise


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def write(bundle: Bundle, folder: Path) -> None:
    """Writes the vocoder of a bundle.

    Args:
        bundle: holds a DiffWave.
        folder: made; must not hold anything yet.

    Raises:
        UserError: the bundle has no such vocoder, its mels are not those of this layout, PyTorch is
            missing, or the folder cannot be written.
    """
    config, audio = vocoder_of(bundle, DiffWaveConfig), bundle.audio
    said = {ours: getattr(audio, ours) for _, ours, _ in _AUDIO_FIELDS}
    Sizes(**said).spec.require(audio, "a vocoder for this layout")
    affine = _affine(audio)
    if any(getattr(config, name) != value for name, value in affine.items()):
        raise UserError(f"this format is of networks with {affine}")
    if len(config.upsample_rates) != len(_UPSAMPLINGS):
        raise UserError("this format is of networks that upsample twice")
    origin = bundle.origins.get("vocoder", {})
    origin = origin if origin.get("format") == "diffwave" else {}
    params = dict(origin.get("params", {}))
    params |= {theirs: said[ours] for theirs, ours, _ in _AUDIO_FIELDS}
    params |= {theirs: getattr(config, ours) for theirs, ours, _ in _FIELDS}
    params |= {
        "inference_noise_schedule": list(config.fast_schedule),
        "noise_schedule": config.noise.betas.tolist(),
        "unconditional": False,
    }
    tensors = names.to_theirs({"vocoder": bundle.models["vocoder"]}, TABLE)
    # What was trained here does not know its steps; theirs needs the optimiser too to train on.
    parts = {name: origin[name] for name in ("step",) if name in origin}
    with new_folder(folder) as new:
        write_torch(new / _WEIGHTS, {**parts, "model": tensors, "params": params})
