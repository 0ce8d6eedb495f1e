"""How far the melody of two recordings of a sentence is apart."""

from __future__ import annotations

import librosa
import numpy as np
from jaxtyping import Float

from jaxclone.audio.pitch import f0
from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel


def f0_error(
    a: Float[np.ndarray, " t"],
    b: Float[np.ndarray, " t2"],
    spec: AudioSpec,
    align: bool = True,
) -> dict[str, float]:
    """Compares the F0 of two recordings.

    Args:
        a: samples at the spec's rate.
        b: samples; another length is fine.
        spec: its frames are compared.
        align: by dynamic time warping of the mel-cepstra, as for two recordings that were spoken
            separately; else frame by frame, up to the end of the shorter.

    Returns:
        rmse_cents: root mean square of 1200 * log2(F0 ratio) over the pairs of frames that are
            voiced in both.
        voicing_error: share of pairs that are voiced in one and not in the other.
        correlation: Pearson's, of log F0 over the pairs that are voiced in both.
        rmse_cents and correlation are absent where fewer than two pairs are voiced in both, and
        correlation where a melody is flat: they have no value then.

    Raises:
        UserError: a recording is too short for a spectrogram.

    >>> tone = np.sign(np.sin(np.arange(16_000) * 0.05)).astype(np.float32)
    >>> f0_error(tone, tone, AudioSpec())["rmse_cents"]
    0.0
    """
    first, second = f0(a, spec), f0(b, spec)
    if align:
        path = librosa.sequence.dtw(_timbre(a, spec).T, _timbre(b, spec).T, backtrack=True)[1]
        first, second = first[path[:, 0]], second[path[:, 1]]
    else:
        shorter = min(len(first), len(second))
        first, second = first[:shorter], second[:shorter]

    voiced = (first > 0) & (second > 0)
    scores = {"voicing_error": float(np.mean((first > 0) != (second > 0)))}
    if voiced.sum() < 2:
        return scores
    first, second = (np.log2(x[voiced].astype(np.float64)) for x in (first, second))
    scores["rmse_cents"] = float(1200 * np.sqrt(np.mean((first - second) ** 2)))
    if first.std() > 0 and second.std() > 0:
        scores["correlation"] = float(np.corrcoef(first, second)[0, 1])
    return scores


def _timbre(waveform: np.ndarray, spec: AudioSpec) -> np.ndarray:
    """Cepstrum of the mel spectrum [frames, 12], blind to level and nearly so to F0."""
    mel = np.asarray(log_mel(waveform, spec))
    quefrency = np.arange(1, 13)[:, None] * (np.arange(spec.n_mels) + 0.5) / spec.n_mels
    return mel @ np.cos(np.pi * quefrency).T / spec.n_mels
