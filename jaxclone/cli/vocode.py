"""`jaxclone vocode`: a recording or a mel to sound, by a vocoder or by Griffin-Lim."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float

from jaxclone import config, rng
from jaxclone.audio import io
from jaxclone.audio import spec as specs
from jaxclone.audio.griffin_lim import griffin_lim
from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel, require_length
from jaxclone.cli.cloning import prepare, read_source
from jaxclone.cli.options import parse
from jaxclone.config import UsageError, did_you_mean
from jaxclone.export.bundle import load_bundle
from jaxclone.synthesis.vocoder import Vocoder
from jaxclone.types import UserError

Speak = Callable[[np.ndarray], np.ndarray]

# A louder log-mel is of something else, or of another base.
_LOUDEST = 1e6
# Predicted mels may go a little below silence.
_BELOW = 3.0


@dataclasses.dataclass(frozen=True)
class VocodeOptions:
    """Speaks a mel, or a recording by way of its mel: what a vocoder can do at best.

    Attributes:
        source: a recording of any sample rate, or a .npy file of a log-mel spectrogram: f32[frames,
            n_mels].
        out: the result, a .wav or .flac file.
        model: bundles that hold a vocoder; Griffin-Lim speaks when there is none.
        spec: what the log-mel is of: jaxclone_16k, hifigan_22k or another function of
            jaxclone.audio.spec, or a JSON file that holds an AudioSpec. By default that of the
            model, and jaxclone_16k without one.
        iterations: of Griffin-Lim.
        momentum: of Griffin-Lim; 0 is the plain one.
    """

    source: tyro.conf.Positional[Path]
    out: Path
    model: tuple[Path, ...] = ()
    spec: str = ""
    iterations: int = 32
    momentum: float = 0.99


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone vocode`."""
    options = parse(VocodeOptions, args, "jaxclone vocode")
    if options.iterations < 0 or not 0 <= options.momentum <= 1:
        raise UsageError("jaxclone vocode needs 0 or more --iterations, and a --momentum in [0, 1]")
    prepare(options.out, ".wav", ".flac")
    name, audio, speak = _neural(options) if options.model else _classic(options)
    rate, is_mel = audio.sample_rate, options.source.suffix.lower() == ".npy"
    if is_mel:
        mel = _read_mel(options.source, audio)
        samples = len(mel) * audio.hop_length
    else:
        recording = read_source(options.source, rate)
        mel, samples = np.asarray(log_mel(recording, audio)), len(recording)
    speak(mel)  # compiles
    start = time.perf_counter()
    waveform = speak(mel)
    took = time.perf_counter() - start
    again = np.asarray(log_mel(waveform, audio))
    io.write(options.out, np.pad(waveform, (0, samples - len(waveform))), rate)
    return {
        "out": options.out,
        "vocoder": name,
        "sample_rate": rate,
        "seconds": samples / rate,
        "seconds_to_vocode": took,
        "real_time_factor": took / (len(waveform) / rate),
        "mel_distance": float(np.abs(again - mel).mean()),
    }


def _neural(options: VocodeOptions) -> tuple[str, AudioSpec, Speak]:
    """The vocoder of bundles: its name, what it speaks, and how."""
    bundle = load_bundle(*options.model)
    if "vocoder" not in bundle.models:
        raise UserError(f"{', '.join(map(str, options.model))} holds no vocoder")
    generator, params = bundle.configs["vocoder"], bundle.models["vocoder"]
    if options.spec:
        bundle.audio.require(_audio_spec(options.spec), f"--spec {options.spec}")
    name = type(generator).__name__.removesuffix("Config")
    return name, bundle.audio, Vocoder(generator, params, bundle.audio)


def _classic(options: VocodeOptions) -> tuple[str, AudioSpec, Speak]:
    audio = _audio_spec(options.spec) if options.spec else AudioSpec()
    key = rng.stream(rng.root(0), "vocode")

    def speak(mel: np.ndarray) -> np.ndarray:
        # Momentum is part of what is compiled: a number of Python's own.
        spoken = griffin_lim(jnp.asarray(mel), audio, key, options.iterations, options.momentum)
        return np.asarray(jax.block_until_ready(spoken))

    return "Griffin-Lim", audio, speak


def _audio_spec(name: str) -> AudioSpec:
    """An AudioSpec by the name of a function that makes it, or from a JSON file."""
    known = {
        key: make
        for key, make in vars(specs).items()
        if inspect.isfunction(make) and not inspect.signature(make).parameters
    }
    if name in known:
        return known[name]()
    path = Path(name)
    if not path.is_file():
        raise UserError(f"no AudioSpec or file {name!r}{did_you_mean(name, known)}")
    try:
        found = config.from_json(path.read_text("utf-8"))
    except (UserError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} holds no AudioSpec ({error})") from error
    if not isinstance(found, AudioSpec):
        raise UserError(f"{path} holds a {type(found).__name__}, not an AudioSpec")
    return found


def _read_mel(path: Path, audio: AudioSpec) -> Float[np.ndarray, "f m"]:
    """A log-mel from a file.

    Raises:
        UserError: the file holds none of this AudioSpec.
    """
    try:
        mel = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a whole .npy file of numbers ({reason})") from None
    if not isinstance(mel, np.ndarray) or mel.dtype.kind not in "f":
        raise UserError(f"{path} holds no array of floating-point numbers")
    if mel.ndim != 2 or mel.shape[1] != audio.n_mels or not len(mel):
        turned = ": transpose it" if mel.ndim == 2 and mel.shape[0] == audio.n_mels else ""
        raise UserError(
            f"{path} has the shape {list(mel.shape)}, a log-mel is [frames, {audio.n_mels}]{turned}"
        )
    if not np.isfinite(mel).all():
        raise UserError(f"{path} holds values that are not finite")
    if mel.min() < audio.silence - _BELOW:
        raise UserError(
            f"{path} goes down to {mel.min():.4g}, below the {audio.silence:.4g} of silence: it is "
            f"no {audio.log} of magnitudes of this AudioSpec"
        )
    try:
        require_length(len(mel) * audio.hop_length, audio)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    loudest = np.log(_LOUDEST) if audio.log == "ln" else np.log10(_LOUDEST)
    if mel.max() > loudest:
        raise UserError(f"{path} reaches {mel.max():.4g}, which is no {audio.log} of a magnitude")
    return mel.astype(np.float32)
