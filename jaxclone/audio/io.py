"""Reading and writing recordings: the only place where a file becomes samples."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int16

from jaxclone.files import whole_file
from jaxclone.types import UserError

# Sizes from here on are what programs that write to a pipe put into a header: "not known".
_UNKNOWN_SIZE = 0x7FFF_0000
# Byte order, and name of the chunk that holds the samples.
_CHUNKS: dict[bytes, tuple[Literal["little", "big"], bytes]] = {
    b"RIFF": ("little", b"data"),
    b"FORM": ("big", b"SSND"),
}
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
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a recording") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return read_bytes(data, sample_rate, str(path))


def read_bytes(data: bytes, sample_rate: int, name: str) -> Float[np.ndarray, " t"]:
    """Reads the bytes of a recording as `read` does its file; `name` is what messages call it."""
    samples, rate = _decode(data, name)
    return prepare(samples, rate, sample_rate, name)


def prepare(
    samples: Float[np.ndarray, "t channels"], from_rate: int, to_rate: int, name: str
) -> Float[np.ndarray, " t2"]:
    """Samples of a recording as `read` returns them; `name` is what messages call it."""
    waveform = _mono(samples)
    check(waveform, name)
    return _to_unit_range(resample(waveform, from_rate, to_rate))


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

    The file appears whole or not at all; its folder is made when missing.

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
    with whole_file(path) as file:
        file.write(data)


def to_16_bits(waveform: Float[np.ndarray, " t"]) -> Int16[np.ndarray, " t"]:
    """The samples that a 16-bit file holds of a waveform in [-1, 1]; beyond, they are clipped.

    >>> to_16_bits(np.array([0.5, -1.0, 1.0, 1e-6], np.float32)).tolist()
    [16384, -32768, 32767, 0]
    """
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def encode_flac(waveform: Float[np.ndarray, " t"], sample_rate: int) -> bytes:
    """A mono waveform in [-1, 1] as 16-bit FLAC; `decode` gives it back to within half a step."""
    return _encode(waveform, sample_rate, "FLAC")


def decode(data: bytes) -> Float[np.ndarray, " t"]:
    """The samples of an encoded mono recording, f32[t], at the rate that it was encoded at.

    Raises:
        UserError: the bytes are no recording, or not all of it.
    """
    return _mono(_decode(data, f"a record of {len(data)} bytes")[0])


def _mono(samples: Float[np.ndarray, "t channels"]) -> Float[np.ndarray, " t"]:
    # A mean over a single channel takes a tenth of the time of decoding.
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)


def _encode(waveform: np.ndarray, sample_rate: int, container: str) -> bytes:
    # Scaled here rather than by libsndfile, which multiplies by 32767 and divides by 32768: a
    # recording that is read and written again must not change.
    pcm = to_16_bits(np.asarray(waveform))
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, sample_rate, format=container, subtype="PCM_16")
    return buffer.getvalue()


def _to_unit_range(waveform: np.ndarray) -> np.ndarray:
    """Scales down float recordings and resampling overshoot that leave [-1, 1]."""
    return waveform / max(1.0, float(np.abs(waveform).max(initial=0.0)))


def _decode(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Samples [t, channels] and their rate."""
    if not data:
        raise UserError(f"{name} is an empty file")
    cut = UserError(f"{name} is cut off or damaged: it holds less audio than its header promises")
    if not _is_whole(data):
        raise cut
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:
        raise UserError(f"{name} is not a recording in a known format, or is damaged") from None
    with file:
        try:
            samples = file.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            raise cut from None
        if len(samples) < file.frames:
            raise cut
        return samples, file.samplerate


def _is_whole(data: bytes) -> bool:
    """False for wav, aiff and ogg files that end early.

    libsndfile corrects the headers of these without a word and reads what is there; in the other
    formats it tells by itself.
    """
    if data[:4] in _CHUNKS:
        order, audio = _CHUNKS[data[:4]]
        start = 12
        while start + 8 <= len(data):
            length = int.from_bytes(data[start + 4 : start + 8], order)
            if data[start : start + 4] == audio:
                return length >= _UNKNOWN_SIZE or start + 8 + length <= len(data)
            start += 8 + length + length % 2
    elif data[:4] == b"OggS":
        # RFC 3533 section 6: bit 2 of a page's flags marks the last page of a stream, and byte 26
        # counts the segments whose sizes follow.
        page = data[data.rfind(b"OggS") :]
        sizes = page[27 : 27 + page[26]] if len(page) > 26 else b""
        return len(page) > 26 and bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(sizes)
    return True
