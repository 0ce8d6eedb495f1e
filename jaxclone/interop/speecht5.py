"""HiFi-GAN as Hugging Face's transformers saves it for SpeechT5, in and out.

Its mels are normalised by a mean and a scale of each band that lie beside the weights. The folder
says little of what these mels are: that stands in SpeechT5's `preprocessor_config.json`, or is what
SpeechT5 was published with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxclone.audio.spec import AudioSpec, speecht5_16k
from jaxclone.config import from_data, to_data
from jaxclone.export.bundle import Bundle
from jaxclone.interop import names
from jaxclone.interop.files import (
    CONFIG,
    PREPROCESSOR,
    WEIGHTS,
    new_folder,
    read_json,
    read_weights,
    write_json,
)
from jaxclone.interop.hifigan import generator_table
from jaxclone.interop.names import Name
from jaxclone.interop.published import (
    Field,
    Imported,
    assemble,
    build,
    has_weight_norm,
    require_fixed,
    vocoder_of,
)
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.nn.weight_norm import fold
from jaxclone.tensors import save_tensors
from jaxclone.types import UserError

MODEL_TYPE = "speecht5_hifigan"
_FIELDS: tuple[Field, ...] = (
    ("model_in_dim", "n_mels", 80),
    ("upsample_initial_channel", "channels", 512),
    ("upsample_rates", "upsample_rates", [4, 4, 4, 4]),
    ("upsample_kernel_sizes", "upsample_kernels", [8, 8, 8, 8]),
    ("resblock_kernel_sizes", "resblock_kernels", [3, 7, 11]),
    ("resblock_dilation_sizes", "resblock_dilations", [[1, 3, 5]] * 3),
    ("normalize_before", "normalize_input", True),
)
_FIXED = {"leaky_relu_slope": 0.1}
# Describes mels of another kind than SpeechT5's; transformers carries fields along that it has not.
_AUDIO = "jaxclone_audio"


@dataclasses.dataclass(frozen=True)
class Extractor:
    """What `SpeechT5FeatureExtractor` is told of mels: rates and edges in Hz, lengths in ms."""

    sampling_rate: int = 16_000
    num_mel_bins: int = 80
    hop_length: int = 16
    win_length: int = 64
    fmin: float = 80.0
    fmax: float = 7600.0
    mel_floor: float = 1e-10

    @property
    def spec(self) -> AudioSpec:
        """The same as ours; the FFT has the next power of two."""
        window = self.win_length * self.sampling_rate // 1000
        return dataclasses.replace(
            speecht5_16k(),
            sample_rate=self.sampling_rate,
            n_fft=2 ** (window - 1).bit_length(),
            hop_length=self.hop_length * self.sampling_rate // 1000,
            win_length=window,
            n_mels=self.num_mel_bins,
            fmin=self.fmin,
            fmax=self.fmax,
            floor=self.mel_floor,
        )


def table(config: HiFiGANConfig) -> names.Table:
    """The names of a generator and of what normalises its mels."""
    return (
        *generator_table(config, "", "upsampler", older=False),
        Name("vocoder/normalize/mean", ("mean",)),
        Name("vocoder/normalize/scale", ("scale",)),
    )


def read(path: Path, data: Mapping[str, Any]) -> Imported:
    """The vocoder of a folder.

    Args:
        path: the folder.
        data: its `config.json`.

    Raises:
        UserError: the folder is incomplete, asks for what ours has not, or a tensor is missing,
            unknown or misshapen.
    """
    what = str(path / CONFIG)
    require_fixed(data, _FIXED, what)
    config = build(HiFiGANConfig, data, _FIELDS, what)
    tensors = read_weights(path)
    weight_norm = has_weight_norm(tensors)
    origin = {"format": "hf", "config": dict(data), "weight_norm": weight_norm}
    left_out: tuple[str, ...] = ()
    if config.normalize_input:
        if not np.all(tensors.get("scale", 1)):
            raise UserError(f"{path}: a mel cannot be divided by the scale, which holds a 0")
    else:
        left_out = tuple(name for name in ("mean", "scale") if tensors.pop(name, None) is not None)
    audio = _read_audio(data, path)
    bundle = assemble(
        tensors,
        {"vocoder": config},
        audio,
        table(config),
        str(path),
        {"vocoder": origin},
        weight_norm=weight_norm,
    )
    return Imported(bundle, left_out)


def _read_audio(data: Mapping[str, Any], path: Path | None = None) -> AudioSpec:
    """What the mels are, by `config.json` and by the preprocessor's settings in a folder."""
    if _AUDIO in data:
        audio = from_data(data[_AUDIO])
        if not isinstance(audio, AudioSpec):
            raise UserError(f"{_AUDIO} in {CONFIG} is no AudioSpec")
        return audio
    settings = {
        "sampling_rate": data.get("sampling_rate", Extractor.sampling_rate),
        "num_mel_bins": data.get("model_in_dim", Extractor.num_mel_bins),
    }
    if path and (path / PREPROCESSOR).is_file():
        settings |= read_json(path / PREPROCESSOR)
    fields = tuple((f.name, f.name, f.default) for f in dataclasses.fields(Extractor))
    return build(Extractor, settings, fields, str((path or Path()) / PREPROCESSOR)).spec


def write(bundle: Bundle, folder: Path) -> None:
    """Writes the vocoder of a bundle.

    Args:
        bundle: holds a HiFi-GAN with the larger residual block.
        folder: made; must not hold anything yet.

    Raises:
        UserError: transformers has no class for it, or the folder cannot be written.
    """
    config = vocoder_of(bundle, HiFiGANConfig)
    if config.resblock != 1:
        raise UserError("Hugging Face has no class for this HiFi-GAN: its resblock is 2")
    origin = bundle.origins.get("vocoder", {})
    origin = origin if origin.get("format") == "hf" else {}
    data = origin.get("config", {"dtype": "float32"}) | _FIXED
    data |= {theirs: getattr(config, ours) for theirs, ours, _ in _FIELDS}
    data |= {"sampling_rate": bundle.audio.sample_rate, "model_type": MODEL_TYPE}
    data |= {"architectures": ["SpeechT5HifiGan"]}
    data.pop(_AUDIO, None)
    if _read_audio(data) != bundle.audio:
        data[_AUDIO] = to_data(bundle.audio)
    params = bundle.models["vocoder"]
    params = params if origin.get("weight_norm", False) else fold(params)
    if not config.normalize_input:
        bands = config.n_mels
        mean, scale = np.zeros(bands, np.float32), np.ones(bands, np.float32)
        params = {**params, "normalize": {"mean": mean, "scale": scale}}
    with new_folder(folder) as new:
        write_json(new / CONFIG, data)
        tensors = names.to_theirs({"vocoder": params}, table(config))
        save_tensors(new / WEIGHTS, tensors, {"format": "pt"})
