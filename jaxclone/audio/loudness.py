"""Levels: of a recording, of its speech, of each frame."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import frame, window
from jaxclone.types import Array

# Frames of a level measurement, samples: about 30 ms at the rates of speech.
_FRAME = 512
# Frames this far below the loudest one are pauses.
_ACTIVE_RANGE_DB = 30.0
# Normalisation leaves this much below full scale.
_PEAK = 0.99
# The level of digital silence: that of one 16-bit step is about -90.
_SILENCE_DB = -100.0


def rms_db(waveform: Float[np.ndarray, " t"]) -> float:
    """Root mean square level in dB relative to full scale, -100 for silence.

    >>> round(rms_db(np.full(16_000, 0.1, np.float32)), 2)
    -20.0
    """
    return _to_db(float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0)


def active_db(waveform: Float[np.ndarray, " t"]) -> float:
    """Level of the speech alone: rms_db over the 512-sample frames within 30 dB of the loudest.

    Pauses do not count, so that one speaker's recordings get one level however they are cut.
    """
    whole = np.pad(waveform.astype(np.float64), (0, -len(waveform) % _FRAME))
    power = np.mean(whole.reshape(-1, _FRAME) ** 2, axis=1)
    if not power.any():
        return _SILENCE_DB
    return _to_db(float(power[power >= power.max() * 10 ** (-_ACTIVE_RANGE_DB / 10)].mean()))


def normalise(
    waveform: Float[np.ndarray, " t"], target_db: float = -24.0
) -> Float[np.ndarray, " t"]:
    """Scales a recording so that its speech has a level, or less where it would clip.

    Args:
        waveform: samples.
        target_db: level of the speech (see `active_db`) in dB relative to full scale.

    Returns:
        f32[t] with no sample beyond 0.99; silence is returned as it is.
    """
    peak = float(np.abs(waveform).max(initial=0.0))
    if peak == 0.0:
        return waveform
    gain = min(10 ** ((target_db - active_db(waveform)) / 20), _PEAK / peak)
    return (waveform * gain).astype(np.float32)


def frame_db(
    waveform: Float[Array, "*batch t"],
    spec: AudioSpec,
    length: Int[Array, "*batch"] | None = None,
) -> Float[Array, "*batch frames"]:
    """Level of each frame of the spec in dB relative to full scale, -100 for silence.

    Args:
        waveform: samples.
        spec: frames and window.
        length: true samples of each waveform, see `jaxclone.audio.spectral.frame`.
    """
    weight = window(spec) ** 2
    power = jnp.matmul(
        frame(waveform, spec, length) ** 2, weight / weight.sum(), precision="highest"
    )
    return 10.0 * jnp.log10(jnp.maximum(power, 10 ** (_SILENCE_DB / 10)))


def _to_db(power: float) -> float:
    return max(_SILENCE_DB, 10.0 * math.log10(max(power, 1e-30)))
