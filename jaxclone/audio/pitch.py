"""Fundamental frequency with WORLD (Morise et al. 2016), frame by frame of an AudioSpec."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType

import numpy as np
from jaxtyping import Float

from jaxclone.audio.spec import AudioSpec
from jaxclone.types import UserError

# The range of F0 that is searched, Hz: low male voices to high female and children's voices.
_LOWEST, _HIGHEST = 60.0, 700.0


@functools.cache
def world() -> ModuleType:
    """The pyworld package.

    Raises:
        UserError: it, or the pkg_resources of setuptools that it asks for its version, is missing.
    """
    try:
        with warnings.catch_warnings():
            # pyworld asks pkg_resources for its own version, which setuptools 80 deprecates.
            warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
            import pyworld
    except ImportError as error:
        raise UserError(
            f"F0 needs pyworld ({error}): pip install pyworld 'setuptools<81'"
        ) from None
    return pyworld


def f0(waveform: Float[np.ndarray, " t"], spec: AudioSpec) -> Float[np.ndarray, " frames"]:
    """F0 of each frame of the spec, by DIO refined with StoneMask.

    Args:
        waveform: samples at the spec's rate.
        spec: its frame i is centred on sample (i + 1/2) * hop_length, and so is f0[i].

    Returns:
        f32[t // hop_length] in Hz, 0 where unvoiced.
    """
    n_frames = spec.n_frames(len(waveform))
    if not waveform.any():
        return np.zeros(n_frames, np.float32)
    # WORLD estimates at multiples of the hop. Half a hop of silence in front turns these, from the
    # second on, into the centres of our frames.
    signal = np.pad(waveform.astype(np.float64), (spec.hop_length // 2, spec.hop_length))
    estimate, times = world().dio(
        signal,
        spec.sample_rate,
        f0_floor=_LOWEST,
        f0_ceil=_HIGHEST,
        frame_period=1000.0 * spec.hop_length / spec.sample_rate,
    )
    estimate = world().stonemask(signal, estimate, times, spec.sample_rate)
    return estimate[1 : n_frames + 1].astype(np.float32)


def log_f0_stats(f0: Float[np.ndarray, " frames"]) -> tuple[float, float]:
    """Mean and standard deviation of ln(F0 in Hz) over the voiced frames.

    A recording without voiced frames has (0.0, 1.0), and the standard deviation is at least 1e-3:
    a shift and scale by these numbers is always defined.

    >>> mean, std = log_f0_stats(np.array([0, 100, 200, 0], np.float32))
    >>> round(np.exp(mean), 1), round(std, 3)
    (141.4, 0.347)
    """
    voiced = f0[f0 > 0]
    if voiced.size == 0:
        return 0.0, 1.0
    log = np.log(voiced.astype(np.float64))
    return float(log.mean()), max(float(log.std()), 1e-3)
