"""Reading and writing recordings: the only place where a file becomes samples."""

from __future__ import annotations

import io
import os
import secrets
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from jaxclone.types import UserError

# Sizes from here on are what programs that write to a pipe put into a header: "not known".
_UNKNOWN_SIZE = 0x7FFF_0000
_FORMATS = {".wav": "WAV", ".flac": "FLAC"}


def read(path: str | os.PathLike[str], sample_rate: int) -> Float[np.ndarray, " t"]:
    """Reads a recording as mono at a sample rate.

    Channels are averaged, and the result is scaled down when a sample lies outside of [-1, 1].

    Args:
        path: wav, flac, ogg, mp3 or anything else that libsndfile decodes.
        sample_rate: of the result, Hz; resampled in high quality where the file has another.

    Returns:
        f32[t] in [-1, 1].

    Raises:
        UserError: the file is missing, empty, not audio, cut off, without samples, all zero, or
            holds samples that are not numbers.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a recording")
    try:
        size = path.stat().st_size
        if size == 0:
            raise UserError(f"{path} is an empty file")
        with soundfile.SoundFile(path) as file:
            rate, promised = file.samplerate, file.frames
            samples = file.read(dtype="float32", always_2d=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except soundfile.LibsndfileError as error:
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} cannot be read: Permission denied") from None
        raise UserError(f"{path} cannot be decoded: {error.error_string.rstrip('.')}") from None
    if len(samples) < promised or _riff_is_cut(path, size):
        raise UserError(f"{path} is cut off: its header promises more audio than it holds")
    waveform = samples.mean(axis=1)
    check(waveform, str(path))
    return _to_unit_range(resample(waveform, rate, sample_rate))


def check(waveform: Float[np.ndarray, " t"], name: str) -> None:
    """Raises a UserError when a waveform has no samples, no sound, or samples that are no numbers.

    Args:
        waveform: samples.
        name: what the message calls it: the path of a file.
    """
    if waveform.size == 0:
        raise UserError(f"{name} holds no audio: it has 0 samples")
    if not np.isfinite(waveform).all():
        bad = np.count_nonzero(~np.isfinite(waveform))
        raise UserError(f"{name} holds {bad} samples that are not finite numbers (NaN or infinity)")
    if not waveform.any():
        raise UserError(f"{name} is silent: every sample is zero")


def require_seconds(
    waveform: Float[np.ndarray, " t"], sample_rate: int, seconds: float, name: str
) -> None:
    """Raises a UserError when a waveform is shorter than `seconds`.

    >>> require_seconds(np.zeros(48, np.float32), 16_000, 1.0, "me.wav")
    Traceback (most recent call last):
    jaxclone.types.UserError: me.wav lasts 0.003 s, at least 1 s is needed
    """
    if len(waveform) < seconds * sample_rate:
        lasts = len(waveform) / sample_rate
        raise UserError(f"{name} lasts {lasts:.3f} s, at least {seconds:g} s is needed")


def resample(
    waveform: Float[np.ndarray, " t"], from_rate: int, to_rate: int
) -> Float[np.ndarray, " t2"]:
    """Resamples in soxr's high quality; the length becomes round(t * to_rate / from_rate)."""
    if from_rate == to_rate:
        return waveform
    return soxr.resample(waveform, from_rate, to_rate, quality="HQ").astype(np.float32)


def write(
    path: str | os.PathLike[str], waveform: Float[np.ndarray, " t"], sample_rate: int
) -> None:
    """Writes mono 16-bit audio, clipped to [-1, 1]; wav or flac by the suffix.

    The file appears whole or not at all: it is written under another name and then renamed.

    Raises:
        UserError: another suffix, samples that are not finite, or a folder that cannot be written.
    """
    path = Path(path)
    container = _FORMATS.get(path.suffix.lower())
    if container is None:
        raise UserError(f"{path} must end in .wav or .flac")
    if not np.isfinite(waveform).all():
        raise UserError(f"{path} not written: the waveform holds NaN or infinite samples")
    data = _encode(waveform, sample_rate, container)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def encode_flac(waveform: Float[np.ndarray, " t"], sample_rate: int) -> bytes:
    """A mono waveform in [-1, 1] as 16-bit FLAC; `decode` gives it back to within half a step."""
    return _encode(waveform, sample_rate, "FLAC")


def decode(data: bytes) -> Float[np.ndarray, " t"]:
    """The samples of an encoded mono recording, f32[t], at the rate that it was encoded at.

    Raises:
        UserError: the bytes are no recording.
    """
    try:
        return soundfile.read(io.BytesIO(data), dtype="float32")[0]
    except soundfile.LibsndfileError as error:
        raise UserError(f"a recording of {len(data)} bytes cannot be decoded: {error}") from None


def _encode(waveform: np.ndarray, sample_rate: int, container: str) -> bytes:
    # Scaled here rather than by libsndfile, which multiplies by 32767 and divides by 32768: a
    # recording that is read and written again must not change.
    pcm = np.clip(np.rint(np.asarray(waveform) * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, sample_rate, format=container, subtype="PCM_16")
    return buffer.getvalue()


def _to_unit_range(waveform: np.ndarray) -> np.ndarray:
    """Scales down float recordings and resampling overshoot that leave [-1, 1]."""
    return waveform / max(1.0, float(np.abs(waveform).max(initial=0.0)))


def _riff_is_cut(path: Path, size: int) -> bool:
    """Whether a RIFF file ends before its data chunk does.

    libsndfile corrects the header of a shortened wav and reads what is there without a word.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return False
        while len(chunk := file.read(8)) == 8:
            length = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                return length < _UNKNOWN_SIZE and file.tell() + length > size
            file.seek(length + length % 2, os.SEEK_CUR)
    return False
