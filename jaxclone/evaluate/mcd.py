"""Mel-cepstral distortion: how far two spectra are apart, in dB.

Definition (Kubichek 1993): (10 / ln 10) * sqrt(2 * sum over d = 1..24 of (a_d - b_d)^2), averaged
over the path of a dynamic time warping of the mel-cepstra a and b. The energy, c_0, is left out: of
the published scripts some include it, and their numbers are not comparable with these.
"""

from __future__ import annotations

import functools

import librosa
import numpy as np
from jaxtyping import Float

from jaxclone.types import UserError

# The order of the mel-cepstrum, c_0 not counted.
ORDER = 24
# Seconds from one frame to the next.
FRAME_PERIOD = 0.005
# Sample rate to the all-pass constant whose warping is nearest to the mel scale.
ALPHA = {
    8_000: 0.31,
    16_000: 0.42,
    22_050: 0.455,
    24_000: 0.466,
    32_000: 0.504,
    44_100: 0.544,
    48_000: 0.554,
}
# Power of white noise that stands under every envelope, relative to that of the recording.
_POWER_FLOOR = 1e-10


# Of the matrix that aligns two recordings.
_MOST_CELLS = 9_000**2


def mcd(
    a: Float[np.ndarray, " t"],
    b: Float[np.ndarray, " t2"],
    sample_rate: int,
    drop_silence_db: float | None = None,
) -> float:
    """Mel-cepstral distortion of two recordings of the same sentence, in dB.

    It does not depend on their levels. Digital silence has a flat envelope (see `mel_cepstrum`):
    against itself it is 0, against speech large but finite.

    Args:
        a: samples.
        b: samples; another length is fine.
        sample_rate: of both, a key of `ALPHA`.
        drop_silence_db: when given, frames so far below the loudest of their recording are left
            out, so that pauses do not dilute the mean.

    Raises:
        UserError: the rate is not one of `ALPHA`, or a recording is shorter than a frame.

    >>> tone = np.sin(np.arange(8000) * 0.1)
    >>> mcd(tone, 0.5 * tone, 16_000) < 0.01
    True
    """
    return mcd_of(
        mel_cepstrum(a, sample_rate, drop_silence_db), mel_cepstrum(b, sample_rate, drop_silence_db)
    )


def mcd_of(a: Float[np.ndarray, "frames c"], b: Float[np.ndarray, "frames2 c"]) -> float:
    """Mel-cepstral distortion of two mel-cepstra, c_0 first, aligned by dynamic time warping.

    The warping is librosa's with its usual steps (1, 1), (0, 1), (1, 0) of equal weight and the
    same Euclidean distance. Its memory grows with frames * frames2: 45 s against 45 s, about the
    most that is taken, need 2 GB.

    Raises:
        UserError: the recordings are too long.
    """
    if len(a) * len(b) > _MOST_CELLS:
        longest = max(len(a), len(b)) * FRAME_PERIOD
        raise UserError(f"MCD is of single sentences; cut the recording of {longest:.0f} s first")
    cost, path = librosa.sequence.dtw(a[:, 1:].T, b[:, 1:].T, metric="euclidean")
    return float(10 / np.log(10) * np.sqrt(2) * cost[-1, -1] / len(path))


def mel_cepstrum(
    waveform: Float[np.ndarray, " t"], sample_rate: int, drop_silence_db: float | None = None
) -> Float[np.ndarray, "frames 25"]:
    """Mel-cepstrum of the spectral envelope by WORLD, every 5 ms.

    F0 by DIO and StoneMask, envelope by CheapTrick (Morise 2015), log amplitude to cepstrum, warped
    by an all-pass filter (Oppenheim and Johnson 1972), as the SPTK toolkit's `sp2mc` does.

    White noise 100 dB below the mean power of the recording is added to every envelope. It is
    hardly more than the rounding of 16-bit audio, but it gives digital silence, whose logarithm has
    no bounds, a flat spectrum.

    Args:
        waveform: samples.
        sample_rate: a key of `ALPHA`.
        drop_silence_db: when given, frames so far below the loudest one are left out.

    Returns:
        f64[frames, 25], the energy first.

    Raises:
        UserError: the rate is not one of `ALPHA`, or the recording is shorter than a frame.
    """
    import pyworld

    if sample_rate not in ALPHA:
        rates = ", ".join(map(str, ALPHA))
        raise UserError(f"MCD is defined here at {rates} Hz, not at {sample_rate} Hz")
    if len(waveform) < FRAME_PERIOD * sample_rate:
        raise UserError(f"MCD needs at least 5 ms of sound, got {len(waveform)} samples")
    level = np.sqrt(np.mean(np.square(waveform, dtype=np.float64))) or 1.0
    signal = np.ascontiguousarray(waveform, np.float64) / level
    f0, times = pyworld.dio(signal, sample_rate, frame_period=1000 * FRAME_PERIOD)
    f0 = pyworld.stonemask(signal, f0, times, sample_rate)
    envelope = pyworld.cheaptrick(signal, f0, times, sample_rate) + _POWER_FLOOR
    if drop_silence_db is not None:
        power = envelope.mean(axis=1)
        envelope = envelope[power >= power.max() * 10 ** (-drop_silence_db / 10)]
    cepstrum = np.log(envelope) @ _warped_cosines(envelope.shape[1], ALPHA[sample_rate])
    cepstrum[:, 0] += np.log(level)
    return cepstrum


@functools.cache
def _warped_cosines(n_bins: int, alpha: float) -> np.ndarray:
    """The matrix [n_bins, 25] from a log power spectrum to the mel-cepstrum of its amplitude."""
    # The inverse transform of a log power is twice the two-sided cepstrum of the log amplitude:
    # the one-sided, minimum-phase one, except for c_0.
    cepstrum = np.fft.irfft(np.eye(n_bins), axis=1)[:, :n_bins]
    cepstrum[:, 0] /= 2
    # Horner's scheme from the highest quefrency down; each step applies the all-pass filter once.
    warped = np.zeros((n_bins, ORDER + 1))
    for c in cepstrum.T[::-1]:
        last = warped
        warped = np.empty_like(last)
        warped[:, 0] = c + alpha * last[:, 0]
        warped[:, 1] = (1 - alpha**2) * last[:, 0] + alpha * last[:, 1]
        for d in range(2, ORDER + 1):
            warped[:, d] = last[:, d - 1] + alpha * (last[:, d] - warped[:, d - 1])
    return warped
