"""How good a copy of a recording is, sample by sample comparable with it: PESQ, STOI, distances.

A conversion and the target's own recording of the sentence are two recordings: they have no such
scores. Copy synthesis has them, mel and vocoder alone.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxclone.audio.io import resample
from jaxclone.audio.spec import AudioSpec
from jaxclone.losses.spectral import mel_l1, multi_resolution_stft
from jaxclone.types import UserError

# Wideband PESQ (ITU-T P.862.2) is defined at this rate; STOI works at 10 kHz and takes any.
_RATE = 16_000
# PESQ refuses less than a quarter of a second.
_SHORTEST = _RATE // 4


class Listener:
    """PESQ and STOI as the packages pesq and pystoi have them, on the CPU.

    PESQ is the wideband MOS-LQO of ITU-T P.862.2, 1.04 to 4.64; STOI that of Taal et al. 2011, at
    most 1.
    """

    def __init__(self) -> None:
        """Loads the packages.

        Raises:
            UserError: one is not installed.
        """
        try:
            import pesq
            import pystoi
        except ImportError as error:
            raise UserError(
                f"PESQ and STOI need pesq and pystoi ({error}): pip install 'jaxclone[eval]'"
            ) from None
        self._pesq: Any = pesq
        self._pystoi: Any = pystoi

    def scores(
        self,
        truth: Float[np.ndarray, " t"],
        copy: Float[np.ndarray, " t"],
        sample_rate: int,
    ) -> dict[str, float]:
        """The scores that the pair has: none of what is silent or too short, as the measures ask.

        Args:
            truth: the recording.
            copy: what is compared with it.
            sample_rate: of both.
        """
        truth, copy = (resample(x, sample_rate, _RATE) for x in (truth, copy))
        if len(truth) < _SHORTEST or not (truth.any() and copy.any()):
            return {}
        scores = {}
        with contextlib.suppress(self._pesq.PesqError):  # it finds no utterance
            scores["pesq"] = float(self._pesq.pesq(_RATE, truth, copy, "wb"))
        # Of fewer than 30 frames of speech it warns.
        with warnings.catch_warnings(), contextlib.suppress(RuntimeWarning):
            warnings.simplefilter("error", RuntimeWarning)
            scores["stoi"] = float(self._pystoi.stoi(truth, copy, _RATE))
        return {name: value for name, value in scores.items() if np.isfinite(value)}


Judge = Callable[
    [Float[np.ndarray, "b t"], Float[np.ndarray, "b t"], Int[np.ndarray, " b"]], dict[str, float]
]


def find_listener() -> Listener | None:
    """A listener; None where its packages are not installed."""
    try:
        return Listener()
    except UserError:
        return None


def judge(spec: AudioSpec) -> Judge | None:
    """What scores the validation of a run; None where the packages are not installed.

    Returns:
        (recordings, copies, true samples) -> the mean of each score over the pairs that have it.
    """
    listener = find_listener()
    if listener is None:
        return None

    def scores(
        truth: Float[np.ndarray, "b t"],
        copy: Float[np.ndarray, "b t"],
        length: Int[np.ndarray, " b"],
    ) -> dict[str, float]:
        return means(
            [
                listener.scores(t[:n], c[:n], spec.sample_rate)
                for t, c, n in zip(truth, copy, length)
            ]
        )

    return scores


def copy_scores(
    listener: Listener | None,
    truth: Float[np.ndarray, " t"],
    copy: Float[np.ndarray, " t2"],
    spec: AudioSpec,
) -> dict[str, float]:
    """All scores of a copy.

    Args:
        listener: of PESQ and STOI; None goes without them.
        truth: the recording, at the spec's rate.
        copy: what is compared with it; what either is longer by than the other is left out.
        spec: of the mels.

    Returns:
        "pesq" and "stoi" where the pair has them, "mel_l1" of log-mels and "stft", the
        multi-resolution STFT distance, lower being better of these two.

    Raises:
        UserError: they are shorter than a frame.
    """
    size = min(len(truth), len(copy))
    if size < spec.hop_length:
        raise UserError(f"{size} samples are too short to be compared: they are not one frame")
    truth, copy = truth[:size], copy[:size]
    # One of few sizes, so that recordings of many lengths compile few programs.
    room = ((0, max(spec.sample_rate, 2 ** (size - 1).bit_length()) - size),)
    pair = (np.pad(x, room).astype(np.float32)[None] for x in (truth, copy))
    mel, stft = _distances(*pair, np.array([size], np.int32), spec)
    heard = listener.scores(truth, copy, spec.sample_rate) if listener else {}
    return {**heard, "mel_l1": float(mel), "stft": float(stft)}


@functools.partial(jax.jit, static_argnums=3)
def _distances(truth: Any, copy: Any, length: Any, spec: AudioSpec) -> tuple[Any, Any]:
    return (
        mel_l1(copy, truth, spec, length)[0],
        multi_resolution_stft(copy, truth, spec, length=length)[0],
    )


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each score over the rows that have it.

    >>> means([{"stoi": 0.5}, {"stoi": 1.0, "pesq": 2.0}, {}])
    {'stoi': 0.75, 'pesq': 2.0}
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: statistics.fmean(row[name] for row in rows if name in row) for name in names}
